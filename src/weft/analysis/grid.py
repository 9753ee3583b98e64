"""A number for each block of a model and each kind of module in it: what a heat map shows."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from weft.analysis.inspect import AdapterNumbers
from weft.patterns import block_index, open_index


@dataclass(frozen=True)
class BlockGrid:
    """Numbers by block and kind of module.

    Attributes:
        blocks: the blocks' indices, ascending; None, last, for modules outside the blocks.
        kinds: the modules' names within a block, as short as tells them apart: ``q_proj``.
        cells: a row for each block, a number for each kind; None where the adapter has no such module.
    """

    blocks: tuple[int | None, ...]
    kinds: tuple[str, ...]
    cells: tuple[tuple[float | None, ...], ...]

    def by_block(self) -> tuple[float, ...]:
        """The sum of each row."""
        return tuple(math.fsum(cell for cell in row if cell is not None) for row in self.cells)

    def by_kind(self) -> tuple[float, ...]:
        """The sum of each column."""
        return tuple(math.fsum(row[k] or 0.0 for row in self.cells) for k in range(len(self.kinds)))


def block_grid(values: Mapping[str, float], combine: Callable[[Sequence[float]], float] = math.fsum) -> BlockGrid:
    """Sorts modules' values by block and kind.

    Args:
        values: module path -> number.
        combine: what becomes of several of one cell, such as the experts of a block.
    """
    kinds = short_names([open_index(path) for path in values])
    cells: dict[tuple[int | None, str], list[float]] = {}
    for path, value in values.items():
        cells.setdefault((block_index(path), kinds[open_index(path)]), []).append(value)
    blocks = sorted({block for block, _ in cells}, key=lambda block: math.inf if block is None else block)
    names = tuple(dict.fromkeys(kinds[open_index(path)] for path in values))
    return BlockGrid(
        tuple(blocks),
        names,
        tuple(
            tuple(combine(cells[block, kind]) if (block, kind) in cells else None for kind in names) for block in blocks
        ),
    )


def energy_shares(numbers: AdapterNumbers) -> BlockGrid:
    """The share of each block and kind in the energy of all changes, the sum of ||D||_F^2; all zero if that is."""
    largest = max((m.spectrum.norm for m in numbers.modules), default=0.0) or 1.0
    energies = {m.path: (m.spectrum.norm / largest) ** 2 for m in numbers.modules}
    total = math.fsum(energies.values()) or 1.0
    return block_grid({path: energy / total for path, energy in energies.items()})


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean, for `block_grid`."""
    return math.fsum(values) / len(values)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Name -> the fewest of its last parts that no other of the names ends in."""
    every = dict.fromkeys(names)
    counts: dict[str, int] = {}
    for name in every:
        for ending in _endings(name):
            counts[ending] = counts.get(ending, 0) + 1
    return {name: next((ending for ending in _endings(name) if counts[ending] == 1), name) for name in every}


def _endings(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[-k:]) for k in range(1, len(parts) + 1)]
