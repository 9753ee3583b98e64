"""Random matrices for the property tests: shapes and seeds that hypothesis shrinks, values from torch."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from weft.linalg import LowRank

SIDES = st.integers(1, 12)
SEEDS = st.integers(0, 2**16)


def gaussian(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def low_rank(m: int, n: int, r: int, seed: int, scaling: float = 1.0, dtype: torch.dtype = torch.float64) -> LowRank:
    return LowRank(gaussian(m, r, seed=seed, dtype=dtype), gaussian(r, n, seed=seed + 1, dtype=dtype), scaling)


@st.composite
def low_ranks(draw: st.DrawFn, count: int = 1) -> list[LowRank]:
    """`count` values of one shape, each with its own rank (which may exceed both sides) and scaling."""
    m, n = draw(SIDES), draw(SIDES)
    scalings = st.sampled_from([1.0, 2.0, -2.0, 0.3, -1.7, 0.0])
    return [low_rank(m, n, draw(st.integers(1, 15)), draw(SEEDS), draw(scalings)) for _ in range(count)]
