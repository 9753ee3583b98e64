"""`LowRank`: the matrix scaling * B @ A, held as its factors.

A LoRA update of a 4096 x 4096 weight has 16.8 million entries and, at rank 16, 131 thousand numbers in its
factors. Everything here costs O((m + n) r^2) and works on the factors; only `dense` forms the matrix.

Everything spectral goes by one road: QR of both factors, B = Q_B R_B and A^T = Q_A R_A, so that

    scaling * B A = Q_B (scaling * R_B R_A^T) Q_A^T

and the core in the middle, at most r x r, has the norm and the singular values of the whole. The shorter
road over Gram matrices, norm^2 = <B^T B, A A^T>, squares before it subtracts: for the difference of two
nearly equal adapters it loses everything below sqrt(eps) of their size, 3e-4 in float32. QR never squares
and loses only what is below eps.
"""

from dataclasses import dataclass, replace
from functools import reduce
from math import isfinite
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from weft.errors import ConfigError
from weft.linalg._matrix import check_finite, check_layout, compute_dtype
from weft.linalg.factorize import SVD
from weft.linalg.limit import Limit, truncation_errors


class Truncation(NamedTuple):
    """A value of lower rank, and ||before - after||_F / ||before||_F, what it cost."""

    value: "LowRank"
    relative_error: float


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class LowRank:
    """The (out, in) matrix scaling * B @ A, never formed.

    `B` (out, r), `A` (r, in), of one floating-point dtype, on one device; r >= 1, and it may exceed
    min(out, in). `scaling` is a Python float. A zero matrix is a LowRank with a zero factor, not one of rank 0.

    A value: no method changes it. Compared and hashed by identity, as tensors are. Where arithmetic on the
    factors is needed (`+`, `-`, `truncate`, `svd`, ...) factors narrower than float32 are computed and returned
    in float32, so that a chain of operations rounds once, at the `.to(dtype=...)` that ends it.
    """

    B: Tensor
    A: Tensor
    scaling: float = 1.0

    def __post_init__(self) -> None:
        check_layout(self.B, "B")
        check_layout(self.A, "A")
        B, A = self.B, self.A
        if B.shape[1] != A.shape[0]:
            raise ConfigError(
                f"B has shape {tuple(B.shape)} and A has shape {tuple(A.shape)}; expected (out, r) and (r, in) "
                "with the same r"
            )
        if B.dtype != A.dtype or B.device != A.device:
            raise ConfigError(
                f"B is {B.dtype} on {B.device} and A is {A.dtype} on {A.device}; convert one to match the other"
            )
        if not isinstance(self.scaling, Real) or not isfinite(self.scaling):
            raise ConfigError(f"scaling is {self.scaling!r}, expected a finite Python float")
        object.__setattr__(self, "scaling", float(self.scaling))

    @classmethod
    def from_svd(cls, svd: SVD) -> "LowRank":
        """U diag(S) Vh, with B = U diag(S)^1/2 and A = diag(S)^1/2 Vh: the balanced factors, B^T B = A A^T."""
        root = svd.S.sqrt()
        return cls(svd.U * root, root.unsqueeze(1) * svd.Vh)

    @property
    def rank(self) -> int:
        """r, the inner size of the factors: an upper bound of the rank of the matrix (see `numerical_rank`)."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), the shape of the matrix."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of both factors."""
        return self.A.dtype

    @property
    def device(self) -> torch.device:
        """The device of both factors."""
        return self.A.device

    @property
    def T(self) -> "LowRank":
        """The transpose, (in, out), over views of the same factors."""
        return LowRank(self.A.T, self.B.T, self.scaling)

    def __repr__(self) -> str:
        out_features, in_features = self.shape
        return (
            f"LowRank({out_features}x{in_features}, rank={self.rank}, scaling={self.scaling:g}, "
            f"dtype={self.dtype}, device={self.device})"
        )

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "LowRank":
        """The same value with its factors in another dtype (rounded), or on another device."""
        return LowRank(
            self.B.to(device=device, dtype=dtype or self.dtype),
            self.A.to(device=device, dtype=dtype or self.dtype),
            self.scaling,
        )

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The matrix itself, (out, in): computed in float32 (float64 for float64), rounded once to `dtype`.

        `dtype` is that of the factors unless given.
        """
        B, A = self._wide()
        return ((self.scaling * B) @ A).to(dtype or self.dtype)

    def __mul__(self, factor: float) -> "LowRank":
        if not isinstance(factor, Real):
            return NotImplemented
        return replace(self, scaling=self.scaling * float(factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "LowRank":
        if not isinstance(divisor, Real):
            return NotImplemented
        return replace(self, scaling=self.scaling / float(divisor))

    def __neg__(self) -> "LowRank":
        return replace(self, scaling=-self.scaling)

    def __add__(self, other: "LowRank") -> "LowRank":
        if not isinstance(other, LowRank):
            return NotImplemented
        return self.concat(other)

    def __sub__(self, other: "LowRank") -> "LowRank":
        if not isinstance(other, LowRank):
            return NotImplemented
        return self.concat(-other)

    def concat(self, *others: "LowRank") -> "LowRank":
        """The sum, whose rank is the sum of the ranks: the B side by side, the A stacked.

        Scalings of one magnitude are kept, and the factors with them; mixed ones are folded into the B, and
        the result has scaling 1. Raises ConfigError when a shape or device differs.
        """
        terms = [self, *others]
        for other in others:
            self._check_same_matrix_space(other)
        # Equal up to sign is the common case (a + b, a - b), and there the factors need no rounding at all.
        same = self.scaling != 0 and all(abs(term.scaling) == abs(self.scaling) for term in terms)
        scaling = abs(self.scaling) if same else 1.0
        dtype = reduce(torch.promote_types, (compute_dtype(term.dtype) for term in terms))
        B = torch.cat([term.B.to(dtype) * (term.scaling / scaling) for term in terms], dim=1)
        A = torch.cat([term.A.to(dtype) for term in terms], dim=0)
        return LowRank(B, A, scaling)

    def __matmul__(self, x: Tensor) -> Tensor:
        """This matrix times `x` (in,) or (..., in, k), as B (A x), in the dtype of `x`."""
        if not isinstance(x, Tensor):
            return NotImplemented
        _check_operand(x, axis=-1 if x.ndim == 1 else -2, size=self.shape[1], matrix=self)
        return self.scaling * (self.B.to(x.dtype) @ (self.A.to(x.dtype) @ x))

    def __rmatmul__(self, x: Tensor) -> Tensor:
        """`x` (..., out) times this matrix, as (x B) A, in the dtype of `x`."""
        if not isinstance(x, Tensor):
            return NotImplemented
        _check_operand(x, axis=-1, size=self.shape[0], matrix=self)
        return self.scaling * ((x @ self.B.to(x.dtype)) @ self.A.to(x.dtype))

    def inner(self, other: "LowRank") -> Tensor:
        """The Frobenius inner product <self, other>, a scalar tensor: s s' * sum((B^T B') * (A A'^T)).

        Smooth everywhere, so `x.inner(x)` is the squared norm to differentiate.
        Raises ConfigError when the shapes or devices differ.
        """
        self._check_same_matrix_space(other)
        dtype = torch.promote_types(compute_dtype(self.dtype), compute_dtype(other.dtype))
        B_gram = self.B.to(dtype).T @ other.B.to(dtype)
        A_gram = self.A.to(dtype) @ other.A.to(dtype).T
        return self.scaling * other.scaling * (B_gram * A_gram).sum()

    def norm(self) -> Tensor:
        """The Frobenius norm, a scalar tensor: that of the core, by QR (why: see the module).

        Its gradient, like QR's, needs both factors to have independent columns (rows of A); for a penalty that
        must also be differentiable elsewhere, such as at B = 0, use `x.inner(x)`.
        """
        _, core, _ = self._core()
        norm: Tensor = torch.linalg.matrix_norm(core)
        return norm

    def singular_values(self) -> Tensor:
        """The leading min(r, out, in) singular values, descending; all others of the matrix are zero."""
        _, core, _ = self._core()
        check_finite(core, repr(self))
        S: Tensor = torch.linalg.svdvals(core)
        return S

    def svd(self) -> SVD:
        """The thin SVD with k = min(r, out, in): U (out, k), S (k), Vh (k, in), S holding the scaling.

        Raises ConfigError when a factor holds NaN or infinity.
        """
        Q_B, core, Q_A = self._core()
        small = self._svd_of(core)
        return SVD(Q_B @ small.U, small.S, small.Vh @ Q_A.T)

    def balanced(self) -> "LowRank":
        """The same matrix with scaling 1 and factors that share its singular values: B^T B = A A^T = diag(S)."""
        return LowRank.from_svd(self.svd())

    def truncate(
        self, *, rank: int | None = None, energy: float | None = None, error: float | None = None
    ) -> Truncation:
        """The nearest matrix of lower rank, in balanced factors, and the relative Frobenius error it cost.

        Give exactly one of
          rank     keep at most this many singular values, >= 1 (min(r, out, in) are there);
          energy   keep the fewest whose squares sum to at least this share of all, 0 < energy <= 1;
          error    keep the fewest with a relative Frobenius error of at most this, 0 <= error < 1.
        At least one is always kept. No matrix of that rank is nearer (Eckart and Young, 1936; Mirsky, 1960).
        Raises ConfigError for any other combination.
        """
        limit = Limit(rank, energy, error)
        Q_B, core, Q_A = self._core()
        small = self._svd_of(core)
        errors = truncation_errors(small.S.tolist())
        kept = small.leading(limit.kept_rank(errors))
        return Truncation(LowRank.from_svd(SVD(Q_B @ kept.U, kept.S, kept.Vh @ Q_A.T)), errors[len(kept.S)])

    def _wide(self) -> tuple[Tensor, Tensor]:
        dtype = compute_dtype(self.dtype)
        return self.B.to(dtype), self.A.to(dtype)

    def _core(self) -> tuple[Tensor, Tensor, Tensor]:
        """Q_B (out, k), core (k, l), Q_A (in, l) with self = Q_B core Q_A^T."""
        B, A = self._wide()
        Q_B, R_B = torch.linalg.qr(B)
        Q_A, R_A = torch.linalg.qr(A.T)
        return Q_B, self.scaling * (R_B @ R_A.T), Q_A

    def _svd_of(self, core: Tensor) -> SVD:
        check_finite(core, repr(self))
        return SVD(*torch.linalg.svd(core, full_matrices=False))

    def _check_same_matrix_space(self, other: "LowRank") -> None:
        if self.shape != other.shape:
            raise ConfigError(f"the matrices have shapes {self.shape} and {other.shape}; they must be equal")
        if self.device != other.device:
            raise ConfigError(f"the matrices are on {self.device} and {other.device}; move one with .to(device=...)")


def _check_operand(x: Tensor, *, axis: int, size: int, matrix: LowRank) -> None:
    if not x.is_floating_point() or x.ndim == 0 or x.shape[axis] != size:
        raise ConfigError(
            f"cannot multiply a tensor of shape {tuple(x.shape)} and dtype {x.dtype} with a LowRank of shape "
            f"{matrix.shape}: its dimension {axis} must be {size}, and its dtype floating-point"
        )
