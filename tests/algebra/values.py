"""Adapters made for the tests of their algebra, and the dense matrices that they stand for."""

from collections.abc import Mapping, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from weft import Adapter, Layout, LoRAConfig, LowRank

SHAPES = {"layers.0.q": (7, 5), "layers.0.k": (3, 5), "layers.1.q": (7, 5), "layers.1.mlp": (1, 9)}


def adapter(
    seed: int,
    ranks: Mapping[str, int],
    scaling: float = 1.0,
    dtype: torch.dtype = torch.float64,
    tensors: Mapping[str, Tensor] | None = None,
) -> Adapter:
    """Random factors for the named modules, of the given ranks."""
    source = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64).to(dtype)

    factors = {
        path: LowRank(draw(SHAPES[path][0], rank), draw(rank, SHAPES[path][1]), scaling) for path, rank in ranks.items()
    }
    layouts = {path: Layout() for path in factors}
    return Adapter(LoRAConfig(rank=max(ranks.values())), factors, layouts, dict(tensors or {}))


@st.composite
def adapters(draw: st.DrawFn, count: int, dtype: torch.dtype = torch.float64) -> list[Adapter]:
    """Adapters of mixed ranks, scalings and targets that have the first module in common."""
    made = []
    for _ in range(count):
        others = draw(st.sets(st.sampled_from(list(SHAPES)[1:])))
        ranks = {path: draw(st.integers(1, 6)) for path in SHAPES if path in others or path == "layers.0.q"}
        made.append(adapter(draw(st.integers(0, 99)), ranks, draw(st.sampled_from([1.0, 0.3, -2.0])), dtype))
    return made


def dense_sum(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Tensor]:
    """The specification: the weighted sum of the dense changes, a missing one being zero."""
    sums: dict[str, Tensor] = {}
    for each, weight in zip(adapters, weights, strict=True):
        for path, factors in each.factors.items():
            change = weight * factors.dense(torch.float64)
            sums[path] = sums[path] + change if path in sums else change
    return sums
