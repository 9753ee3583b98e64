"""A sketch of an adapter's change, by which the most similar of many are found without reading any.

The change of all weights together, one long vector, is projected to `WIDTH` numbers so that inner products survive.
For a matrix of rank r that stands as factors, the projection is TensorSketch (Pham and Pagh, 2013, "Fast and scalable
polynomial kernels via explicit feature maps"): the count sketch of an outer product b a^T, with the hash h(i) + h'(j)
and the sign s(i) s'(j), is the circular convolution of the count sketches of b and a, hence a product of Fourier
transforms. It costs O((out + in) r + r WIDTH log WIDTH) a module and forms no matrix. Modules have hashes of their own,
made from path and shape alone, so that two sketches agree wherever they were made, and their sum is the sketch of the
whole.

What sketches are good for stands in `weft.library.estimate`.
"""

import hashlib
import math

import torch
from torch import Tensor

from weft.adapter import Adapter
from weft.library.estimate import WIDTH

_PRIME = 2**31 - 1  # products of two residues fit into 63 bits


@torch.no_grad()
def sketch(adapter: Adapter) -> bytes | None:
    """The direction of the adapter's change as `WIDTH` bytes, each a signed number; None for a change that is zero.

    With trained magnitudes (DoRA), the change is the one before the weights are scaled to them.
    """
    spectrum = torch.zeros(WIDTH // 2 + 1, dtype=torch.complex128)
    for path, factors in adapter.factors.items():
        out_features, in_features = factors.shape
        name = f"{path} {out_features} {in_features}"
        B = torch.fft.rfft(_count_sketch(factors.B.T, f"{name} out"))
        A = torch.fft.rfft(_count_sketch(factors.A, f"{name} in"))
        spectrum += factors.scaling * (B * A).sum(0)
    vector = torch.fft.irfft(spectrum, n=WIDTH)
    largest = float(vector.abs().max())
    if largest == 0:
        return None
    return bytes((vector * (127 / largest)).round().to(torch.int8).view(torch.uint8).tolist())


@torch.no_grad()
def norm(adapter: Adapter) -> float:
    """||D||, the Frobenius norm of the change of all weights together."""
    return math.hypot(*(float(factors.norm()) for factors in adapter.factors.values()))


@torch.no_grad()
def inner(a: Adapter, b: Adapter) -> float:
    """<D, D'> of two changes, exactly, from their factors; D of DoRA's adapters is s B A."""
    common = [
        (a.factors[path], b.factors[path])
        for path in a.factors
        if path in b.factors and a.factors[path].shape == b.factors[path].shape
    ]
    return math.fsum(float(one.inner(other)) for one, other in common)


def _count_sketch(rows: Tensor, name: str) -> Tensor:
    """The count sketches (r, WIDTH) of vectors (r, n)."""
    place, sign = _hashes(rows.shape[1], name)
    wide = rows.to("cpu", torch.float64 if rows.dtype == torch.float64 else torch.float32)
    return wide.new_zeros(rows.shape[0], WIDTH).index_add_(1, place, wide * sign)


def _hashes(size: int, name: str) -> tuple[Tensor, Tensor]:
    """A place below WIDTH and a sign for each of `size` entries, four-wise independent.

    A polynomial of degree 3 over a prime field (Wegman and Carter, 1981), its coefficients from the name: the same on
    every machine and in every version of every library.
    """
    seed = hashlib.sha256(name.encode()).digest()
    coefficients = [int.from_bytes(seed[4 * k : 4 * k + 4], "little") % _PRIME for k in range(4)]
    entries = torch.arange(size)
    values = torch.zeros(size, dtype=torch.int64)
    for coefficient in coefficients:
        values = (values * entries + coefficient) % _PRIME
    return (values >> 1) % WIDTH, 1.0 - 2.0 * (values & 1)
