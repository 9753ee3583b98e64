"""The leading singular triplets of a matrix that is read in blocks of rows, and never need be in memory.

Every pass reads each row once. With Z (n, l) the orthonormal basis so far, a pass either sharpens it,

    Z <- orth(sum over blocks M_b^T (M_b Z)),

or projects M on it and measures what the projection misses, Y_b = M_b Z and ||M_b - Y_b Z^T||. Both the
products M_b^T (M_b Z) and the residual are made of a few rows at a time, so that they come from the cache.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from weft.errors import ConfigError
from weft.linalg._matrix import check_finite, check_rank, checked
from weft.linalg.factorize import SVD
from weft.linalg.limit import ROUNDING, Limit, truncation_errors

# How many rows are worked on at a time: 4 MiB of a matrix 4096 wide, which stays in the cache between two products.
_ROWS = 256


@dataclass(frozen=True, eq=False, slots=True)
class RandomizedSVD:
    """The leading singular triplets of a matrix, nearly, and their measured distance from it.

    `frobenius_error` is ||M - M_k||_F and `relative_error` that over ||M||_F (0 for a zero matrix): scalars, measured
    on this very result, and no bound or expectation. They are made of the residual itself, so they are accurate down
    to rounding, about eps * ||M||_F.
    """

    svd: SVD
    frobenius_error: Tensor
    relative_error: Tensor


class RowBlocks(ABC):
    """A matrix (m, n) that can be read from its first row to its last, as often as needed.

    Attributes:
        shape: (m, n).
    """

    shape: tuple[int, int]

    @abstractmethod
    def blocks(self) -> Iterator[Tensor]:
        """Consecutive blocks of rows (b, n), float32 (or all float64), on one device; the same each time."""


@torch.no_grad()
def randomized_svd_of_blocks(
    M: RowBlocks,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    oversampling: int = 16,
    num_power_iters: int = 2,
    generator: torch.Generator | None = None,
) -> RandomizedSVD:
    """The leading singular triplets of `M` (m, n), nearly (Halko, Martinsson and Tropp, 2011), read by blocks of rows.

    Give exactly one of
      rank     this many triplets, 1 <= rank <= min(m, n);
      energy   the fewest whose squares sum to at least this share of ||M||_F^2, 0 < energy <= 1;
      error    the fewest with a relative Frobenius error of at most this, 0 <= error < 1.
    At least one is always kept. What energy and error ask for is measured, not estimated; an error of 16 eps or less
    is rounding and counts as none, so that error=0 finds the rank of a matrix that has a low one.

    M is projected on the range of (M^T M)^(q + 1) Omega, with Omega (n, l) Gaussian, l = rank + oversampling (at most
    min(m, n)) and q = `num_power_iters`, orthonormalised after each factor M^T M: their range finder for M^T, with
    half a power more for the same q and the same number of passes. That is q + 2 passes over M and 2 q + 4 products
    with l vectors (one pass where l is n). For energy and error l starts at 2 * oversampling (at least 32) and doubles
    until the triplets kept leave `oversampling` columns over, or l is min(m, n); new columns are sought in what the old
    ones miss, which are kept as they are (Yu, Gu and Li, 2018), and each of these rounds takes q + 2 passes. So it is
    fast where the rank is small beside min(m, n), and no faster than the full SVD where it is not.

    Memory: one block, a few rows more, and a few times (m + n) * l values. Computes in the dtype of the blocks, without
    gradients.

    Args:
        M: the matrix.
        oversampling: columns beyond the rank. More of them, or more power iterations, help where the singular values
            fall slowly.
        num_power_iters: q.
        generator: draws Omega; may live on another device than M. None is a CPU generator with a fixed seed, so that
            the same matrix always gives the same result.

    Raises:
        ConfigError: not exactly one limit, or one out of its range; oversampling or num_power_iters negative; NaN or
            infinity; blocks that do not make a matrix of M.shape.
    """
    full = min(M.shape)
    limit = Limit(rank, energy, error)
    if rank is not None:
        check_rank(rank, full, M.shape)
    for name, value in (("oversampling", oversampling), ("num_power_iters", num_power_iters)):
        if value < 0:
            raise ConfigError(f"{name} is {value}, expected 0 or more")
    if generator is None:
        generator = torch.Generator().manual_seed(0)

    width = max(2 * oversampling, 32) if rank is None else rank + oversampling
    Z: Tensor | None = None
    while True:
        width = min(width, full)
        if width == M.shape[1]:  # any basis of all columns will do
            Z = torch.eye(width, dtype=torch.float64)
        else:
            Z = _widened(M, Z, width, num_power_iters, generator)
        projection = _project(M, Z)
        rounding = ROUNDING * torch.finfo(projection.Y.dtype).eps
        if width == full or limit.allows(projection.relative_error, rounding):
            svd = projection.svd()
            errors = truncation_errors(svd.S.tolist(), projection.missed)
            kept = limit.kept_rank(errors, rounding)
            if rank is not None or width == full or kept + oversampling <= width or errors[width] <= rounding:
                break
        width *= 2
    like = svd.S
    return RandomizedSVD(
        svd=svd.leading(kept),
        frobenius_error=like.new_tensor(errors[kept] * projection.norm),
        relative_error=like.new_tensor(errors[kept]),
    )


def randomized_svd(
    M: Tensor,
    rank: int,
    oversampling: int = 16,
    num_power_iters: int = 2,
    generator: torch.Generator | None = None,
) -> RandomizedSVD:
    """The leading `rank` singular triplets of one matrix `M` (m, n) in memory: `randomized_svd_of_blocks` of one block.

    Computes in float32 (float64 for float64). Raises ConfigError unless 1 <= rank <= min(m, n), oversampling and
    num_power_iters are not negative and M is finite.
    """
    return randomized_svd_of_blocks(
        _InMemory(checked(M, "M", batch=False)),
        rank=rank,
        oversampling=oversampling,
        num_power_iters=num_power_iters,
        generator=generator,
    )


class _InMemory(RowBlocks):
    """A tensor (m, n), as one block."""

    def __init__(self, M: Tensor) -> None:
        self.shape = (M.shape[0], M.shape[1])
        self._M = M

    def blocks(self) -> Iterator[Tensor]:
        yield self._M


class _Projection(NamedTuple):
    """M Z Z^T, and what is missed."""

    Z: Tensor  # (n, l), orthonormal
    Y: Tensor  # M Z, (m, l)
    missed: float  # ||M - M Z Z^T||_F

    @property
    def norm(self) -> float:
        """||M||_F: what is projected and what is missed are orthogonal."""
        return math.hypot(float(torch.linalg.vector_norm(self.Y)), self.missed)

    @property
    def relative_error(self) -> float:
        """||M - M Z Z^T||_F / ||M||_F; 0 for a zero matrix."""
        return self.missed / (self.norm or 1.0)

    def svd(self) -> SVD:
        """The SVD of M Z Z^T, as many triplets as Z has columns (or M rows)."""
        U, S, Wh = torch.linalg.svd(self.Y, full_matrices=False)
        return SVD(U, S, Wh @ self.Z.T)


def _widened(M: RowBlocks, Z: Tensor | None, width: int, num_power_iters: int, generator: torch.Generator) -> Tensor:
    """Z (n, l) with new orthonormal columns up to `width`, from the leading right singular vectors that it misses."""
    missing = width - (0 if Z is None else Z.shape[1])
    # In float64 whatever M's dtype: one generator gives one Omega.
    new = torch.randn(M.shape[1], missing, generator=generator, device=generator.device, dtype=torch.float64)
    for _ in range(num_power_iters + 1):
        product: Tensor | None = None
        for rows in _few_rows(M):
            new = new.to(rows)  # the first pass tells the dtype and the device
            # Of the transpose (k, n): a product with few rows reads M's as they lie, and takes half the time.
            term = (rows @ new).T @ rows
            product = term if product is None else product.add_(term)
        assert product is not None  # M has rows
        new = _orthonormal(product.T, Z)
    return new if Z is None else torch.cat([Z, new], dim=1)


def _orthonormal(G: Tensor, Z: Tensor | None) -> Tensor:
    """Orthonormal columns (n, k) that span what G (n, k) spans beyond Z (n, l); any others where that is less."""
    # Householder's reflections give orthonormal columns whatever the rank, where subtracting Z Z^T G could leave zeros.
    Q, _ = torch.linalg.qr(G if Z is None else torch.cat([Z, G], dim=1))
    new: Tensor = Q[:, -G.shape[1] :]
    return new


def _project(M: RowBlocks, Z: Tensor) -> _Projection:
    """The projection of M on Z and the norm of the rest, in one pass."""
    products: Tensor | None = None
    missed: list[float] = []
    done = 0
    for rows in _few_rows(M):
        if products is None:  # made at once: small tensors that stay would keep freed large ones from being used again
            Z = Z.to(rows)
            products = rows.new_empty(M.shape[0], Z.shape[1])
        Y = torch.mm(rows, Z, out=products[done : done + len(rows)])
        missed.append(float(torch.linalg.vector_norm(torch.addmm(rows, Y, Z.T, alpha=-1))))
        done += len(rows)
    assert products is not None  # M has rows
    return _Projection(Z, products, math.hypot(*missed))


def _few_rows(M: RowBlocks) -> Iterator[Tensor]:
    """The rows of M, finite, at most `_ROWS` at a time."""
    m, n = M.shape
    read = 0
    for block in M.blocks():
        if block.ndim != 2 or block.shape[1] != n:
            raise ConfigError(f"a block of shape {tuple(block.shape)} is no block of rows of a matrix {(m, n)}")
        read += len(block)
        if read > m:
            break
        for rows in torch.split(block, _ROWS):
            check_finite(rows, "M")
            yield rows
    if read != m:
        raise ConfigError(f"the blocks hold {read} rows, expected {m} for a matrix of shape {(m, n)}")
