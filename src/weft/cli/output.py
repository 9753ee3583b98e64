"""What commands print, and where: results on stdout, everything else on stderr."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table


def results() -> Console:
    """The console on stdout: what was asked for."""
    return Console(highlight=False)


def errors() -> Console:
    """The console on stderr: progress, remarks and errors."""
    return Console(stderr=True, highlight=False)


def print_json(document: Mapping[str, Any]) -> None:
    """Prints the one document of a ``--json`` run; a number that JSON lacks (infinity, NaN) becomes null."""
    print(json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False))


def table(rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> Table:
    """A table of plain text with module paths in its first column.

    Args:
        rows: its lines, the heading first.
        right: the columns that hold numbers.
    """
    (first, *others), *lines = rows
    prefix = _common_parts([line[0] for line in lines])
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", title_justify="left")
    made.title = escape(f"under {prefix}:") if prefix else None
    made.add_column(first, overflow="fold")
    for column in others:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    for name, *cells in lines:
        made.add_row(*map(escape, [name.removeprefix(f"{prefix}."), *cells]))
    return made


def _common_parts(paths: Sequence[str]) -> str:
    """The leading parts that all of several paths have, short of a whole path."""
    if len(paths) < 2:
        return ""
    common: list[str] = []
    for parts in zip(*(path.split(".")[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def size(nbytes: float) -> str:
    """A size for a person: ``12.3 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes:.0f} bytes"


def tracked(description: str) -> Callable[[list[str]], Iterable[str]]:
    """Goes through a list under a progress bar, where somebody looks."""
    console = errors()
    return partial(track, description=description, console=console, transient=True, disable=not console.is_terminal)


def quiet_transformers() -> None:
    """Keeps transformers' own progress bars and remarks off the terminal; its warnings stay."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
