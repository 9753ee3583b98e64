"""How many dimensions a matrix really uses: numerical, stable and effective rank.

Each takes a tensor (..., m, n) and answers with one of shape (...), or takes a `LowRank` and answers with a
scalar. For a tensor it computes all singular values, O(m n min(m, n)); for a `LowRank` only those of its core.
Each raises ConfigError for an input that is not a finite floating-point matrix.
"""

import torch
from torch import Tensor

from weft.linalg._matrix import checked
from weft.linalg.factored import LowRank
from weft.linalg.factorize import count_nonzero


def numerical_rank(M: Tensor | LowRank, rtol: float | None = None) -> Tensor:
    """The number (int64) of singular values above rtol * the largest; 0 for a zero matrix.

    `rtol` is max(m, n) * eps unless given, LAPACK's and NumPy's convention. eps is that of the dtype computed
    in, float32 for narrower inputs: a bfloat16 matrix is taken at its word, and a low-rank product that was
    rounded to bfloat16 has full rank unless a looser `rtol` says to look past the rounding.
    """
    return count_nonzero(_singular_values(M), (M.shape[-2], M.shape[-1]), rtol)


def stable_rank(M: Tensor | LowRank) -> Tensor:
    """||M||_F^2 / ||M||_2^2, between 1 and the rank; 0 for a zero matrix.

    Unlike the rank it hardly moves when M does (Rudelson and Vershynin, 2007).
    """
    S = _singular_values(M)
    return _over(S, S.amax(dim=-1, keepdim=True)).square().sum(dim=-1)


def effective_rank(M: Tensor | LowRank) -> Tensor:
    """exp of the entropy of the singular values normalised to sum 1 (Roy and Vetterli, 2007).

    Between 1 and the rank, which it reaches when all singular values are equal; 0 for a zero matrix.
    """
    S = _singular_values(M)
    entropy = torch.special.entr(_over(S, S.sum(dim=-1, keepdim=True))).sum(dim=-1)
    return torch.where(S.amax(dim=-1) > 0, entropy.exp(), 0.0)


def _singular_values(M: Tensor | LowRank) -> Tensor:
    if isinstance(M, LowRank):
        return M.singular_values()
    S: Tensor = torch.linalg.svdvals(checked(M, "M"))
    return S


def _over(S: Tensor, divisor: Tensor) -> Tensor:
    """S / divisor, and 0 where both are zero."""
    ratio: Tensor = S / torch.where(divisor > 0, divisor, 1.0)
    return ratio
