"""Scaling a layer's output, less its bias, by a factor for each output.

    y = u + d (u - b)            d = c - 1, for the factor c

and from g = dL/dy:

    du = g + d g      dd = sum of g (u - b)      db = -d (sum of g)

d stands beside 1 instead of in it, so that a narrow dtype does not round it away, and so that y is u, bit for bit, at
d = 0. One tensor of the output's size is made in each direction and one, u, is saved; written with torch's own
operations it would be five.
"""

from typing import Any

import torch
from torch import Tensor

from weft.ops import reference
from weft.ops.transforms import is_transformed

__all__ = ["rescale"]


def rescale(u: Tensor, d: Tensor, b: Tensor | None) -> Tensor:
    """u + d (u - b).

    Equal to the reference up to rounding, in value and gradient.

    Args:
        u: the output, any shape.
        d: one number for each output, in a shape that broadcasts over u, in any floating-point dtype.
        b: the bias, in the shape of d, or None.

    Returns:
        A tensor like u.
    """
    if is_transformed():
        return reference.rescale(u, d, b)
    result: Tensor = _Rescale.apply(u, d, b)  # type: ignore[no-untyped-call]
    return result


def _less(u: Tensor, b: Tensor | None) -> Tensor:
    """A new tensor, u - b."""
    return u.clone() if b is None else u - b.to(u.dtype)


class _Rescale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, d: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(u, d, b)
        y = _less(u, b)
        return torch.addcmul(u, y, d.to(u.dtype), out=y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        u, d, b = ctx.saved_tensors
        need_u, need_d, need_b = ctx.needs_input_grad
        du = dd = db = None
        if need_d:
            du = _less(u, b).mul_(g)
            dd = _sum_to(du, d)
        if need_u:
            # To be differentiated again, it must be a tensor of its own.
            du = torch.addcmul(g, g, d.to(g.dtype), out=None if torch.is_grad_enabled() else du)
        if need_b:
            db = -d.to(b.dtype) * _sum_to(g, b)
        return du if need_u else None, dd, db


def _sum_to(t: Tensor, like: Tensor) -> Tensor:
    """The sum of t over the dimensions along which `like` broadcasts, in the dtype of `like`; a new tensor."""
    lead = t.ndim - like.ndim
    over = [*range(lead), *(lead + i for i, size in enumerate(like.shape) if size == 1 and t.shape[lead + i] != 1)]
    return t.sum(over, dtype=like.dtype).reshape(like.shape) if over else t.to(like.dtype, copy=True)
