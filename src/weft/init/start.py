"""The function that every initializer implements."""

from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from weft.config import Initializer
from weft.errors import ConfigError


@dataclass(frozen=True)
class Start:
    """Factors as they start: A (r, in), B (out, r), and B0 A0 to subtract if B A is not zero."""

    A: Tensor
    B: Tensor
    offset: tuple[Tensor, Tensor] | None = None


def start_from(A: Tensor, out: int) -> Start:
    """The start from A (r, in) and a B (out, r) of zeros."""
    # On the meta device there is nothing to fill, and torch takes ten times longer to fill it than to make it.
    make = torch.empty if A.is_meta else torch.zeros
    return Start(A, make(out, A.shape[0], dtype=A.dtype, device=A.device))


@singledispatch
def start_factors(init: Initializer, W: Tensor, rank: int, scaling: float, dtype: torch.dtype) -> Start:
    """The starting factors for one layer, on the device of W.

    An initializer registers its own function for its type: ``@start_factors.register``.

    Args:
        init: the initializer, with its settings.
        W: the layer's weight as a matrix (out, in). It is read only if the initializer needs it, and never changed.
        rank: r.
        scaling: s.
        dtype: the factors' dtype.

    Raises:
        ConfigError: no function is registered for the type of `init`, or it cannot serve this weight.
    """
    raise ConfigError(f"no code is registered for the initializer {init!r}; register it with @start_factors.register")
