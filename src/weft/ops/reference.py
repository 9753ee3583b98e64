"""The eager specification: what the adapter's branch of each layer kind computes.

Each function returns the product with B A alone, unscaled. The factors are cast to the activation's
dtype, never the activation to theirs: a cast of (r, in) is small, a cast of (T, in) is not.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["conv", "embedding", "linear", "rescale"]


def linear(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """(x A^T) B^T.

    Args:
        x: (..., in).
        A: (r, in).
        B: (out, r).

    Returns:
        (..., out), in the dtype of x (or of autocast).
    """
    h = F.linear(x, A.to(x.dtype))
    return F.linear(h, B.to(h.dtype))


def embedding(
    ids: Tensor, A: Tensor, B: Tensor, padding_idx: int | None, scale_grad_by_freq: bool, dtype: torch.dtype
) -> Tensor:
    """The rows `ids` of the table B A.

    Args:
        ids: (...), whole numbers below V.
        A: (r, d).
        B: (V, r); the row `padding_idx` gets no gradient, as in torch's embedding.
        padding_idx: the padding row, or None.
        scale_grad_by_freq: divide a row's gradient by how often it occurs in `ids`.
        dtype: the dtype of the base's output.

    Returns:
        (..., d), in `dtype`.
    """
    h = F.embedding(ids, B, padding_idx, scale_grad_by_freq=scale_grad_by_freq)
    return F.linear(h.to(dtype), A.T.to(dtype))


def conv(x: Tensor, A: Tensor, B: Tensor, groups: int, down: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The convolution of x with the kernel B A, as a convolution with A and a 1x1 one with B.

    Args:
        x: (N, in, *size), or without N.
        A: (r, in/groups, *kernel).
        B: (out, r).
        groups: the base's groups; A serves each of them.
        down: convolves (x, weight (groups * r, in/groups, *kernel)) with the base's own geometry: stride,
            padding and its mode, dilation, groups.

    Returns:
        (N, out, *size'), in the dtype of x (or of autocast).
    """
    A = A.to(x.dtype)
    h = down(x, A.repeat(groups, *[1] * (A.ndim - 1)) if groups > 1 else A)
    pointwise = (F.conv1d, F.conv2d, F.conv3d)[A.ndim - 3]
    return pointwise(h, B.to(h.dtype).reshape(*B.shape, *[1] * (A.ndim - 2)), groups=groups)


def rescale(u: Tensor, d: Tensor, b: Tensor | None) -> Tensor:
    """u + d (u - b): the output u with its part before the bias b times 1 + d.

    Args:
        u: any shape.
        d: in a shape that broadcasts over u.
        b: likewise, or None.

    Returns:
        A tensor like u.
    """
    return torch.addcmul(u, u if b is None else u - b.to(u.dtype), d.to(u.dtype))
