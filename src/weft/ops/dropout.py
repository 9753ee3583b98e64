"""Dropout of a branch's input that keeps only which entries were dropped, and never a copy of the input.

In a row of independent trials with probability p, the gaps from one success to the next are independent and geometric.
So for p = 0.05 a twentieth of the random numbers gives the process itself, and the twentieth of the places is all that
there is to keep. A GPU draws numbers for nothing, and would have to wait for the places: there a mask is kept instead.
"""

import math
import threading
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from weft.ops.transforms import is_transformed

__all__ = ["add_kept", "draw_dropped", "drop", "dropped_mask", "dropped_places", "without_dropped"]


def draw_dropped(x: Tensor, probability: float) -> Tensor:
    """Which entries of x to drop, each independently, from torch's generator of its device.

    So a seed, gradient checkpointing and a resumed run reproduce them.

    Args:
        x: any shape.
        probability: that of dropping one, 0 < probability < 1.

    Returns:
        `dropped_places` on the CPU, `dropped_mask` elsewhere and under a compiler, to which their number is unknown.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return dropped_places(x.numel(), probability)
    return dropped_mask(x.numel(), probability, x.device)


def dropped_places(count: int, probability: float) -> Tensor:
    """The places in 0 ... count - 1 that are dropped: (n), ascending, int32 where `count` allows it."""
    dtype = torch.int32 if count < 2**30 else torch.int64
    per_log = 1 / math.log1p(-probability)
    found: list[Tensor] = []
    last = -1  # the place dropped last
    while last < count:
        left = (count - last) * probability
        draws = int(left + 5 * math.sqrt(left)) + 8  # enough, all but once in millions; otherwise there is another turn
        # floor(log(1 - u) / log(1 - p)) failures before the next success, for u uniform in [0, 1). float32 has 24 bits
        # of u: what a gap's probability is off by is below 1e-7.
        gaps = torch.rand(draws).neg_().log1p_().mul_(per_log).to(dtype).add_(1)
        gaps[0] += last
        places = gaps.cumsum_(0)
        found.append(places)
        last = int(places[-1])
    places = torch.cat(found) if len(found) > 1 else found[0]
    return places[: int(torch.searchsorted(places, count))]


def dropped_mask(count: int, probability: float, device: torch.device) -> Tensor:
    """(count), true where an entry is dropped."""
    return torch.rand(count, device=device) < probability


class _Workspaces(threading.local):
    """Room for one tensor of each dtype, kept by each thread: new memory of that size costs more than the copy."""

    def __init__(self) -> None:
        self.by_dtype: dict[torch.dtype, Tensor] = {}


_workspaces = _Workspaces()


def _workspace(x: Tensor) -> Tensor:
    buffer = _workspaces.by_dtype.get(x.dtype)
    if buffer is None or buffer.numel() < x.numel():
        buffer = _workspaces.by_dtype[x.dtype] = torch.empty(x.numel(), dtype=x.dtype)
    return buffer[: x.numel()].view(x.shape)


def without_dropped(x: Tensor, dropped: Tensor | None, lasting: bool = False) -> Tensor:
    """x with its dropped entries at zero; not scaled up. x itself where nothing is dropped.

    Args:
        x: any shape.
        dropped: places or a mask, as `draw_dropped` gives them, or None.
        lasting: whether the result has to last until after the next call.
    """
    if dropped is None:
        return x
    if dropped.dtype == torch.bool:
        return x.masked_fill(dropped.view(x.shape), 0)
    places = dropped.long()
    lasting = lasting or torch.is_inference_mode_enabled()  # whose tensors cannot be written outside of it
    copy = torch.empty_like(x, memory_format=torch.contiguous_format) if lasting else _workspace(x)
    copy.copy_(x)
    copy.view(-1).scatter_(0, places, x.new_zeros(1).expand(places.shape))
    return copy


def add_kept(x: Tensor, left: Tensor, right: Tensor, scaling: float, dropped: Tensor | None) -> None:
    """Adds scaling * left @ right to x, in place, except at the dropped entries.

    Args:
        x: (T, n), contiguous.
        left: (T, r).
        right: (r, n).
        scaling: the factor.
        dropped: places or a mask, as `draw_dropped` gives them, or None.
    """
    if dropped is None:
        x.addmm_(left, right, alpha=scaling)
    elif dropped.dtype == torch.bool:
        x.add_((left @ right).masked_fill_(dropped.view(x.shape), 0), alpha=scaling)
    else:  # it is cheaper to put a twentieth back than to make another matrix
        places = dropped.long()
        before = x.view(-1).index_select(0, places)
        x.addmm_(left, right, alpha=scaling)
        x.view(-1).scatter_(0, places, before)


def drop(x: Tensor, probability: float, training: bool) -> Tensor:
    """Dropout of the branch's input, for a branch that computes with the result; x itself where nothing is to drop."""
    if not training or probability == 0:
        return x
    if is_transformed():
        return F.dropout(x, probability)
    result: Tensor = _Drop.apply(x, draw_dropped(x, probability), probability)  # type: ignore[no-untyped-call]
    return result


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: Tensor, probability: float) -> Tensor:
        ctx.save_for_backward(dropped)
        ctx.probability = probability
        return without_dropped(x, dropped, lasting=True).div_(1 - probability)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (dropped,) = ctx.saved_tensors
        return without_dropped(g, dropped, lasting=True) / (1 - ctx.probability), None, None
