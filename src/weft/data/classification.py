"""Texts, or pairs of texts, with a label each, as token ids."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from weft.data.prompts import Lay, Rows, lay_none
from weft.data.rows import Row, read_rows
from weft.data.text import IGNORED, LongRows, filled, missing, none_left, padded, split_rows, too_long
from weft.errors import DataError, nearest

TEXT, SENTENCE = "text", "sentence"
_LISTED = 8  # labels that a sentence lists


@dataclass(frozen=True)
class ClassColumns:
    """The names of the columns; `pair` holds second texts, where a label belongs to two."""

    text: str = TEXT
    pair: str | None = None
    label: str = "label"


@dataclass(frozen=True)
class Text:
    """What a label belongs to, one text or two, and where it stands in words."""

    first: str
    second: str | None
    where: str

    @property
    def key(self) -> str:
        """The same for texts that differ in case and white space alone."""
        return " ".join(str(self).split()).casefold()

    def __str__(self) -> str:
        return self.first if self.second is None else f"{self.first}\n{self.second}"


@dataclass(frozen=True)
class LabeledText:
    """A text and its label; None where it is to be found out."""

    text: Text
    label: str | None


@dataclass(frozen=True)
class ClassReport:
    """What became of a data set's rows.

    Attributes:
        rows: rows kept.
        truncated: of these, rows that were longer than the maximum and lost their right.
        dropped: rows left out because they were too long.
        tokens: tokens in the rows kept.
        labels: label -> rows that have it, in the order of the head's outputs.
    """

    rows: int
    truncated: int
    dropped: int
    tokens: int
    labels: Mapping[str, int]

    def __str__(self) -> str:
        text = f"{self.rows:,} rows, {self.tokens:,} tokens, {len(self.labels)} labels: {label_counts(self.labels)}"
        if self.truncated:
            text += f"; {self.truncated:,} rows truncated"
        if self.dropped:
            text += f"; {self.dropped:,} rows too long and left out"
        return text


def label_counts(labels: Mapping[str, int]) -> str:
    """How many rows have each label, in words; of many labels, the fewest and the most."""
    if len(labels) <= _LISTED:
        return ", ".join(f"{label} {count:,}" for label, count in labels.items())
    return f"{min(labels.values()):,} to {max(labels.values()):,} rows each"


@dataclass(frozen=True)
class ClassExample:
    """One row as token ids.

    Attributes:
        input_ids: of the text or the pair, with the tokenizer's special tokens.
        token_type_ids: which of two texts a token is in, where the tokenizer says so.
        label: the index of the label; `IGNORED` where it is to be found out.
        text: what was read.
        truncated: whether it lost its right.
    """

    input_ids: Sequence[int]
    token_type_ids: Sequence[int] | None
    label: int
    text: Text
    truncated: bool = False


class ClassDataset(Dataset[dict[str, Any]]):
    """Examples in memory, and the names of their labels.

    An item is {"input_ids": [...], "labels": the label's index}, and "token_type_ids" where there are some.
    """

    def __init__(self, examples: Sequence[ClassExample], names: Sequence[str], dropped: int = 0) -> None:
        self.examples, self.names = examples, tuple(names)
        counts = Counter(example.label for example in examples)
        self.report = ClassReport(
            rows=len(examples),
            truncated=sum(example.truncated for example in examples),
            dropped=dropped,
            tokens=sum(len(example.input_ids) for example in examples),
            labels={name: counts[i] for i, name in enumerate(names)},
        )

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        types = {} if example.token_type_ids is None else {"token_type_ids": list(example.token_type_ids)}
        return {"input_ids": list(example.input_ids), **types, "labels": example.label}

    @property
    def lengths(self) -> list[int]:
        """Tokens in each row."""
        return [len(example.input_ids) for example in self.examples]

    def split(self, share: float, seed: int) -> tuple["ClassDataset", "ClassDataset"]:
        """Two data sets: the rest, and a share as `split_rows` chooses it; rows with the same text stay together.

        Raises:
            DataError: there are fewer than two texts.
        """
        rest, held = split_rows([example.text.key for example in self.examples], share, seed)
        return (
            ClassDataset([self.examples[i] for i in rest], self.names, self.report.dropped),
            ClassDataset([self.examples[i] for i in held], self.names),
        )


def text_of_row(row: Row, columns: ClassColumns) -> Text:
    """The text, or the two, of a row.

    Raises:
        DataError: there is none, or nothing in it.
    """
    named = SENTENCE if columns.text == TEXT and TEXT not in row.values and SENTENCE in row.values else columns.text
    return Text(filled(row, named), None if columns.pair is None else filled(row, columns.pair), row.where)


def read_labeled(source: str | Path, columns: ClassColumns, split: str = "train") -> list[LabeledText]:
    """The texts of a data set with their labels; a label is text, or a whole number.

    Raises:
        DataError: nothing to read, or a row without a text or a label; the message names the file and line.
    """
    return [LabeledText(text_of_row(row, columns), _label(row, columns.label)) for row in _rows(source, split)]


def learned_names(source: str | Path, rows: Sequence[LabeledText]) -> tuple[str, ...]:
    """The labels of training data, sorted: whole numbers by their size, anything else as text.

    Raises:
        DataError: they all have the same label.
    """
    names = {row.label for row in rows if row.label is not None}
    if len(names) == 1:
        raise DataError(f"{source}: every row has the label {names.pop()!r}; to tell labels apart takes two at least")
    return tuple(sorted(names, key=int) if all(map(_is_whole, names)) else sorted(names))


def encoded_texts(
    source: str | Path,
    rows: Sequence[LabeledText],
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    pair_types: bool = False,
    max_length: int | None = None,
    long_rows: LongRows = "truncate",
) -> ClassDataset:
    """Labelled texts as token ids, with the special tokens that the tokenizer gives a text or a pair.

    Args:
        source: what the rows were read from, for messages.
        rows: the texts and their labels.
        names: the labels that there may be, in the order of the head's outputs.
        tokenizer: the base's.
        pair_types: say of each token which of two texts it is in, for a model that asks for it.
        max_length: tokens in a row at most; None for no limit.
        long_rows: what to do with longer ones: "truncate" them on the right (of a pair, the longer text first), "drop"
            them, or raise an "error".

    Raises:
        DataError: a label that is not among the names, or a row that is too long; the message names the row.
    """
    indices = {name: index for index, name in enumerate(names)}
    examples: list[ClassExample] = []
    dropped = 0
    for row in rows:
        if row.label is not None and row.label not in indices:
            raise _unknown(row, row.label, names)
        read = tokenizer(row.text.first, row.text.second, return_token_type_ids=pair_types, verbose=False)
        length = len(read["input_ids"])
        truncated = max_length is not None and length > max_length
        if truncated:
            assert max_length is not None
            if long_rows == "error":
                raise too_long(row.text.where, f"{length} tokens", max_length)
            if long_rows == "drop":
                dropped += 1
                continue
            read = tokenizer(
                row.text.first,
                row.text.second,
                return_token_type_ids=pair_types,
                truncation=True,
                max_length=max_length,
            )
        types = read.get("token_type_ids")
        examples.append(
            ClassExample(
                array("i", read["input_ids"]),
                None if types is None else array("b", types),
                IGNORED if row.label is None else indices[row.label],
                row.text,
                truncated,
            )
        )
    if not examples:
        raise none_left(source, dropped, max_length)
    return ClassDataset(examples, names, dropped)


@dataclass(frozen=True)
class ClassCollator:
    """Pads a batch of rows on the right; `lay` puts a prompt into each before.

    Returns input_ids, attention_mask (0 on padding) and, where the tokenizer makes them, token_type_ids, each
    (rows, longest), and labels, (rows), all int64.
    """

    pad_id: int
    lay: Lay = lay_none

    def __call__(self, rows: Rows) -> dict[str, Tensor]:
        rows = self.lay(rows)
        batch = {
            "input_ids": padded([row["input_ids"] for row in rows], self.pad_id),
            "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"] = padded([row["token_type_ids"] for row in rows], 0)
        return batch


def _rows(source: str | Path, split: str) -> list[Row]:
    rows = list(read_rows(source, split))
    if not rows:
        raise DataError(f"{source}: the data set is empty")
    return rows


def _label(row: Row, column: str) -> str:
    if column not in row.values:
        raise missing(row, column)
    value = row.values[column]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int) or not str(value).strip():
        raise DataError(
            f"{row.where}: expected a label in the column {column!r}, text or a whole number; found {value!r}"
        )
    return str(value).strip()


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _unknown(row: LabeledText, label: str, names: Sequence[str]) -> DataError:
    listed = ", ".join(map(repr, names[:_LISTED])) + (f" and {len(names) - _LISTED} more" if names[_LISTED:] else "")
    return DataError(
        f"{row.text.where}: the label {label!r} is none that is learned{nearest(label, names)} (they are "
        f"{listed}); correct the row, or add training rows that have it"
    )
