"""A linear layer with its adapter's branch as one operation, forward and backward.

For x (T, in), W (out, in), A (r, in), B (out, r):

    h = A x^T                        (r, T)      saved
    y = x W^T + b,  y += s h^T B^T   (T, out)    one accumulating product; s is folded in

and from g = dL/dy, with k = B^T g^T (r, T):

    dx = g W,  dx += s k^T A      dA = s k x      dB = s (h g)^T

The small dimension comes first in h, k, dA and dB^T: at rank 8 most other orders of these four products are slower,
some of them several times on one thread of a CPU. Nothing of the size of x or y is written but y and dx; x itself, h
and the parameters are saved. The eager form (`reference.linear`, scaled and added) makes and reads h B^T, s g, and two
gradients of x that autograd adds.

With dropout, the branch reads x with the dropped entries at zero, and s is over 1 - p. Only which they are is kept
(`dropout.py`): that x is made again in the backward pass, so layers that read one x still keep one x.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from weft.ops import reference
from weft.ops.dropout import add_kept, draw_dropped, drop, without_dropped
from weft.ops.transforms import in_torch_func, is_transformed

__all__ = ["adapted_linear", "add_linear"]

_no_view: Callable[[Tensor, torch.Size], Tensor] = torch.ops.aten._unsafe_view.default  # as F.linear's own kernels do


def adapted_linear(
    x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scaling: float, dropout: float = 0.0
) -> Tensor:
    """x W^T + b + s (x A^T) B^T, for W and b that are frozen: they get no gradient.

    Equal to the reference up to rounding, in value and gradient.

    Args:
        x: (..., in).
        W: (out, in).
        b: (out), or None.
        A: (r, in).
        B: (out, r).
        scaling: s.
        dropout: the probability of dropping an entry of x on its way to A.

    Returns:
        (..., out), in the dtype of x, or of autocast.
    """
    if torch.is_grad_enabled() and (A.requires_grad or B.requires_grad or x.requires_grad):
        return _learned(x, W, b, A, B, scaling, dropout)
    if in_torch_func():
        return _add_eagerly(F.linear(x, W, b), x, A, B, scaling, dropout)
    y = F.linear(x, W, b)  # under autocast it is in another dtype than x
    dtype = y.dtype
    if x.dtype != dtype:
        x = x.to(dtype)
    if A.dtype != dtype:
        A, B = A.to(dtype), B.to(dtype)
    dropped, scaling = _drawn(x, dropout, scaling)
    _add_branch(y, x, A, B, scaling, dropped)
    return y


def _learned(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scaling: float, dropout: float) -> Tensor:
    if is_transformed():
        return _add_eagerly(F.linear(x, W, b), x, A, B, scaling, dropout)
    device = _device_type(x)
    if torch.is_autocast_enabled(device) or x.dtype != A.dtype:
        # The factors are small, and cast to the activation's dtype; never the activation to theirs.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x, W, b, A, B = x.to(dtype), W.to(dtype), None if b is None else b.to(dtype), A.to(dtype), B.to(dtype)
    dropped, scaling = _drawn(x, dropout, scaling)
    result: Tensor = _AdaptedLinear.apply(x, W, b, A, B, scaling, dropped)  # type: ignore[no-untyped-call]
    return result


def add_linear(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, dropout: float = 0.0) -> Tensor:
    """y + s (x A^T) B^T, for an output y that something else computed: a quantized base, or another adapter before.

    Args:
        y: (..., out).
        x: (..., in).
        A: (r, in).
        B: (out, r).
        scaling: s.
        dropout: the probability of dropping an entry of x in this product.

    Returns:
        (..., out), in the dtype of y.
    """
    if is_transformed():
        return _add_eagerly(y, x, A, B, scaling, dropout)
    # Under autocast y has the product's dtype; the factors are small, and cast to it. x is cast only there.
    x, A, B = x.to(y.dtype), A.to(y.dtype), B.to(y.dtype)
    dropped, scaling = _drawn(x, dropout, scaling)
    result: Tensor = _AddLinear.apply(y, x, A, B, scaling, dropped)  # type: ignore[no-untyped-call]
    return result


def _add_eagerly(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, dropout: float) -> Tensor:
    return torch.add(y, reference.linear(drop(x, dropout, training=True), A, B).to(y.dtype), alpha=scaling)


def _drawn(x: Tensor, dropout: float, scaling: float) -> tuple[Tensor | None, float]:
    """Which entries of x to drop, None for none, and the scaling of what is kept."""
    return (None, scaling) if dropout == 0 else (draw_dropped(x, dropout), scaling / (1 - dropout))


def _add_branch(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, dropped: Tensor | None) -> Tensor:
    """Adds the branch's output to y (..., out), contiguous, in place; returns h (r, T)."""
    x = x if dropped is None else without_dropped(x, dropped)
    h = A @ x.reshape(-1, x.shape[-1]).T
    y.view(-1, y.shape[-1]).addmm_(h.T, B.T, alpha=scaling)
    return h


