"""Cosines of changes of weights, estimated from their sketches (see `weft.library.sketch`) in one matrix product.

The cosine of two sketches estimates that of the changes, rho, with a standard error near (1 - rho^2) / sqrt(WIDTH), as
for any projection that preserves inner products and is normalised afterwards: 0.044 for unrelated changes, 0.008 at
rho = 0.9. A change that is all in one matrix of rank 1 has up to half as much again. Imports no torch.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH = 512


def estimated_cosines(sketches: Sequence[bytes], query: bytes) -> "NDArray[np.float32]":
    """Estimates of the cosines of many changes (n) with one."""
    rows = np.frombuffer(b"".join(sketches), dtype=np.int8).reshape(-1, WIDTH).astype(np.float32)
    one = np.frombuffer(query, dtype=np.int8).astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows)) * np.linalg.norm(one)
    cosines: NDArray[np.float32] = (rows @ one) / norms
    return cosines


def standard_error(cosine: float) -> float:
    """Of an estimated cosine, about."""
    return (1 - min(1.0, cosine**2)) / math.sqrt(WIDTH)
