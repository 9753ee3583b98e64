"""Sources with their targets, such as dialogues with summaries: one pair for each reference of a row."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from weft.data.rows import Row, read_rows
from weft.data.text import (
    INPUT,
    Encoding,
    Example,
    LongRows,
    TextDataset,
    completed,
    encoded,
    ended,
    filled,
    ids_of,
    missing,
)
from weft.errors import DataError, nearest


@dataclass(frozen=True)
class PairColumns:
    """The names of the columns.

    Attributes:
        source: of what the model reads.
        target: of what it is to write. Several columns, or a list in one, are several references; equal ones count
            once.
    """

    source: str
    target: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """A source, one target for it, and where they stand in words."""

    source: str
    target: str
    where: str


def read_pairs(source: str | Path, columns: PairColumns, split: str = "train") -> Iterator[Pair]:
    """The pairs of a data set, in its order; those of one row follow one another.

    Args:
        source: what `read_rows` takes.
        columns: the names of the columns.
        split: the split to read, where there are several.

    Raises:
        DataError: nothing to read, or a row without a source or a target; the message names the file and line.
    """
    empty = True
    for row in read_rows(source, split):
        if empty and not (columns.source in row.values and any(name in row.values for name in columns.target)):
            raise _unknown(row, columns)
        empty = False
        text = filled(row, columns.source)
        yield from (Pair(text, target, row.where) for target in _targets(row, columns.target))
    if empty:
        raise DataError(f"{source}: the data set is empty")


def load_pairs(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    columns: PairColumns,
    *,
    prompt: str = INPUT,
    split: str = "train",
    max_length: int | None = None,
    long_rows: LongRows = "truncate",
) -> TextDataset:
    """Reads pairs, and tokenizes them for a causal language model: a prompt with the source, and the target.

    A pair longer than `max_length` loses the end of its source; the prompt's words around it, and the target, stay. Of
    several pairs with one source, all lose what the longest has to.

    Args:
        source, columns, split: as of `read_pairs`.
        tokenizer: the base's.
        prompt: the prompt's wording; the source stands at ``{input}``.
        max_length: tokens in a row at most; None for no limit.
        long_rows: as of `load_text`.

    Raises:
        DataError: as of `read_pairs`, or a row that is too long.
        ConfigError: the tokenizer has no end-of-sequence token.
    """

    pairs = list(read_pairs(source, columns, split))
    targets: dict[str, list[str]] = {}
    for pair in pairs:
        targets.setdefault(pair.source, []).append(pair.target)

    @cache
    def cut(text: str) -> str | None:
        """The source with room for the longest of its targets, so that all of them have one prompt."""
        assert max_length is not None
        room = max_length - max(len(ended(ids_of(target, tokenizer), tokenizer)) for target in targets[text])
        fits = len(ids_of(prompt.replace(INPUT, text), tokenizer, start=True)) <= room
        return text if fits else shortened(text, prompt, room, tokenizer)

    def encode(pair: Pair) -> Example:
        kept = cut(pair.source) if max_length is not None and long_rows == "truncate" else None
        kept = pair.source if kept is None else kept
        whole = completed(prompt.replace(INPUT, kept), pair.target, tokenizer)
        return Example(whole.input_ids, whole.labels, truncated=kept != pair.source)

    return encoded(source, pairs, Encoding[Pair](encode, lambda pair, example, n: None), max_length, long_rows)


def shortened(text: str, prompt: str, room: int, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A text without its end, so that the prompt with it has `room` tokens at most; None if no token of it fits."""
    ids = ids_of(text, tokenizer)
    keep = len(ids)
    while keep > 0:
        kept = str(tokenizer.decode(ids[:keep])).rstrip("\ufffd")  # half a character
        over = len(ids_of(prompt.replace(INPUT, kept), tokenizer, start=True)) - room
        if over <= 0:
            return kept
        keep -= over
    return None


def _targets(row: Row, names: tuple[str, ...]) -> list[str]:
    found = []
    for name in names:
        value = row.values.get(name)
        if isinstance(value, list):
            wrong = next((each for each in value if not isinstance(each, str) or not each.strip()), None)
            if wrong is not None:
                raise DataError(f"{row.where}: expected a list of texts in the column {name!r}, one is {wrong!r}")
            found += value
        elif value is not None:
            found.append(filled(row, name))
    if not found:
        raise missing(row, names[0])
    return list(dict.fromkeys(found))


def _unknown(first: Row, columns: PairColumns) -> DataError:
    names = (columns.source, *columns.target)
    hint = next((text for name in first.values if (text := nearest(name, names, 1))), "")
    return DataError(
        f"{first.where}: expected the columns {columns.source!r} and {' or '.join(map(repr, columns.target))}; found "
        f"{', '.join(map(repr, first.values)) or 'none'}{hint}. Rename the columns, or name yours in the settings"
    )
