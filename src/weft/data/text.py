"""Text data as token ids: the loss is taken on the completion, or on what the assistant says.

Prompt and completion are tokenized apart and joined, so that the boundary between them is the one that
generation will see.
"""

import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weft.data.chat import chat_segments
from weft.data.rows import Row, read_rows
from weft.errors import ConfigError, DataError, nearest

IGNORED = -100  # the label on which transformers takes no loss

LongRows = Literal["truncate", "drop", "error"]


@dataclass(frozen=True)
class Columns:
    """The names of the columns that hold the text; the first kind that a data set has is used, in this order."""

    messages: str = "messages"
    prompt: str = "prompt"
    completion: str = "completion"
    text: str = "text"


@dataclass(frozen=True)
class DataReport:
    """What became of a data set's rows.

    Attributes:
        rows: rows kept.
        truncated: of these, rows that were longer than the maximum and lost tokens.
        dropped: rows left out because they were too long.
        tokens: tokens in the rows kept.
        label_tokens: of these, the tokens on which the loss is taken.
    """

    rows: int
    truncated: int
    dropped: int
    tokens: int
    label_tokens: int

    def __str__(self) -> str:
        text = f"{self.rows:,} rows, {self.tokens:,} tokens, {self.label_tokens:,} of them learned"
        if self.truncated:
            text += f"; {self.truncated:,} rows truncated"
        if self.dropped:
            text += f"; {self.dropped:,} rows too long and left out"
        return text


