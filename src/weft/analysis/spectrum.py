"""The singular values of a change D = s B A, and what they say of its rank."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from weft.linalg import LowRank, effective_rank, stable_rank
from weft.linalg.factorize import count_nonzero


@dataclass(frozen=True)
class Spectrum:
    """What the singular values of a matrix D of low rank say.

    Energy means squared singular values; all of them together are ||D||_F^2.

    Attributes:
        singular_values: the min(r, out, in) leading ones, descending; all others are zero.
        norm: ||D||_F.
        spectral_norm: ||D||_2, the largest factor by which D stretches an input.
        stable_rank: ||D||_F^2 / ||D||_2^2 (Rudelson and Vershynin, 2007).
        effective_rank: exp of the entropy of the singular values (Roy and Vetterli, 2007).
        numerical_rank: how many singular values are more than rounding: above max(out, in) * eps of the largest.
        rank_90, rank_99: how many leading directions hold 90% and 99% of the energy.
        saturation: see `saturation`.
    """

    singular_values: tuple[float, ...]
    norm: float
    spectral_norm: float
    stable_rank: float
    effective_rank: float
    numerical_rank: int
    rank_90: int
    rank_99: int
    saturation: float

    @classmethod
    def of(cls, D: LowRank) -> "Spectrum":
        """The spectrum of D, from its factors: O((out + in) r^2). Raises ConfigError for NaN and infinity."""
        S = D.singular_values()
        core = torch.diag(S)  # a small matrix with the same singular values
        values = tuple(S.tolist())
        return cls(
            values,
            float(S.norm()),
            values[0],
            float(stable_rank(core)),
            float(effective_rank(core)),
            int(count_nonzero(S, D.shape, None)),
            rank_for(values, 0.90),
            rank_for(values, 0.99),
            saturation(values),
        )

    def cumulative_energy(self) -> tuple[float, ...]:
        """Entry k - 1 is the share of the energy in the first k directions; zeros for D = 0."""
        return cumulative_energy(self.singular_values)


def cumulative_energy(singular_values: Sequence[float]) -> tuple[float, ...]:
    """Entry k - 1 is the share of the energy (sum of squares) in the first k of the values; zeros if all are."""
    largest = max(singular_values)
    if largest == 0:
        return (0.0,) * len(singular_values)
    sums = list(accumulate((value / largest) ** 2 for value in singular_values))
    return tuple(each / sums[-1] for each in sums)


def rank_for(singular_values: Sequence[float], energy: float) -> int:
    """The fewest leading directions that hold this share of the energy; 0 for a zero matrix."""
    shares = cumulative_energy(singular_values)
    return 0 if shares[-1] == 0 else next(k for k, share in enumerate(shares, 1) if share >= energy * (1 - 1e-12))


def saturation(singular_values: Sequence[float]) -> float:
    """How full the rank is, from 0 to 1: the mean energy of the last quarter of the directions over that of all.

    Near 0, the last directions hold almost nothing and a lower rank would do. Near 1, they are as strong as the
    rest: the training made use of every direction that it was given. One direction alone is always full; a zero
    matrix is empty.
    """
    last = math.ceil(len(singular_values) / 4)
    squares = [value**2 for value in singular_values]
    total = math.fsum(squares)
    if total == 0:
        return 0.0
    return min(1.0, math.fsum(squares[-last:]) / last * len(squares) / total)
