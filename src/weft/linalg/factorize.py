"""LU, QR, SVD and rank factorization: one frozen result each, which multiplies back to the matrix.

Thin over `torch.linalg`. Inputs are real and finite, (m, n) or a batch (..., m, n); k = min(m, n). Results
are float64 for float64 and float32 for everything narrower. A result is compared and hashed by identity,
as tensors are. Each raises ConfigError for anything that is not such a matrix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from weft.linalg._matrix import checked


@dataclass(frozen=True, eq=False, slots=True)
class LU:
    """M = P L U: `P` (..., m, m) a permutation, `L` (..., m, k) unit lower triangular, `U` (..., k, n) upper."""

    P: Tensor
    L: Tensor
    U: Tensor

    def reconstruct(self) -> Tensor:
        """P L U, of shape (..., m, n)."""
        return self.P @ self.L @ self.U


@dataclass(frozen=True, eq=False, slots=True)
class QR:
    """M = Q R: `Q` (..., m, k) with orthonormal columns, `R` (..., k, n) upper triangular."""

    Q: Tensor
    R: Tensor

    def reconstruct(self) -> Tensor:
        """Q R, of shape (..., m, n)."""
        return self.Q @ self.R


@dataclass(frozen=True, eq=False, slots=True)
class SVD:
    """M = U diag(S) Vh: `U` (..., m, k), `S` (..., k) descending and >= 0, `Vh` (..., k, n).

    The columns of U and the rows of Vh are orthonormal. Each pair (column of U, row of Vh) is determined up to
    a common sign, and only where its singular value stands alone.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor

    def reconstruct(self) -> Tensor:
        """U diag(S) Vh, of shape (..., m, n)."""
        return (self.U * self.S.unsqueeze(-2)) @ self.Vh

    def leading(self, rank: int) -> "SVD":
        """The first `rank` triplets."""
        return SVD(self.U[..., :rank], self.S[..., :rank], self.Vh[..., :rank, :])


@dataclass(frozen=True, eq=False, slots=True)
class RankFactorization:
    """M = C F with `C` (m, r) of full column rank and `F` (r, n) of full row rank, r the rank of M.

    A LoRA update is such a product: C in the place of B, F in the place of A.
    """

    C: Tensor
    F: Tensor

    @property
    def rank(self) -> int:
        """r, the number of columns of C."""
        return self.C.shape[1]

    def reconstruct(self) -> Tensor:
        """C F, of shape (m, n)."""
        return self.C @ self.F


def lu(M: Tensor) -> LU:
    """LU with partial pivoting, of any shape (..., m, n) and any rank."""
    P, L, U = torch.linalg.lu(checked(M, "M"))
    return LU(P, L, U)


def qr(M: Tensor) -> QR:
    """The reduced QR by Householder reflections. The signs of R's diagonal are LAPACK's, not always positive."""
    Q, R = torch.linalg.qr(checked(M, "M"))
    return QR(Q, R)


def svd(M: Tensor) -> SVD:
    """The thin SVD, O(m n min(m, n)). For a few leading triplets of a large matrix see `randomized_svd`."""
    U, S, Vh = torch.linalg.svd(checked(M, "M"), full_matrices=False)
    return SVD(U, S, Vh)


def rank_factorization(M: Tensor, rtol: float | None = None) -> RankFactorization:
    """The full-rank factorization C = U_r diag(S_r)^1/2, F = diag(S_r)^1/2 Vh_r of one matrix (m, n).

    r counts the singular values above rtol * max(S), as `numerical_rank` does with the same default; what is
    below is dropped, so the product is M up to that tolerance. Taken from the SVD because the textbook's
    pivot columns are ill-conditioned in floating point; see `exact_rank_factorization` for those. C and F
    share the singular values evenly: C^T C = F F^T. A zero matrix gives r = 0.
    """
    M = checked(M, "M", batch=False)
    found = svd(M)
    r = int(count_nonzero(found.S, (M.shape[0], M.shape[1]), rtol))
    root = found.S[:r].sqrt()
    return RankFactorization(found.U[:, :r] * root, root.unsqueeze(1) * found.Vh[:r])


def count_nonzero(S: Tensor, shape: tuple[int, int], rtol: float | None) -> Tensor:
    """How many (...) of the singular values `S` (..., k) of an (m, n) matrix are above rtol * max(S).

    rtol is max(m, n) * eps of S's dtype unless given: LAPACK's and NumPy's convention, the size of the error
    that rounding alone makes in a singular value.
    """
    if rtol is None:
        rtol = max(shape) * torch.finfo(S.dtype).eps
    return S.gt(rtol * S.amax(dim=-1, keepdim=True)).sum(dim=-1)