def _device_type(x: Tensor) -> str:
    return "cpu" if x.is_cpu or x.is_meta else x.device.type  # the latter takes microseconds; meta has no autocast


Pass = TypeVar("Pass", bound=Callable[..., Any])


def _without_autocast(function: Pass) -> Pass:
    """A Function's forward or backward, whose tensors have one dtype already: accumulating products need that."""

    @wraps(function)
    def run(ctx: Any, first: Tensor, *rest: Any) -> Any:
        device = _device_type(first)
        if not torch.is_autocast_enabled(device):
            return function(ctx, first, *rest)
        with torch.autocast(device, enabled=False):
            return function(ctx, first, *rest)

    return cast(Pass, run)


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        A: Tensor,
        B: Tensor,
        scaling: float,
        dropped: Tensor | None,
    ) -> Tensor:
        y = F.linear(x, W, b)
        h = _add_branch(y, x, A, B, scaling, dropped)
        _, _, _, need_A, need_B, _, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if need_A else None, W, A, B, h if need_B else None, dropped)
        ctx.scaling, ctx.shape = scaling, x.shape
        # F.linear gives a view of a matrix, and a view that is made here could not be changed in place afterwards.
        return _no_view(y, y.shape)

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, W, A, B, h, dropped = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])  # (T, out)
        k, dA, dB = _factor_gradients(g, x, A, B, h, ctx.scaling, dropped, ctx.needs_input_grad[0])
        dx = None
        if k is not None:
            dx = g @ W
            add_kept(dx, k.T, A, ctx.scaling, dropped)
            dx = dx.view(ctx.shape)
        return dx, None, None, dA, dB, None, None


class _AddLinear(torch.autograd.Function):
    @staticmethod
    @_without_autocast
    def forward(ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, dropped: Tensor | None) -> Tensor:
        total = y.clone(memory_format=torch.contiguous_format)
        h = _add_branch(total, x, A, B, scaling, dropped)
        _, _, need_A, need_B, _, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if need_A else None, A, B, h if need_B else None, dropped)
        ctx.scaling, ctx.shape = scaling, x.shape
        return total

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, h, dropped = ctx.saved_tensors
        need_y, need_x = ctx.needs_input_grad[:2]
        g = gradient.reshape(-1, gradient.shape[-1])  # (T, out)
        k, dA, dB = _factor_gradients(g, x, A, B, h, ctx.scaling, dropped, need_x)
        dx = None
        if k is not None:
            dx = g.new_zeros(g.shape[0], A.shape[1])
            add_kept(dx, k.T, A, ctx.scaling, dropped)
            dx = dx.view(ctx.shape)
        return gradient if need_y else None, dx, dA, dB, None, None


def _factor_gradients(
    g: Tensor,
    x: Tensor | None,
    A: Tensor,
    B: Tensor,
    h: Tensor | None,
    scaling: float,
    dropped: Tensor | None,
    need_x: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(k, dA, dB) from g (T, out): k if x needs a gradient, dA if x was saved for it, dB if h was."""
    k = B.T @ g.T if x is not None or need_x else None
    dA = dB = None
    if x is not None and k is not None:
        x = x if dropped is None else without_dropped(x, dropped, lasting=torch.is_grad_enabled())
        x = x.reshape(-1, x.shape[-1])
        dA = torch.addmm(A, k, x, beta=0, alpha=scaling)  # beta = 0: A is not read
        if h is not None and torch.is_grad_enabled():
            h = A @ x.T  # to be differentiated again, it has to be made here
    elif h is not None and torch.is_grad_enabled():
        raise RuntimeError("a second derivative needs the layer's input, which is kept only where lora_A is trained")
    if h is not None:
        dB = torch.addmm(B.T, h, g, beta=0, alpha=scaling).T
    return k if need_x else None, dA, dB
