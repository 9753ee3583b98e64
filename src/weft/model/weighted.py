"""Several adapters attached as one, whose weights can be set again and again.

Ten active adapters are ten pairs of products in each layer. Here their factors lie side by side in one pair; other
weights are other factors for the columns of its B, which is as exact, and one pass over B.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from weft.adapter import Adapter
from weft.algebra import combine
from weft.errors import StateError
from weft.model.attach import attach, detach
from weft.model.modules import adapted_modules
from weft.model.state import adapter_names
from weft.nn import Factors

_NAME = "weighted"


class Weighted:
    """The weighted sum of adapters on a model, attached by `weighted`."""

    def __init__(self, model: nn.Module, adapters: Sequence[Adapter]) -> None:
        self._count = len(adapters)
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []  # B, B at weights of 1, and the adapter of each column
        for path, module in adapted_modules(model):
            part = module.adapters[_NAME]
            assert isinstance(part, Factors)
            B = part.lora_B
            ranks = [(i, adapter.factors[path].rank) for i, adapter in enumerate(adapters) if path in adapter.factors]
            owners = torch.tensor([i for i, rank in ranks for _ in range(rank)], device=B.device)
            self._parts.append((B, B.detach().clone(), owners))

    @torch.no_grad()
    def set(self, weights: Sequence[float]) -> None:
        """Gives the adapters these weights, one for each, in their order."""
        if len(weights) != self._count:
            raise StateError(f"weights: found {len(weights)} for {self._count} adapters; give one for each")
        for B, unit, owners in self._parts:
            scales = torch.tensor(weights, dtype=unit.dtype, device=unit.device)[owners]  # (sum of ranks)
            torch.mul(unit, scales, out=B)


@contextmanager
def weighted(model: nn.Module, adapters: Sequence[Adapter], *, any_base: bool = False) -> Iterator[Weighted]:
    """Attaches the sum of adapters for the length of a block; their weights are 1 until they are set.

    Raises:
        StateError: something is attached to the model already.
        ConfigError, BaseMismatchError, BindingError, TargetError: as of `combine` and `attach`.
    """
    there = adapter_names(model)
    if there:
        raise StateError(f"{', '.join(map(repr, there))} is attached to this model already; detach it first")
    ones = [1.0] * len(adapters)
    attach(model, combine(adapters, "concat", ones, any_base=any_base), _NAME, any_base=any_base)
    try:
        yield Weighted(model, adapters)
    finally:
        detach(model)
