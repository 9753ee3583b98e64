"""The leading singular vectors of a large matrix, and how a vector lies among all of them, from products alone.

Both grow Krylov spaces of G = M M^T (m, m), which is never formed: a step costs two products of M with a few vectors.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.errors import ConfigError
from weft.linalg._matrix import check_rank, checked
from weft.linalg.factorize import SVD

Vector = NDArray[np.float64]


def leading_svd(
    M: Tensor, rank: int, tolerance: float = 1e-3, max_blocks: int = 40, generator: torch.Generator | None = None
) -> SVD:
    """The leading `rank` singular triplets of one matrix `M` (m, n), to a tolerance that is measured.

    Block Krylov iteration with full orthogonalisation (Musco and Musco, 2015): blocks are added until the residual of
    each triplet, ||M M^T u - sigma^2 u||, is at most `tolerance` * sigma^2, or max_blocks are there, or the space is
    all of it. An error of a singular vector is the residual over the gap to the next sigma^2. Computes in float32
    (float64 for float64). `generator` seeds the first block and must live on M's device; without it, a fixed seed.

    Raises ConfigError unless 1 <= rank <= min(m, n) and M is finite.
    """
    M = checked(M, "M", batch=False)
    check_rank(rank, min(M.shape), M.shape)
    generator = generator or torch.Generator(M.device).manual_seed(0)
    smaller = min(M.shape)
    Q = M.new_empty(M.shape[0], 0)
    Z = M.new_empty(M.shape[1], 0)  # M^T Q
    block = M @ torch.randn(M.shape[1], min(rank + 6, smaller), generator=generator, dtype=M.dtype, device=M.device)
    for number in range(1, max_blocks + 1):
        block = _orthonormal_beside(block, Q)
        Q = torch.cat([Q, block], dim=1)
        Z = torch.cat([Z, (block.T @ M).T], dim=1)  # several times faster than M^T times a few columns
        complete = Q.shape[1] == smaller
        if number % 3 == 0 or complete or number == max_blocks:
            V, S, Wh = torch.linalg.svd(Z, full_matrices=False)
            U, S, V = Q @ Wh[:rank].T, S[:rank], V[:, :rank]
            residual = torch.linalg.vector_norm(M @ (V * S) - U * S.square(), dim=0)
            floor = torch.finfo(M.dtype).eps * S[0].square()
            if complete or bool((residual <= tolerance * S.square() + floor).all()):
                break
        block = M @ Z[:, Z.shape[1] - min(block.shape[1], smaller - Q.shape[1]) :]
    return SVD(U, S, V.T)


def _orthonormal_beside(X: Tensor, Q: Tensor) -> Tensor:
    """Orthonormal columns (m, b) that span what X (m, b) adds to the orthonormal Q (m, l)."""
    for _ in range(2):  # twice is enough
        X, _ = torch.linalg.qr(X - Q @ (Q.T @ X))
    return X


@dataclass(frozen=True)
class CosineBounds:
    """Bounds of the largest absolute cosine between a vector and any left singular vector of a matrix."""

    low: float
    high: float


def largest_cosines(M: Tensor, X: Tensor, threshold: float, max_steps: int = 200) -> list[CosineBounds]:
    """For each column x of `X` (m, k): bounds of max_i |u_i . x| / ||x||, over the left singular vectors of `M` (m, n).

    All min(m, n) of them count, and none is computed. The cosines squared are the weights of the spectral measure of
    x with respect to G = M M^T: sum over i of (u_i . x)^2 at sigma_i^2. After j steps of Lanczos from x, no measure
    with the same moments has more weight at a point than the Christoffel function 1 / sum of p_l^2 there, with p_l the
    orthonormal polynomials (Golub and Meurant, 2010): its maximum is the upper bound. A Ritz vector that has converged
    is a u_i, and gives the lower bound. Steps are taken until each column is known to be on one side of `threshold`,
    or max_steps are done.

    Singular vectors whose sigma^2 agree to 1e-4 are not told apart. Of a tall M (m > n), those with sigma below 1% of
    the largest are not told from the space that M does not reach, which has no u_i, and left out.
    Raises ConfigError unless M and X are finite matrices of as many rows.
    """
    M, X = checked(M, "M", batch=False), checked(X, "X", batch=False)
    if M.shape[0] != X.shape[0]:
        raise ConfigError(f"M has shape {tuple(M.shape)} and X has shape {tuple(X.shape)}; expected as many rows")
    tall = M.shape[0] > M.shape[1]
    mean = float(torch.linalg.vector_norm(M)) ** 2 / min(M.shape)  # of sigma^2: the largest is no smaller
    bounds = [CosineBounds(0.0, 1.0)] * X.shape[1]
    open_columns = list(range(X.shape[1]))
    # Vectors are rows here: a few rows times M is several times faster than M^T times a few columns.
    q = X.to(M.dtype).T / torch.linalg.vector_norm(X, dim=0).unsqueeze(1)
    basis = q.unsqueeze(1)  # (k, steps, m): each column has its own Krylov space
    alpha, beta = q.new_empty(len(q), 0), q.new_empty(len(q), 0)  # (k, steps)
    last = min(max_steps, M.shape[0])
    for step in range(1, last + 1):
        w = ((q @ M) @ M.T).unsqueeze(1)
        alpha = torch.cat([alpha, (w * q.unsqueeze(1)).sum(-1)], dim=1)
        for _ in range(2):
            w = w - (w @ basis.mT) @ basis
        beta = torch.cat([beta, torch.linalg.vector_norm(w, dim=-1)], dim=1)
        if step in (1, 2) or step % 4 == 0 or step == last:
            a, b = alpha.double().cpu().numpy(), beta.double().cpu().numpy()
            for i, column in enumerate(open_columns):
                bounds[column] = _bounds(a[i], b[i], mean, tall)
            undecided = [i for i, c in enumerate(open_columns) if bounds[c].low < threshold <= bounds[c].high]
            open_columns = [open_columns[i] for i in undecided]
            if not open_columns:
                break
            basis, w, alpha, beta = basis[undecided], w[undecided], alpha[undecided], beta[undecided]
        w = w / torch.where(beta[:, -1] > 0, beta[:, -1], 1.0).view(-1, 1, 1)
        basis = torch.cat([basis, w], dim=1)
        q = w.squeeze(1)
    return bounds


_EXHAUSTED = 1e-6
"""A step of Lanczos this small, over the largest Ritz value, is rounding: the Krylov space is complete."""
_CONVERGED = 1e-4
"""A Ritz vector with this residual, over its Ritz value, is a singular vector."""
_NULL = 1e-4
"""Of a tall matrix, sigma^2 this small, over the largest, is taken for the space that the matrix does not reach."""
_POINTS, _ZOOMS = 8, 3
"""The Christoffel function is looked at in so many points between two Ritz values, and so often closer at each peak."""


def _bounds(alpha: Vector, beta: Vector, mean: float, tall: bool) -> CosineBounds:
    """The bounds for one column, from its Lanczos coefficients alpha (j) and beta (j) and the mean sigma^2."""
    complete = np.nonzero(beta <= _EXHAUSTED * max(mean, np.abs(alpha).max(initial=0.0)))[0]
    steps = int(complete[0]) + 1 if len(complete) else len(alpha)
    T = np.diag(alpha[:steps]) + np.diag(beta[: steps - 1], 1) + np.diag(beta[: steps - 1], -1)
    theta, vectors = np.linalg.eigh(T)
    largest = max(theta[-1], mean)
    reached = theta > _NULL * largest if tall else np.ones(steps, dtype=bool)
    cosines = np.abs(vectors[0])
    if len(complete):
        exact = float(cosines[reached].max(initial=0.0))
        return CosineBounds(min(1.0, exact), min(1.0, exact))
    residuals = beta[steps - 1] * np.abs(vectors[-1])
    converged = reached & (residuals <= np.maximum(_CONVERGED * theta, _EXHAUSTED * largest))
    low = float(cosines[converged].max(initial=0.0))
    ends = np.sort([_NULL * largest if tall else 0.0, *theta[reached], largest * (1 + 1 / steps)])
    between = math.sqrt(_highest(ends, alpha[:steps], beta[: steps - 1]))
    # At a Ritz value the function is the square of this very cosine; there the recurrence would lose it to rounding.
    high = max(between, float(cosines[reached].max(initial=0.0)))
    return CosineBounds(min(1.0, low), min(1.0, high))


def _highest(ends: Vector, alpha: Vector, beta: Vector) -> float:
    """The maximum of the Christoffel function from the first to the last of these points, which ascend."""
    low, high = ends[:-1], ends[1:]
    highest = 0.0
    for _ in range(1 + _ZOOMS):
        points = np.linspace(low, high, _POINTS + 1, axis=1)  # (intervals, points)
        values = _christoffel(points, alpha, beta)
        highest = max(highest, float(values.max()))
        peak, rows = values.argmax(axis=1), np.arange(len(points))
        low, high = points[rows, np.maximum(peak - 1, 0)], points[rows, np.minimum(peak + 1, _POINTS)]
    return highest


def _christoffel(x: Vector, alpha: Vector, beta: Vector) -> Vector:
    """1 / sum of p_l(x)^2, l < len(alpha), by the recurrence of the orthonormal polynomials; 0 where that overflows."""
    before, now = np.zeros_like(x), np.ones_like(x)
    total = np.ones_like(x)
    with np.errstate(over="ignore", invalid="ignore"):
        for i, step in enumerate(beta):
            before, now = now, ((x - alpha[i]) * now - (beta[i - 1] * before if i else 0.0)) / step
            total += now**2
    value: Vector = 1 / np.nan_to_num(total, nan=np.inf, posinf=np.inf)
    return value
