"""The adapter's branch of a convolution, added to the base's output by one accumulating product."""

from collections.abc import Callable

import torch
from torch import Tensor

from weft.ops import reference

__all__ = ["add_conv"]


def add_conv(
    y: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    groups: int,
    down: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """y plus s times the convolution of x with the kernel B A: `reference.conv`, scaled and added.

    The 1x1 convolution with B is a product for each image and group.

    Args:
        y: (N, out, *size'), the base's output, or without N.
        x: (N, in, *size), or without N.
        A: (r, in/groups, *kernel).
        B: (out, r).
        scaling: s.
        groups: the base's groups; A serves each of them.
        down: convolves (x, weight (groups * r, in/groups, *kernel)) with the base's own geometry.

    Returns:
        (N, out, *size'), or without N, in the dtype of y.
    """
    if not y.is_contiguous():  # channels last, say: it stays so
        return torch.add(y, reference.conv(x, A, B, groups, down).to(y.dtype), alpha=scaling)
    A = A.to(x.dtype)
    h = down(x, A.repeat(groups, *[1] * (A.ndim - 1)) if groups > 1 else A).to(y.dtype)
    rank, places = A.shape[0], y.shape[2 - A.ndim :].numel()
    rows = y.view(-1, y.shape[1 - A.ndim] // groups, places)  # (N * groups, out/groups, places)
    up = B.to(y.dtype).view(groups, -1, rank).repeat(rows.shape[0] // groups, 1, 1)
    return torch.baddbmm(rows, up, h.reshape(-1, rank, places), alpha=scaling).view(y.shape)
