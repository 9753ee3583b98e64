"""Linear layers: torch's and every subclass of it, and GPT-2's Conv1D, which stores the transpose."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weft import ops
from weft.adapter import Layout
from weft.nn.bank import Adapted
from weft.nn.base import Factors, LoRALayer, differs_from_base, register_layer_kind
from weft.nn.storage import storage_of


@register_layer_kind
class LoRALinear(LoRALayer):
    """y = x (W + s B A)^T + b, for W (out, in)."""

    kind = "linear"

    @classmethod
    def serves(cls, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and not isinstance(module, nn.LazyLinear)

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        assert isinstance(module, nn.Linear)
        storage = storage_of(module)
        if storage is not None:
            return storage.refusal()
        if type(module).forward is nn.Linear.forward or isinstance(module, LoRALayer):
            return None
        if not module.weight.is_floating_point():
            return (
                f"its class {type(module).__name__} stores the weight as {module.weight.dtype}, which weft cannot read"
            )
        example = torch.randn(1, module.in_features, dtype=module.weight.dtype, device=module.weight.device)
        if differs_from_base(module, lambda x: F.linear(x, module.weight, module.bias), example):
            return f"its class {type(module).__name__} computes something other than x W^T + b"
        return None

    @classmethod
    def shape(cls, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, nn.Linear)
        return module.out_features, module.in_features

    @classmethod
    def layout(cls, module: nn.Module) -> Layout:
        return Layout("linear")

    @classmethod
    def matrix(cls, module: nn.Module) -> Tensor:
        storage = storage_of(module)
        if storage is not None:
            return storage.dense()
        assert isinstance(module.weight, Tensor)
        return module.weight

    def product(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return ops.linear(x, A, B)

    def add_product(self, output: Tensor | None, x: Tensor, factors: Factors, scaling: float) -> Tensor:
        return _add_product(self, output, x, factors, scaling)


@register_layer_kind
class LoRATransposedLinear(LoRALayer):
    """y = x (W + s (B A)^T) + b, for W (in, out): the Conv1D of transformers' GPT-2 and its kin."""

    kind = "transposed_linear"

    @classmethod
    def serves(cls, module: nn.Module) -> bool:
        # By name, so that transformers need not be there.
        return any(
            t.__module__ == "transformers.pytorch_utils" and t.__name__ == "Conv1D" for t in type(module).__mro__
        )

    @classmethod
    def shape(cls, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module.weight, Tensor)
        width, out = module.weight.shape
        return out, width

    @classmethod
    def layout(cls, module: nn.Module) -> Layout:
        return Layout("linear")

    @classmethod
    def matrix(cls, module: nn.Module) -> Tensor:
        assert isinstance(module.weight, Tensor)
        return module.weight.T

    @classmethod
    def as_weight(cls, module: nn.Module, matrix: Tensor) -> Tensor:
        return matrix.T

    def product(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return ops.linear(x, A, B)

    def add_product(self, output: Tensor | None, x: Tensor, factors: Factors, scaling: float) -> Tensor:
        return _add_product(self, output, x, factors, scaling)


def _add_product(layer: LoRALayer, output: Tensor | None, x: Tensor, factors: Factors, scaling: float) -> Tensor:
    """`LoRALayer.add_product`, in one operation with the base's product where that is nothing but x W^T + b.

    A weight or a bias that gets a gradient, a tensor of a type of its own, and the forward of a subclass, which
    computes the same (`refusal`) but perhaps with a weight of another form, are left to the base.
    """
    dropout = factors.dropout if layer.training else 0.0
    A, B = factors.pair()
    if output is None:
        weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
        transposed = isinstance(layer, LoRATransposedLinear)
        if (
            type(weight) is nn.Parameter
            and not weight.requires_grad
            and (bias is None or not bias.requires_grad)
            and (transposed or super(Adapted, type(layer)).forward is nn.Linear.forward)
        ):
            return ops.adapted_linear(x, weight.T if transposed else weight, bias, A, B, scaling, dropout)
        output = layer.base_output(x)
    return ops.add_linear(output, x, A, B, scaling, dropout)
