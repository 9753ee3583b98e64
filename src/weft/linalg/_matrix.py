"""What every floating-point function here asks of a matrix, and the precision it computes in."""

from math import isfinite

import torch
from torch import Tensor

from weft.errors import ConfigError


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision to compute in: float64 stays, everything narrower than float32 becomes float32."""
    return dtype if dtype.itemsize >= 4 else torch.float32


def checked(M: Tensor, name: str, *, batch: bool = True) -> Tensor:
    """`M` in its compute dtype, once it is known to be a finite, non-empty matrix (or a batch of them).

    Raises ConfigError that names `name` otherwise.
    """
    check_layout(M, name, batch=batch)
    check_finite(M, name)
    return M.to(compute_dtype(M.dtype))


def check_layout(M: Tensor, name: str, *, batch: bool = False) -> None:
    """Raise ConfigError unless `M` is a non-empty real floating-point matrix (..., m, n); reads no values."""
    if not isinstance(M, Tensor):
        raise ConfigError(f"{name} must be a torch.Tensor, found {type(M).__name__}")
    if not M.is_floating_point():
        raise ConfigError(
            f"{name} has dtype {M.dtype}, expected a real floating-point dtype; convert it with .double() "
            "(integers have exact answers too: see weft.linalg.exact_rank)"
        )
    if M.ndim < 2 or (M.ndim > 2 and not batch):
        expected = "two dimensions or more" if batch else "two dimensions"
        raise ConfigError(f"{name} has shape {tuple(M.shape)}, expected {expected}")
    if 0 in M.shape:
        raise ConfigError(f"{name} has shape {tuple(M.shape)}, expected at least one row and one column")


def check_finite(M: Tensor, name: str) -> None:
    """Raise ConfigError if `M` holds NaN or infinity: no factorization of it means anything."""
    # NaN passes through both, and they read the matrix once: isfinite().all() takes thirty times as long.
    low, high = M.detach().aminmax()
    if not isfinite(float(low)) or not isfinite(float(high)):
        raise ConfigError(f"{name} holds NaN or infinity; find out where it came from before factorizing it")


def check_rank(rank: int, largest: int, shape: tuple[int, ...]) -> None:
    """Raise ConfigError unless 1 <= rank <= largest, the smaller side of a matrix of this shape."""
    if not 1 <= rank <= largest:
        raise ConfigError(f"rank is {rank}, expected 1 to {largest} for a matrix of shape {tuple(shape)}")
