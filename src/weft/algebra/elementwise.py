"""Matrices whose entries are made of the same entries of several terms, and the low rank that is nearest to them.

Such a matrix is not low rank, though its terms are, and has too many entries to be formed. It is formed a few rows at
a time instead, as often as its leading singular vectors need (`weft.linalg.randomized_svd_of_blocks`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from torch import Tensor

from weft.algebra.rows import Term, row_slices
from weft.linalg import Limit, LowRank, RowBlocks, Truncation, randomized_svd_of_blocks


class Part(Protocol):
    """A matrix made of one term, that can be read by rows."""

    term: Term

    def read(self, rows: slice) -> Tensor:
        """These rows (b, in): a new tensor, the same for the same rows each time."""


class Elementwise(RowBlocks):
    """The matrix (out, in) whose blocks of rows are `combine` of the parts' blocks.

    Attributes:
        ranks: the sum of the terms' ranks.

    Args:
        parts: at least one.
        combine: from one block (b, in) of each part to one block (b, in); may change what it is given.
    """

    def __init__(self, parts: Sequence[Part], combine: Callable[[Sequence[Tensor]], Tensor]) -> None:
        self.shape = parts[0].term.shape
        self.ranks = sum(part.term.rank for part in parts)
        self._parts = parts
        self._combine = combine

    def blocks(self) -> Iterator[Tensor]:
        for rows in row_slices(self.shape):
            yield self._combine([part.read(rows) for part in self._parts])


def total(values: Sequence[Tensor]) -> Tensor:
    """The sum, in the memory of the first."""
    first, *others = values
    for value in others:
        first += value
    return first


def nearest_low_rank(M: Elementwise, limit: Limit | None) -> Truncation:
    """The matrix within the limit that is nearest to M, nearly, and its measured relative distance from M.

    Without a limit its rank is the sum of the terms' ranks.
    """
    limit = limit or Limit(rank=M.ranks)
    rank = None if limit.rank is None else min(limit.rank, *M.shape)
    found = randomized_svd_of_blocks(M, rank=rank, energy=limit.energy, error=limit.error)
    return Truncation(LowRank.from_svd(found.svd), float(found.relative_error))
