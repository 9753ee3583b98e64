"""Trimming: keep the entries of a matrix that are largest in magnitude, and set the others to zero."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.algebra.rows import Term, row_slices

# The entries that guess where the threshold lies need this many numbers of each factor.
_SAMPLED_NUMBERS = 2**18


class Trimmed:
    """A term without all but the `density` of its entries that are largest in magnitude.

    round(density * out * in) entries are kept, at least one; of several that equal the smallest kept, all are.

    Args:
        term: the change of one module by one adapter.
        density: the share to keep, 0 < density <= 1.
    """

    def __init__(self, term: Term, density: float) -> None:
        self.term = term
        size = math.prod(term.shape)
        kept = max(1, round(density * size))
        threshold = kth_magnitude(term, kept) if kept < size else 0.0
        # hardshrink keeps what is above its bound, and the threshold itself is to be kept.
        below = torch.nextafter(torch.tensor(threshold, dtype=term.B.dtype), torch.zeros((), dtype=term.B.dtype))
        self._bound = below.item()

    def read(self, rows: slice) -> Tensor:
        """These rows of the trimmed matrix (b, in)."""
        return torch.nn.functional.hardshrink(self.term.read(rows), self._bound)


def kth_magnitude(term: Term, k: int) -> float:
    """The k-th largest magnitude of a term's entries, exactly, 1 <= k <= out * in; reads the matrix once.

    Selection by sampling (Floyd and Rivest, 1975): the order statistics of some entries drawn at random bracket the
    threshold; one pass counts the entries above the bracket and collects those in it, about 2% of all. In the rare
    case that the threshold lies outside, a wider bracket and another pass find it.
    """
    return select(term, k, _sampled_magnitudes(term))


def select(term: Term, k: int, sample: Tensor) -> float:
    """The k-th largest magnitude, whatever the sample (s,), descending: one that misleads costs more passes."""
    deviations = 4.0
    while True:
        low, high = _bracket(sample, k / math.prod(term.shape), deviations)
        # Equal entries, of which a sparse matrix has many zeros, are counted and never collected.
        above = from_high = from_low = 0
        inside: list[NDArray[np.floating]] = []
        for rows in row_slices(term.shape):
            magnitudes = term.read(rows).abs_().cpu().numpy()
            above += int(np.count_nonzero(magnitudes > high))
            from_high += int(np.count_nonzero(magnitudes >= high))
            from_low += int(np.count_nonzero(magnitudes >= low))
            inside.append(magnitudes[(magnitudes > low) & (magnitudes < high)])
        between = np.concatenate(inside)
        if above < k <= from_high:
            return high
        if from_high < k <= from_high + between.size:
            ascending = between.size - (k - from_high)
            return float(np.partition(between, ascending)[ascending])
        if from_high + between.size < k <= from_low:
            return low
        deviations *= 2


def _sampled_magnitudes(term: Term) -> Tensor:
    """Magnitudes (s,) of entries drawn independently with a fixed seed, descending."""
    count = min(max(2**12, _SAMPLED_NUMBERS // term.rank), math.prod(term.shape) // 16)
    generator = torch.Generator().manual_seed(0)
    i, j = (torch.randint(side, (count,), generator=generator).to(term.B.device) for side in term.shape)
    entries = (term.B[i] * term.A.T[j]).sum(dim=1)
    return entries.abs_().sort(descending=True).values


def _bracket(sample: Tensor, share: float, deviations: float) -> tuple[float, float]:
    """Magnitudes around that which `share` of all entries reach, as wide as so many deviations of the sample's count.

    Beyond the sample's ends stand -1, below every magnitude, and infinity.
    """
    count = len(sample)
    spread = deviations * math.sqrt(count * share * (1 - share)) + 1
    first, last = math.floor(count * share - spread), math.ceil(count * share + spread)
    high = sample[first].item() if first >= 0 else math.inf
    low = sample[last].item() if last < count else -1.0
    return low, high
