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
    return lay_at(head_of(ids, special), prompt, ids)


def lay_at(head: int, prompt: Sequence[int], values: Sequence[int]) -> list[int]:
    """What belongs to a row's ids, with what belongs to its prompt behind the first `head`."""
    return [*values[:head], *prompt, *values[head:]]


def lay_labels(head: int, length: int, labels: Sequence[int], ignored: int) -> list[int]:
    """The labels of a row with a prompt: that is not learned, and the first token no more than it is without one.

    So the same tokens are learned, and losses can be compared.
    """
    return lay_at(head, [ignored] * length, labels if head else [ignored, *labels[1:]])


def head_of(ids: Sequence[int], special: Container[int]) -> int:
    """How many ids stand before the prompt: 1 if the first is special, else 0."""
    return 1 if len(ids) and ids[0] in special else 0
