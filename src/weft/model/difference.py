"""What fine-tuning did to one stored tensor, W' - W, read from two checkpoints without holding either tensor."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from weft.errors import FormatError
from weft.linalg import RowBlocks
from weft.model.shards import Checkpoint, StoredTensor

# A difference of up to so many values (256 MiB in float32) is held; a larger one is read anew, in such blocks, for
# each pass. Files are read so many values at a time, so that nothing else of a block's size is made.
BLOCK_VALUES, PIECE_VALUES = 2**26, 2**21


class Sizes(NamedTuple):
    """The Frobenius norms ||W' - W|| and ||W||."""

    change: float
    base: float

    @property
    def relative(self) -> float:
        """||W' - W|| / ||W||; infinite where W is zero."""
        return self.change / self.base if self.base else math.inf


class Difference(RowBlocks):
    """W' - W of one tensor, flattened to a matrix (first dimension, all others), in float32 (float64 for float64).

    Subtracting in float32 is exact, or nearly so, for stored bfloat16 and float16; what the difference holds of their
    own rounding stays in it.
    """

    def __init__(self, base: Checkpoint, base_key: str, finetuned: Checkpoint, finetuned_key: str) -> None:
        self._sides = ((base, base.tensors[base_key]), (finetuned, finetuned.tensors[finetuned_key]))
        stored = self._sides[0][1]
        rows = stored.shape[0] if stored.shape else 1
        self.shape = (rows, math.prod(stored.shape) // max(rows, 1))
        self._dtype = torch.float64 if any(t.dtype is torch.float64 for _, t in self._sides) else torch.float32
        self._held: Tensor | None = None

    def changed(self) -> bool:
        """Whether W' differs from W as it would be stored in the dtype of W' (if it is a floating-point one)."""
        names = {stored.dtype_name for _, stored in self._sides}
        if len(names) > 1 and any(stored.dtype is None for _, stored in self._sides):
            return True
        return not all(torch.equal(base.to(tuned.dtype), tuned) for base, tuned in self._pieces(0, self.shape[0]))

    def blocks(self) -> Iterator[Tensor]:
        """W' - W in blocks of rows; a small one is held from the first call on."""
        if self._held is not None:
            yield self._held
            return
        rows, columns = self.shape
        step = _rows(BLOCK_VALUES, columns)
        for start in range(0, rows, step):
            end = min(start + step, rows)
            block = torch.empty(end - start, columns, dtype=self._dtype)
            done = 0
            for base, tuned in self._pieces(start, end):
                part = block[done : done + len(base)]
                torch.sub(tuned.to(self._dtype), base.to(self._dtype), out=part)
                done += len(base)
            if len(block) == rows:
                self._held = block
            yield block

    def sizes(self) -> Sizes:
        """Both norms.

        Raises:
            FormatError: NaN or infinity, in the base or in the fine-tuned tensor.
        """
        change = math.hypot(*(float(torch.linalg.vector_norm(block)) for block in self.blocks()))
        if not math.isfinite(change):
            self._check_finite()
        pieces = self._pieces(0, self.shape[0])
        norms = [float(torch.linalg.vector_norm(base, dtype=self._dtype)) for base, _ in pieces]
        return Sizes(change, math.hypot(*norms))

    def _check_finite(self) -> None:
        for side, (checkpoint, stored) in enumerate(self._sides):
            if not all(bool(piece[side].isfinite().all()) for piece in self._pieces(0, self.shape[0])):
                raise FormatError(
                    f"{checkpoint.folder / stored.file}: {stored.name} holds NaN or infinity; there is no difference "
                    "to take. Look for a checkpoint from before the training diverged"
                )

    def _pieces(self, start: int, end: int) -> Iterator[tuple[Tensor, Tensor]]:
        """These rows of both tensors, as matrices (b, n), mapped from their files a few at a time."""
        step = _rows(PIECE_VALUES, self.shape[1])
        for first in range(start, end, step):
            # Opened anew for each piece: what was mapped of a file counts as memory until it is closed.
            base, tuned = (_read(*side, first, min(first + step, end)) for side in self._sides)
            yield base, tuned


def _rows(values: int, columns: int) -> int:
    return max(values // max(columns, 1), 1)


def _read(checkpoint: Checkpoint, stored: StoredTensor, start: int, end: int) -> Tensor:
    with safe_open(checkpoint.folder / stored.file, "pt") as file:
        tensor: Tensor = file.get_slice(stored.name)[start:end] if stored.shape else file.get_tensor(stored.name)
    return tensor.reshape(end - start, -1)
