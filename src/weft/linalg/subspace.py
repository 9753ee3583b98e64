"""How close two subspaces are: principal angles, and the similarity that the LoRA paper plots."""

import torch
from torch import Tensor

from weft.errors import ConfigError
from weft.linalg._matrix import checked
from weft.linalg.factorize import svd


def principal_angles(U: Tensor, V: Tensor) -> Tensor:
    """The principal angles in radians, ascending, (min(p, q)), between the column spans of U (n, p) and V (n, q).

    The columns need not be orthonormal, but independent. Angles come from their sines below 45 degrees and
    their cosines above, so that each is accurate to eps (Bjorck and Golub, 1973; Knyazev and Argentati, 2002);
    arccos alone would return sqrt(eps) for zero. Raises ConfigError when n differs or columns are dependent.
    """
    Q_U, Q_V = _orthonormal(U, "U"), _orthonormal(V, "V")
    if Q_U.shape[0] != Q_V.shape[0]:
        raise ConfigError(
            f"U has shape {tuple(U.shape)} and V has shape {tuple(V.shape)}; expected as many rows in both"
        )
    dtype = torch.promote_types(Q_U.dtype, Q_V.dtype)
    Q_U, Q_V = Q_U.to(dtype), Q_V.to(dtype)
    if Q_U.shape[1] < Q_V.shape[1]:
        Q_U, Q_V = Q_V, Q_U
    overlap = Q_U.T @ Q_V
    cosines = torch.linalg.svdvals(overlap).clamp(max=1)
    sines = torch.linalg.svdvals(Q_V - Q_U @ overlap).flip(0).clamp(max=1)
    return torch.where(cosines.square() < 0.5, cosines.acos(), sines.asin())


def subspace_similarity(A1: Tensor, A2: Tensor, i: int, j: int) -> Tensor:
    """phi(A1, A2, i, j) of section 7.2 of the LoRA paper (arXiv 2106.09685), a scalar from 0 to 1.

    How much of the span of the top i right singular vectors of A1 (r1, n) lies in that of the top j of A2
    (r2, n): ||V1_i^T V2_j||_F^2 / min(i, j). 1 when one contains the other, 0 when they are orthogonal. For the
    left singular vectors of `lora_B` pass the transposes. Raises ConfigError when n differs, or i or j is not
    from 1 to min(r, n) of its matrix.
    """
    grid = subspace_similarity_grid(A1, A2)
    for name, value, largest in (("i", i, grid.shape[0]), ("j", j, grid.shape[1])):
        if not 1 <= value <= largest:
            raise ConfigError(f"{name} is {value}, expected 1 to {largest}, the number of singular vectors")
    return grid[i - 1, j - 1]


def subspace_similarity_grid(A1: Tensor, A2: Tensor) -> Tensor:
    """Every `subspace_similarity` of two matrices in one pass: entry [i - 1, j - 1] is phi(A1, A2, i, j).

    (min(r1, n), min(r2, n)), from one SVD of each and a double cumulative sum. Singular vectors that belong to
    a zero singular value are arbitrary; rows and columns beyond the rank say nothing.
    """
    Vh1 = svd(checked(A1, "A1", batch=False)).Vh
    Vh2 = svd(checked(A2, "A2", batch=False)).Vh
    if Vh1.shape[1] != Vh2.shape[1]:
        raise ConfigError(
            f"A1 has shape {tuple(A1.shape)} and A2 has shape {tuple(A2.shape)}; expected as many columns in both"
        )
    dtype = torch.promote_types(Vh1.dtype, Vh2.dtype)
    return overlap_grid(Vh1.to(dtype) @ Vh2.to(dtype).T)


def overlap_grid(overlap: Tensor) -> Tensor:
    """`subspace_similarity_grid` of vectors that are at hand: (p, q) from their inner products V1^T V2 (p, q).

    The columns of V1 (n, p) and of V2 (n, q) are orthonormal, and in the order of their singular values.
    """
    sums = overlap.square().cumsum(0).cumsum(1)
    i = torch.arange(1, overlap.shape[0] + 1, device=overlap.device).unsqueeze(1)
    j = torch.arange(1, overlap.shape[1] + 1, device=overlap.device).unsqueeze(0)
    return sums / torch.minimum(i, j)


def _orthonormal(M: Tensor, name: str) -> Tensor:
    """An orthonormal basis (n, p) of the span of M's columns (n, p)."""
    M = checked(M, name, batch=False)
    n, p = M.shape
    Q: Tensor
    Q, R = torch.linalg.qr(M)
    diagonal = R.diagonal().abs()
    if p > n or bool(diagonal.amin() <= max(n, p) * torch.finfo(M.dtype).eps * diagonal.amax()):
        raise ConfigError(
            f"{name} of shape {(n, p)} has linearly dependent columns, which do not fix a basis; "
            f"pass the leading left singular vectors of {name} instead"
        )
    return Q
