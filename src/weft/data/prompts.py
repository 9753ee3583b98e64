"""Where an adapter's learned prompt stands in a row of ids."""

from collections.abc import Container, Sequence


def lay_prompt(prompt: Sequence[int], ids: Sequence[int], special: Container[int] = ()) -> list[int]:
    """The row's ids with the prompt's before them; behind the first, if that is special and marks the beginning."""
    head = 1 if ids and ids[0] in special else 0
    return [*ids[:head], *prompt, *ids[head:]]
