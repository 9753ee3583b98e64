"""Where an adapter's learned prompt stands in a row of ids."""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
Lay = Callable[[Rows], Rows]
"""Lays a prompt into the rows of a batch; `weft.model.LayPrompt` is one. A collator calls it on what it is given."""


def lay_none(rows: Rows) -> Rows:
    """The rows as they are."""
    return rows


def lay_prompt(prompt: Sequence[int], ids: Sequence[int], special: Container[int] = ()) -> list[int]:
    """The row's ids with the prompt's before them; behind the first, if that is special and marks the beginning."""
    head = _head(ids, special)
    return [*ids[:head], *prompt, *ids[head:]]


def lay_labels(
    length: int, ids: Sequence[int], labels: Sequence[int], ignored: int, special: Container[int] = ()
) -> list[int]:
    """The labels of such a row, one for each id: a prompt is not learned, and the first token is learned no more than
    without one, so that losses can be compared."""
    head = _head(ids, special)
    return [ignored] * (length + 1) + list(labels[1:]) if not head else [*labels[:1], *[ignored] * length, *labels[1:]]


def _head(ids: Sequence[int], special: Container[int]) -> int:
    return 1 if len(ids) and ids[0] in special else 0
