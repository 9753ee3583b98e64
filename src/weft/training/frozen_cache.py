"""The output of the frozen blocks for every row of a run's data, on disk: computed once, read in every epoch.

It is kept by row, whatever batches the rows are put into, in one memory-mapped file of (tokens, d) in the model's
dtype. The file's name is a hash of all that decides its values, so that a file of that name is the right one.
"""

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import torch
import transformers
from rich.console import Console
from rich.progress import track
from torch import Tensor

from weft.data.text import TextDataset
from weft.errors import TrainingError
from weft.model import base_fingerprint
from weft.training.frozen_blocks import FROZEN_STATES, FrozenBlocks

Rows = list[Mapping[str, list[int]]]
Collate = Callable[[Rows], dict[str, Tensor]]

_CHECKED_ROWS = 4


class NumberedDataset(TextDataset):
    """A data set whose items say, as {"row": [n]}, which row of the cache they are.

    Args:
        data: the data set.
        first: the number of its first row.
    """

    def __init__(self, data: TextDataset, first: int) -> None:
        super().__init__(data.examples, data.report.dropped)
        self.first = first

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {**super().__getitem__(index), "row": [self.first + index]}


@dataclass(frozen=True)
class FrozenCache:
    """The frozen blocks' output for the rows of some data sets.

    Attributes:
        datasets: the data sets, with their rows numbered through.
        states: (tokens, d), of all rows one after the other.
        starts: where each row starts in them; at last, where the last one ends.
    """

    datasets: Sequence[TextDataset]
    states: Tensor
    starts: Sequence[int]

    def collator(self, collate: Collate) -> Collate:
        """Makes batches of these data sets as `collate` does, with their states as `FROZEN_STATES`, (rows, T, d)."""

        def with_states(rows: Rows) -> dict[str, Tensor]:
            batch, places = _laid_out(collate, rows)
            real = places >= 0
            numbers = [row["row"][0] for row in rows]
            states = torch.cat([self.states[self.starts[number] : self.starts[number + 1]] for number in numbers])
            laid = states.new_zeros(*places.shape, states.shape[1])
            laid[real] = states[places[real]]
            return {**batch, FROZEN_STATES: laid}

        return with_states


