"""The nearest matrix of a given rank: exactly, by SVD, or nearly and fast, by random projection.

Both results hold an `SVD` of `rank` triplets; `LowRank.from_svd(result.svd)` makes factors of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from weft.errors import ConfigError
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


@dataclass(frozen=True, eq=False, slots=True)
class RandomizedSVD:
    """An approximation of a rank, and its measured distance from the matrix.

    `frobenius_error` is ||M - M_k||_F and `relative_error` that over ||M||_F: scalars, measured on this very
    result and no bound or expectation. Below about sqrt(eps) * ||M||_F (3e-4 relative in float32, 1.5e-8 in
    float64) the measurement cannot tell the error from zero.
    """

    svd: SVD
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


def randomized_svd(
    M: Tensor,
    rank: int,
    oversampling: int = 16,
    num_power_iters: int = 2,
    generator: torch.Generator | None = None,
) -> RandomizedSVD:
    """The leading `rank` singular triplets of one matrix `M` (m, n), nearly (Halko, Martinsson and Tropp, 2011).

    Projects M on the range of M (M^T M)^q Omega, with Omega (n, l) Gaussian, l = rank + oversampling (at most
    min(m, n)) and q = num_power_iters, orthonormalising at every half step so that small singular values
    survive the powers (their algorithm 4.4). Costs 2 q + 2 products of M with l vectors. More `num_power_iters`
    help where the singular values fall slowly. Computes in float32 (float64 for float64).

    `generator` seeds Omega and may live on another device than M: a CPU generator gives one Omega everywhere.
    Without it torch's global generator is used. Raises ConfigError unless 1 <= rank <= min(m, n), oversampling
    and num_power_iters are not negative and M is finite.

    The error needs no residual matrix: what the projection on Q misses is orthogonal to what truncating
    Q^T M drops, so ||M - M_k||^2 = (||M||^2 - ||Q^T M||^2) + sum of the dropped squares.
    """
    M = checked(M, "M", batch=False)
    check_rank(rank, min(M.shape), M.shape)
    for name, value in (("oversampling", oversampling), ("num_power_iters", num_power_iters)):
        if value < 0:
            raise ConfigError(f"{name} is {value}, expected 0 or more")

    width = min(rank + oversampling, *M.shape)
    source = M.device if generator is None else generator.device
    Omega = torch.randn(M.shape[1], width, generator=generator, device=source, dtype=M.dtype).to(M.device)
    Q, _ = torch.linalg.qr(M @ Omega)
    for _ in range(num_power_iters):
        Z, _ = torch.linalg.qr(M.T @ Q)
        Q, _ = torch.linalg.qr(M @ Z)
    projected = Q.T @ M
    U, S, Vh = torch.linalg.svd(projected, full_matrices=False)

    total = _squared_norm(M)
    missed = (total - _squared_norm(projected)).clamp(min=0)
    error = (missed + S[rank:].double().square().sum()).sqrt()
    return RandomizedSVD(
        svd=SVD(Q @ U, S, Vh).leading(rank),
        frobenius_error=error.to(M.dtype),
        relative_error=_relative(error, total.sqrt()).to(M.dtype),
    )


def _squared_norm(M: Tensor) -> Tensor:
    """||M||_F^2 in float64: row norms in M's dtype, summed wide, because two such sums are subtracted."""
    rows: Tensor = torch.linalg.vector_norm(M, dim=1)
    return rows.double().square().sum()


def _relative(error: Tensor, norm: Tensor) -> Tensor:
    """error / norm, and 0 where both are zero."""
    relative: Tensor = error / torch.where(norm > 0, norm, 1.0)
    return relative
