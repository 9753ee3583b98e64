"""LoRA itself: W' = W + s B A (Hu et al., 2021)."""

from dataclasses import dataclass

from torch import Tensor

from weft.config import LoRA
from weft.nn import Factors, LoRALayer, VariantRule
from weft.variants.rule import rule_for


@dataclass(frozen=True)
class LoRARule(VariantRule):
    """Adds s B A to the weight, or s B A x to the output."""

    additive = True

    def output(self, layer: LoRALayer, output: Tensor | None, x: Tensor, factors: Factors, scale: float) -> Tensor:
        """output + s B A x."""
        return layer.add_update(output, x, factors, scale * factors.scaling)

    def weight(self, layer: LoRALayer, weight: Tensor, base: Tensor, factors: Factors, scale: float) -> Tensor:
        """weight + s B A, in place of `weight`."""
        change = factors.low_rank().to(dtype=weight.dtype)
        return weight.addmm_(change.B, change.A, alpha=scale * change.scaling)


@rule_for.register
def _(variant: LoRA) -> VariantRule:
    return LoRARule()