@contextmanager
def frozen_cache(
    blocks: FrozenBlocks,
    datasets: Sequence[TextDataset],
    collate: Collate,
    folder: Path,
    *,
    batch_size: int,
    console: Console | None = None,
) -> Iterator[FrozenCache]:
    """The frozen blocks' output for every row, which `blocks.model` takes while this is open.

    Args:
        blocks: of the model.
        datasets: their rows are run once through the frozen blocks, unless the folder has their output already.
        collate: makes a batch; what it does with token ids is done with the states.
        folder: where to keep them; made if it is not there, and for the caller to delete.
        batch_size: rows to run at a time.
        console: where to say how many bytes it takes, and to show progress.

    Raises:
        ConfigError: the model cannot skip its frozen blocks; see `FrozenBlocks.check`.
        TrainingError: the disk has too little room.
        OSError: the disk does not take it.
    """
    firsts = [0, *accumulate(len(data) for data in datasets)]
    numbered: list[TextDataset] = [NumberedDataset(data, first) for data, first in zip(datasets, firsts, strict=False)]
    rows: Rows = [data[i] for data in numbered for i in range(len(data))]
    starts = [0, *accumulate(len(row["input_ids"]) for row in rows)]

    few = sorted(rows, key=_length)[:: -(-len(rows) // _CHECKED_ROWS)]
    batch, places = _laid_out(collate, few)
    like = blocks.check(_inputs(batch, blocks), (places >= 0).to(blocks.model.device))  # (rows, T, d)
    shape = (starts[-1], like.shape[-1])
    path = folder / f"{_key(blocks, rows, like.dtype, collate, batch_size)}.bin"
    if not path.is_file():
        _say_or_refuse(blocks, folder, shape[0], shape[0] * shape[1] * like.dtype.itemsize, console)
        with _new_file(path) as file:
            _record(blocks, rows, starts, collate, file, batch_size, console)
    states = torch.from_file(str(path), shared=False, size=shape[0] * shape[1], dtype=like.dtype).view(shape)
    with blocks.skippable():
        yield FrozenCache(numbered, states, starts)


def _record(
    blocks: FrozenBlocks,
    rows: Rows,
    starts: Sequence[int],
    collate: Collate,
    file: BinaryIO,
    batch_size: int,
    console: Console | None,
) -> None:
    """Writes the frozen blocks' output for every row, each at its start."""
    # The longest rows first: too little memory shows at once.
    order = sorted(range(len(rows)), key=lambda i: -_length(rows[i]))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    was_training = blocks.model.training
    blocks.model.eval()
    for numbers in track(batches, "frozen blocks", console=console, disable=console is None):
        batch, places = _laid_out(collate, [rows[i] for i in numbers])
        real = places >= 0
        laid = blocks.states(_inputs(batch, blocks)).cpu()  # (rows, T, d)
        states = laid.new_empty(int(real.sum()), laid.shape[-1])  # (tokens, d), as the rows follow each other
        states[places[real]] = laid[real]
        for i, own in zip(numbers, states.split([_length(rows[i]) for i in numbers]), strict=True):
            file.seek(starts[i] * laid.shape[-1] * laid.dtype.itemsize)
            file.write(own.view(torch.uint8).numpy().tobytes())
    blocks.model.train(was_training)


def _laid_out(collate: Collate, rows: Rows) -> tuple[dict[str, Tensor], Tensor]:
    """A batch, and which of its rows' tokens, counted through all of them, stands where: (rows, T), negative for none.

    The collator is given the tokens' numbers (as -1, -2, ...: no token has such an id) in their place, so that it
    shows where it puts them, whatever the layout.
    """
    ends = list(accumulate(map(_length, rows)))
    numbers = [list(range(-1 - end + _length(row), -1 - end, -1)) for row, end in zip(rows, ends, strict=True)]
    batch = collate([{"input_ids": own, "labels": row["labels"]} for own, row in zip(numbers, rows, strict=True)])
    places = -1 - batch["input_ids"]
    ids = torch.tensor([token for row in rows for token in row["input_ids"]])
    batch["input_ids"] = torch.where(places >= 0, ids[places.clamp(min=0)], batch["input_ids"])
    return batch, places


def _inputs(batch: Mapping[str, Tensor], blocks: FrozenBlocks) -> dict[str, Tensor]:
    """What the model is called with."""
    return {name: value.to(blocks.model.device) for name, value in batch.items() if name != "labels"}


def _length(row: Mapping[str, list[int]]) -> int:
    return len(row["input_ids"])


def _key(blocks: FrozenBlocks, rows: Rows, dtype: torch.dtype, collate: Collate, batch_size: int) -> str:
    """A hash of what decides the states, rounding included: base, cut, rows, and how they are computed."""
    what = [
        base_fingerprint(blocks.model).to_dict(), blocks.path, blocks.count, str(dtype), blocks.model.device.type,
        type(collate).__name__, batch_size, torch.__version__, transformers.__version__,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(what).encode())
    for row in rows:
        digest.update(array("q", [_length(row), *row["input_ids"]]).tobytes())
    return digest.hexdigest()[:32]


def _say_or_refuse(blocks: FrozenBlocks, folder: Path, tokens: int, size: int, console: Console | None) -> None:
    """Says how many bytes the states take, before they are made; raises TrainingError if the disk has not so many."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    needed = f"the output of {blocks.count} frozen blocks for {tokens:,} tokens takes {size / 1e6:,.1f} MB"
    if size > free:
        raise TrainingError(
            f"cache_frozen: {needed}, and {free / 1e6:,.1f} MB are free in {folder}; make room, choose another output, "
            "or turn cache_frozen off"
        )
    if console is not None:
        console.print(f"{needed} in {folder}, until the run has ended", soft_wrap=True, markup=False)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which is at `path` when all has been written, and not before."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