@dataclass(frozen=True)
class Example:
    """One row as token ids; `labels` are the same ids, and `IGNORED` where no loss is taken."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    truncated: bool = False

    @property
    def prompt_length(self) -> int:
        """Tokens before the last stretch that is learned: what generation is given. 0 for plain text."""
        end = len(self.labels)
        while end and self.labels[end - 1] == IGNORED:
            end -= 1
        while end and self.labels[end - 1] != IGNORED:
            end -= 1
        return end


class TextDataset(Dataset[dict[str, list[int]]]):
    """Examples in memory; an item is {"input_ids": [...], "labels": [...]}, as transformers' Trainer takes it."""

    def __init__(self, examples: list[Example], dropped: int = 0) -> None:
        self.examples = examples
        self.report = DataReport(
            rows=len(examples),
            truncated=sum(example.truncated for example in examples),
            dropped=dropped,
            tokens=sum(len(example.input_ids) for example in examples),
            label_tokens=sum(label != IGNORED for example in examples for label in example.labels[1:]),
        )

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def longest(self) -> int:
        """Tokens in the longest row."""
        return max(len(example.input_ids) for example in self.examples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        example = self.examples[index]
        return {"input_ids": list(example.input_ids), "labels": list(example.labels)}

    def split(self, share: float, seed: int) -> tuple["TextDataset", "TextDataset"]:
        """Two data sets: the rest, and a share chosen at random by the seed (one row at least).

        Raises:
            DataError: there are fewer than two rows.
        """
        if len(self) < 2:
            raise DataError("one row cannot be split into training and evaluation; give an evaluation file")
        count = min(max(1, round(share * len(self))), len(self) - 1)
        held = set(random.Random(seed).sample(range(len(self)), count))
        rest = [example for i, example in enumerate(self.examples) if i not in held]
        return TextDataset(rest, self.report.dropped), TextDataset([self.examples[i] for i in sorted(held)])


def load_text(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str = "train",
    columns: Columns = Columns(),
    max_length: int | None = None,
    long_rows: LongRows = "truncate",
) -> TextDataset:
    """Reads and tokenizes a text data set.

    A row holds chat messages, a prompt and a completion, or plain text; the first row decides which. A row longer
    than `max_length` loses the left of its prompt (plain text: its right); one whose last answer alone does not
    fit is left out, since a cut answer would teach the model not to stop. The data set's report counts both.

    Args:
        source: what `read_rows` takes.
        tokenizer: the base's; it needs an end-of-sequence token.
        split: the split to read, where there are several.
        columns: the names of the columns.
        max_length: tokens in a row at most; None for no limit.
        long_rows: what to do with longer rows: "truncate" as above, "drop" them, or raise an "error".

    Raises:
        DataError: nothing to read, or a row without its column, with an empty completion, or too long; the message
            names the file and line.
        ConfigError: the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("the base's tokenizer has no end-of-sequence token, so a model could not learn to stop")
    rows = read_rows(source, split)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source}: the data set is empty")
    encode, keep = _encoder(first, columns, tokenizer)
    examples: list[Example] = []
    dropped = 0
    for row in _chain(first, rows):
        example = encode(row)
        length = len(example.input_ids)
        if max_length is not None and length > max_length:
            if long_rows == "error":
                raise DataError(
                    f"{row.where}: {length} tokens, and max_length is {max_length}; shorten the row, raise max_length, "
                    "or let long_rows be 'truncate' or 'drop'"
                )
            shorter = keep(example, max_length) if long_rows == "truncate" else None
            if shorter is None:
                dropped += 1
                continue
            example = shorter
        if all(label == IGNORED for label in example.labels[1:]):
            raise DataError(f"{row.where}: the row is too short; a token is learned from those before it")
        # 4 bytes a token instead of a list's 36
        examples.append(Example(array("i", example.input_ids), array("i", example.labels), example.truncated))
    if not examples:
        raise DataError(f"{source}: all {dropped} rows are longer than max_length = {max_length} tokens; raise it")
    return TextDataset(examples, dropped)


def context_length(model: PreTrainedModel) -> int | None:
    """The longest sequence, in tokens, that the model's configuration allows; None if it names no limit."""
    values = model.config.get_text_config().to_dict()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(values.get(name), int):
            return int(values[name])
    return None


@dataclass(frozen=True)
class Collator:
    """Pads a batch of rows on the right.

    Returns input_ids, attention_mask (0 on padding) and labels (`IGNORED` on padding), each (rows, longest), int64.
    """

    pad_id: int

    def __call__(self, rows: list[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(values: list[list[int]], fill: int) -> Tensor:
            return torch.tensor([v + [fill] * (longest - len(v)) for v in values])

        ids = [row["input_ids"] for row in rows]
        return {
            "input_ids": padded(ids, self.pad_id),
            "attention_mask": padded([[1] * len(v) for v in ids], 0),
            "labels": padded([row["labels"] for row in rows], IGNORED),
        }


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with; any will do, since padding is masked."""
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    assert isinstance(padding, int)
    return padding


_Encode = Callable[[Row], Example]
_Keep = Callable[[Example, int], Example | None]


def _encoder(first: Row, columns: Columns, tokenizer: PreTrainedTokenizerBase) -> tuple[_Encode, _Keep]:
    """How the rows of a data set become examples, and how a long one is shortened, as the first row's columns say."""
    found = set(first.values)
    bos = tokenizer.bos_token_id

    def keep_end(example: Example, length: int) -> Example | None:
        return _keep_end(example, length, bos)

    if columns.messages in found:
        return lambda row: _chat(row, columns, tokenizer), keep_end
    if found & {columns.prompt, columns.completion}:
        return lambda row: _pair(row, columns, tokenizer), keep_end
    if columns.text in found:
        return lambda row: _plain(row, columns, tokenizer), _keep_start
    names = (columns.messages, columns.prompt, columns.completion, columns.text)
    hint = next((text for name in sorted(found) if (text := nearest(name, names, 1))), "")
    raise DataError(
        f"{first.where}: expected the columns {columns.prompt!r} and {columns.completion!r}, or {columns.messages!r}, "
        f"or {columns.text!r}; found {', '.join(map(repr, sorted(found))) or 'none'}{hint}. Rename the columns, or "
        "name yours with prompt_column, completion_column, messages_column or text_column"
    )


def _pair(row: Row, columns: Columns, tokenizer: PreTrainedTokenizerBase) -> Example:
    prompt, completion = _string(row, columns.prompt), _string(row, columns.completion)
    if not completion.strip():
        raise DataError(f"{row.where}: the column {columns.completion!r} is empty, so there is nothing to learn")
    read = _ids(prompt, tokenizer, start=True)
    said = _ended(_ids(completion, tokenizer), tokenizer)
    return Example(read + said, [IGNORED] * len(read) + said)


def _chat(row: Row, columns: Columns, tokenizer: PreTrainedTokenizerBase) -> Example:
    if columns.messages not in row.values:
        raise _missing(row, columns.messages)
    ids: list[int] = []
    labels: list[int] = []
    for segment in chat_segments(row.values[columns.messages], tokenizer, row.where):
        part = _ids(segment.text, tokenizer)
        ids += part
        labels += part if segment.is_answer else [IGNORED] * len(part)
    if ids[-1] not in tokenizer.all_special_ids:
        # Many templates end a turn with a token of their own; where one does not, the model learns the general end.
        ids, labels = _ended(ids, tokenizer), _ended(labels, tokenizer)
    return Example(ids, labels)


def _plain(row: Row, columns: Columns, tokenizer: PreTrainedTokenizerBase) -> Example:
    text = _string(row, columns.text)
    if not text.strip():
        raise DataError(f"{row.where}: the column {columns.text!r} is empty")
    ids = _ended(_ids(text, tokenizer, start=True), tokenizer)
    return Example(ids, list(ids))


def _string(row: Row, column: str) -> str:
    if column not in row.values:
        raise _missing(row, column)
    value = row.values[column]
    if not isinstance(value, str):
        raise DataError(f"{row.where}: expected text in the column {column!r}, found {value!r}")
    return value


def _missing(row: Row, column: str) -> DataError:
    found = ", ".join(map(repr, row.values)) or "none"
    return DataError(f"{row.where}: there is no column {column!r}{nearest(column, row.values)} (found: {found})")


def _ids(text: str, tokenizer: PreTrainedTokenizerBase, start: bool = False) -> list[int]:
    """Token ids; at the start of a row with the special tokens that the tokenizer would give a prompt."""
    ids: list[int] = tokenizer(text, add_special_tokens=start, verbose=False)["input_ids"]
    return ids


def _ended(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids with the end-of-sequence token, unless they end with it already."""
    assert isinstance(tokenizer.eos_token_id, int)
    return ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]


def _keep_end(example: Example, length: int, bos: int | None) -> Example | None:
    """The last `length` tokens (after the first token, if it marks the beginning); None if the last answer is cut."""
    head = 1 if bos is not None and example.input_ids[0] == bos else 0
    ids, labels = list(example.input_ids), list(example.labels)
    if len(ids) - example.prompt_length + head >= length:
        return None
    cut = len(ids) - (length - head)
    ids, labels = ids[:head] + ids[cut:], labels[:head] + labels[cut:]
    for place in range(head, length):  # an earlier answer whose beginning is gone is not learned
        if labels[place] == IGNORED:
            break
        labels[place] = IGNORED
    return Example(ids, labels, truncated=True)


def _keep_start(example: Example, length: int) -> Example:
    return Example(example.input_ids[:length], example.labels[:length], truncated=True)


def _chain(first: Row, rest: Iterable[Row]) -> Iterator[Row]:
    yield first
    yield from rest
