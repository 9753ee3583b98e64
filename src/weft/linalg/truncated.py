"""The nearest matrix of a given rank, by SVD. See `weft.linalg.row_blocks` for nearly that, and fast.

Both results hold an `SVD` of `rank` triplets; `LowRank.from_svd(result.svd)` makes factors of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from weft.linalg._matrix import check_rank, checked
from weft.linalg.factorize import SVD, svd


@dataclass(frozen=True, eq=False, slots=True)
class BestRank:
    """The best approximation of a rank, and its distances from the matrix, each of shape (...).

    `spectral_error` is ||M - M_k||_2 = sigma_{k+1}; `frobenius_error` is ||M - M_k||_F, the root of the sum of
    the squares from sigma_{k+1} on; `relative_error` is the latter over ||M||_F (0 for a zero matrix).
    """

    svd: SVD
    spectral_error: Tensor
    frobenius_error: Tensor
    relative_error: Tensor


def best_rank(M: Tensor, rank: int) -> BestRank:
    """The matrix of rank at most `rank` nearest to `M` (..., m, n), in the spectral and the Frobenius norm.

    Truncates the SVD, which no matrix of that rank beats in any unitarily invariant norm (Eckart and Young,
    1936; Mirsky, 1960). Costs a full SVD, O(m n min(m, n)). Computes in float32 (float64 for float64).
    Raises ConfigError unless 1 <= rank <= min(m, n) and M is finite.
    """
    M = checked(M, "M")
    check_rank(rank, min(M.shape[-2:]), M.shape)
    full = svd(M)
    dropped = full.S[..., rank:]
    frobenius = torch.linalg.vector_norm(dropped, dim=-1)
    return BestRank(
        svd=full.leading(rank),
        # Padded with the zero that follows the last singular value, for rank = min(m, n).
        spectral_error=torch.nn.functional.pad(dropped, (0, 1))[..., 0],
        frobenius_error=frobenius,
        relative_error=_relative(frobenius, torch.linalg.vector_norm(full.S, dim=-1)),
    )


def _relative(error: Tensor, norm: Tensor) -> Tensor:
    """error / norm, and 0 where both are zero."""
    relative: Tensor = error / torch.where(norm > 0, norm, 1.0)
    return relative
