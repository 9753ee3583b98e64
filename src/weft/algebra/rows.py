"""The weighted changes that a method merges, read a few rows at a time: the matrices themselves are never formed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from weft.linalg import LowRank

# How many entries are formed at a time: 1 MiB in float32. What is done to them then finds them in the cache, and their
# memory is used again, where the C library gives larger blocks back and takes them anew.
_ENTRIES = 2**18


@dataclass(frozen=True, eq=False, slots=True)
class Term:
    """The weighted change w s B A of one module by one adapter.

    Attributes:
        place: the adapter's place among all that are merged, from 0.
        weight: w.
        B: (out, r), holding w and the scaling; float32, or float64 if an adapter is.
        A: (r, in), in the same dtype.
    """

    place: int
    weight: float
    B: Tensor
    A: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """r."""
        return self.A.shape[0]

    def read(self, rows: slice) -> Tensor:
        """These rows of the matrix (b, in): a new tensor, the same for the same rows each time."""
        return self.B[rows] @ self.A


def present_terms(terms: Sequence[LowRank | None], weights: Sequence[float]) -> list[Term]:
    """The terms that are there, weighted. A missing one is a zero matrix, and needs no arithmetic."""
    dtype = reduce(torch.promote_types, (term.dtype for term in terms if term is not None), torch.float32)
    return [
        Term(place, weight, term.B.to(dtype) * (weight * term.scaling), term.A.to(dtype))
        for place, (term, weight) in enumerate(zip(terms, weights, strict=True))
        if term is not None
    ]


def row_slices(shape: tuple[int, int]) -> Iterator[slice]:
    """Consecutive slices that cover the rows of a matrix of this shape, always the same ones."""
    m, n = shape
    step = max(1, _ENTRIES // n)
    for start in range(0, m, step):
        yield slice(start, min(start + step, m))
