"""The adapter's branch of a linear layer, added to the base's output with no temporary of the output's size.

For y0 (T, out), x (T, in), A (r, in), B (out, r):

    h = x A^T                    (T, r)      saved
    y = y0 + s h B^T             (T, out)    one accumulating product; s is folded in

and from g = dL/dy, with k = g B (T, r):

    dy0 = g      dx = s k A      dA = s k^T x      dB = s g^T h

With dropout, x stands for x with the dropped entries at zero and the others over 1 - p. Only the places of the dropped
ones are kept (`dropout.py`): that x is made again in the backward pass, and dx is zero at them. So layers that read one
x still keep one x.

The eager form (`reference.linear`, scaled and added) writes h B^T, reads it again to add it, and in the backward pass
writes s g: three passes over (T, out) that are not here.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weft.ops import reference
from weft.ops.dropout import dropped_places

__all__ = ["add_linear"]

# Below this many output values the fixed cost of an autograd Function in Python, some tens of microseconds, is more
# than the passes that it saves (benchmarks/layer.py).
_SMALL = 2**16


def add_linear(
    y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, own: bool = False, dropout: float = 0.0
) -> Tensor:
    """y + s (x A^T) B^T.

    Equal to the reference up to rounding, in value and gradient; can be differentiated once (a second time raises).

    Args:
        y: (..., out), the base's output.
        x: (..., in), the layer's input.
        A: (r, in).
        B: (out, r).
        scaling: s.
        own: whether y is the caller's to overwrite: nothing else reads it, nor was it saved for a backward pass.
        dropout: the probability of dropping an entry of x in this product.

    Returns:
        (..., out), in the dtype of y; y itself if it could be overwritten.
    """
    learns = torch.is_grad_enabled() and (x.requires_grad or A.requires_grad or B.requires_grad or y.requires_grad)
    # With dropout the size alone decides: reentrant checkpointing runs this without gradients first and with them
    # later, and must meet the same random numbers.
    small = y.numel() < _SMALL and (learns or dropout > 0)
    if small or torch.compiler.is_compiling():  # a compiler fuses the passes by itself
        x = reference.drop(x, dropout, training=True)
        return torch.add(y, reference.linear(x, A, B).to(y.dtype), alpha=scaling)
    places = None
    if dropout > 0:
        if x.device.type == "cpu":
            places = dropped_places(x.numel(), dropout, x.device)
        else:  # a GPU draws numbers for nothing, and would have to wait for the places
            x, dropout = reference.drop(x, dropout, training=True), 0.0
    # Under autocast y has the product's dtype; the factors are small, and cast to it. x is cast only there.
    x, A, B = x.to(y.dtype), A.to(y.dtype), B.to(y.dtype)
    if learns:
        result: Tensor = _AddLinear.apply(y, x, A, B, scaling, own, places, dropout)  # type: ignore[no-untyped-call]
        return result
    return _add(y, _dropped(x, places, dropout) @ A.T, B, scaling, own)


def _dropped(x: Tensor, places: Tensor | None, dropout: float) -> Tensor:
    """x as rows (T, in), with the entries at `places` zero and the others over 1 - dropout."""
    rows = x.reshape(-1, x.shape[-1])
    if places is None:
        return rows
    rows = rows / (1 - dropout)
    rows.view(-1)[places] = 0
    return rows


def _add(y: Tensor, h: Tensor, B: Tensor, scaling: float, own: bool) -> Tensor:
    rows = y.reshape(-1, y.shape[-1])  # (T, out)
    if own and rows.data_ptr() == y.data_ptr():
        rows.addmm_(h, B.T, alpha=scaling)
        return y
    return torch.addmm(rows, h, B.T, alpha=scaling).view(y.shape)


class _AddLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scaling: float,
        own: bool,
        places: Tensor | None,
        dropout: float,
    ) -> Tensor:
        h = _dropped(x, places, dropout) @ A.T
        ctx.save_for_backward(x, h, A, B, places)
        ctx.scaling, ctx.dropout = scaling, dropout
        result = _add(y, h, B, scaling, own)
        if result is y:
            ctx.mark_dirty(y)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, h, A, B, places = ctx.saved_tensors
        need_y, need_x, need_A, need_B = ctx.needs_input_grad[:4]
        rows = g.reshape(-1, g.shape[-1])  # (T, out)
        k = rows @ B if need_x or need_A else None  # (T, r)
        dx = dA = dB = None
        if k is not None:
            k *= ctx.scaling  # the smallest place to scale
            if need_A:
                dA = k.T @ _dropped(x, places, ctx.dropout)
            if need_x:
                dx = ((k / (1 - ctx.dropout) if places is not None else k) @ A).view(x.shape)
                if places is not None:
                    dx.view(-1)[places] = 0
        if need_B:
            dB = (h.T @ rows).T * ctx.scaling  # as (r, out): the transposed product is several times slower
        return g if need_y else None, dx, dA, dB, None, None, None, None
