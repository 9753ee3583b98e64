"""Undoing a merge, bit for bit. Never by subtracting alone: W + D - D is not W in floating point.

A snapshot is the weight itself, on the host. A patch keeps the entries that subtracting would get wrong
(0.5 to 5% of them) and a checksum; it costs a fraction of a snapshot, and time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from weft.errors import MergeError


class Undo(Protocol):
    """What restores one tensor that a merge changed."""

    @property
    def target(self) -> Tensor:
        """The tensor."""

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""

    def restore(self) -> None:
        """Puts the old values back, in place."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The old values, whole."""

    target: Tensor
    saved: Tensor

    @classmethod
    def of(cls, target: Tensor) -> "Snapshot":
        """A snapshot of `target` as it is now, on the host."""
        return cls(target, target.detach().to("cpu", copy=True))

    @property
    def nbytes(self) -> int:
        return self.saved.nbytes

    @torch.no_grad()
    def restore(self) -> None:
        self.target.copy_(self.saved)


@dataclass(frozen=True, eq=False)
class Patch:
    """The few entries that subtracting the delta again would not restore, and a checksum of the rest.

    Attributes:
        target: the merged weight.
        delta: computes the delta weight again, in the dtype in which it was added, in the shape of the target.
        places: flat positions (int32 where they fit).
        values: the old values there.
        checksum: of the old weight's bits.
    """

    target: Tensor
    delta: Callable[[], Tensor]
    places: Tensor
    values: Tensor
    checksum: tuple[int, int]

    @classmethod
    @torch.no_grad()
    def of(cls, target: Tensor, old: Tensor, delta: Callable[[], Tensor]) -> "Patch":
        """A patch that takes `target`, now merged, back to `old`."""
        old = old.contiguous()
        back = _subtract(target, delta())
        wrong = (_bits(back) != _bits(old)).view(-1).nonzero().view(-1)
        index = torch.int32 if old.numel() < 2**31 else torch.int64
        return cls(target, delta, wrong.to(index).cpu(), old.view(-1)[wrong].cpu(), _checksum(old))

    @property
    def nbytes(self) -> int:
        return self.places.nbytes + self.values.nbytes

    @torch.no_grad()
    def restore(self) -> None:
        back = _subtract(self.target, self.delta())
        back.view(-1)[self.places.to(back.device, torch.int64)] = self.values.to(back.device)
        if _checksum(back) != self.checksum:
            raise MergeError(
                "the patch would not restore the weight bit for bit (the merged weight, or the way matrices are "
                "multiplied here, has changed since); nothing was changed. Load the base again, or use undo='snapshot'"
            )
        self.target.copy_(back)


def _subtract(merged: Tensor, delta: Tensor) -> Tensor:
    return (merged.to(delta.dtype) - delta).to(merged.dtype).contiguous()


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _checksum(tensor: Tensor) -> tuple[int, int]:
    """Sums over the bits by row and by column, each weighted by its place: any one changed entry changes both."""
    bits = _bits(tensor).flatten(1) if tensor.ndim > 1 else _bits(tensor).unsqueeze(0)
    sums = (bits.sum(1, dtype=torch.int64), bits.sum(0, dtype=torch.int64))
    first, second = (int((s * torch.arange(1, s.numel() + 1, device=s.device)).sum()) for s in sums)
    return first, second
