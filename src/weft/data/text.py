"""Text data as token ids: the loss is taken on the completion, or on what the assistant says.

Prompt and completion are tokenized apart and joined, so that the boundary between them is the one that
generation will see.
"""

import random
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weft.data.chat import chat_segments
from weft.data.prompts import Lay, Rows, lay_none
from weft.data.rows import Row, read_rows
from weft.errors import ConfigError, DataError, nearest

IGNORED = -100  # the label on which transformers takes no loss

LongRows = Literal["truncate", "drop", "error"]

INPUT = "{input}"  # in a prompt's wording: where a row's text goes


class Placed(Protocol):
    """Something that was read, and where it stands in words."""

    @property
    def where(self) -> str:
        """Such as ``data.jsonl line 7``."""
        ...


R = TypeVar("R", bound=Placed)


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
        unanswered: rows left out because nothing is said in them that could be learned.
        tokens: tokens in the rows kept.
        label_tokens: of these, the tokens on which the loss is taken.
    """

    rows: int
    truncated: int
    dropped: int
    tokens: int
    label_tokens: int
    unanswered: int = 0

    def __str__(self) -> str:
        text = f"{self.rows:,} rows, {self.tokens:,} tokens, {self.label_tokens:,} of them learned"
        if self.truncated:
            text += f"; {self.truncated:,} rows truncated"
        if self.dropped:
            text += f"; {self.dropped:,} rows too long and left out"
        if self.unanswered:
            text += f"; {self.unanswered:,} rows without an answer left out"
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

    def __init__(self, examples: list[Example], dropped: int = 0, unanswered: int = 0) -> None:
        self.examples = examples
        self.report = DataReport(
            rows=len(examples),
            truncated=sum(example.truncated for example in examples),
            dropped=dropped,
            tokens=sum(len(example.input_ids) for example in examples),
            label_tokens=sum(label != IGNORED for example in examples for label in example.labels[1:]),
            unanswered=unanswered,
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
        """Two data sets: the rest, and a share as `split_rows` chooses it; rows of one prompt stay together.

        Raises:
            DataError: there are fewer than two prompts.
        """
        rest, held = split_rows([self._prompt(i) for i in range(len(self))], share, seed)
        return (
            TextDataset([self.examples[i] for i in rest], self.report.dropped, self.report.unanswered),
            TextDataset([self.examples[i] for i in held]),
        )

    def _prompt(self, index: int) -> Hashable:
        """What the row has in common with the others of one prompt: a prompt, or, of plain text, nothing."""
        example = self.examples[index]
        return tuple(example.input_ids[: example.prompt_length]) or index


def split_rows(keys: Sequence[Hashable], share: float, seed: int) -> tuple[list[int], list[int]]:
    """The indices of the rows that stay, and of a share chosen at random by the seed (one at least), in their order.

    Rows with equal keys, such as several answers to one prompt, stay together: else the answer to an evaluated row
    would be learned with another.

    Raises:
        DataError: there are fewer than two keys.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    if len(groups) < 2:
        raise DataError("one row cannot be split into training and evaluation; give an evaluation file")
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    chosen = set(random.Random(seed).sample(range(len(groups)), count))
    held = {index for place, group in enumerate(groups.values()) if place in chosen for index in group}
    return [i for i in range(len(keys)) if i not in held], sorted(held)


def load_text(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str = "train",
    columns: Columns = Columns(),
    prompt: str = INPUT,
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
        prompt: the wording of a prompt around what its column holds, which stands at ``{input}``.
        max_length: tokens in a row at most; None for no limit.
        long_rows: what to do with longer rows: "truncate" as above, "drop" them, or raise an "error".

    Raises:
        DataError: nothing to read, or a row without its column, with an empty completion, or too long; the message
            names the file and line.
        ConfigError: the tokenizer has no end-of-sequence token.
    """
    rows = read_rows(source, split)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source}: the data set is empty")
    return encoded(source, _chain(first, rows), _encoding(first, columns, prompt, tokenizer), max_length, long_rows)


@dataclass(frozen=True)
class Encoding(Generic[R]):
    """How rows of a sort become examples.

    Attributes:
        encode: the example of a row.
        shorten: the row's example again, with so many tokens at most; None if that cannot be, and it is left out.
    """

    encode: Callable[[R], Example]
    shorten: Callable[[R, Example, int], Example | None]


def encoded(
    source: str | Path,
    rows: Iterable[R],
    encoding: Encoding[R],
    max_length: int | None,
    long_rows: LongRows,
) -> TextDataset:
    """The rows of a data set as examples; arguments and errors as of `load_text`."""
    examples: list[Example] = []
    dropped = 0
    for row in rows:
        example = encoding.encode(row)
        length = len(example.input_ids)
        if max_length is not None and length > max_length:
            if long_rows == "error":
                raise too_long(row.where, f"{length} tokens", max_length)
            shorter = encoding.shorten(row, example, max_length) if long_rows == "truncate" else None
            if shorter is None:
                dropped += 1
                continue
            example = shorter
        if all(label == IGNORED for label in example.labels[1:]):
            raise DataError(f"{row.where}: the row is too short; a token is learned from those before it")
        # 4 bytes a token instead of a list's 36
        examples.append(Example(array("i", example.input_ids), array("i", example.labels), example.truncated))
    if not examples:
        raise none_left(source, dropped, max_length)
    return TextDataset(examples, dropped)


def too_long(where: str, found: str, max_length: int) -> DataError:
    """Of a row that is longer than the limit, where that is an error."""
    return DataError(
        f"{where}: {found}, and max_length is {max_length}; shorten the row, raise max_length, or let long_rows be "
        "'truncate' or 'drop'"
    )


def none_left(source: str | Path, dropped: int, max_length: int | None) -> DataError:
    """Of a data set of which no row is left."""
    if not dropped:
        return DataError(f"{source}: no row has an answer, so there is nothing to learn")
    return DataError(f"{source}: all {dropped} rows are longer than max_length = {max_length} tokens; raise it")


def context_length(model: PreTrainedModel) -> int | None:
    """The longest sequence, in tokens, that the model's configuration allows; None if it names no limit."""
    values = model.config.get_text_config().to_dict()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(values.get(name), int):
            return int(values[name])
    return None


@dataclass(frozen=True)
class Collator:
    """Pads a batch of rows, or of an encoder-decoder's pairs, on the right; `lay` puts a prompt into each before.

    Returns input_ids and attention_mask (0 on padding), each (rows, longest), and labels (`IGNORED` on padding), (rows,
    longest), of pairs (rows, longest target); int64. An encoder-decoder makes its decoder's input of the labels.
    """

    pad_id: int
    lay: Lay = lay_none

    def __call__(self, rows: Rows) -> dict[str, Tensor]:
        rows = self.lay(rows)
        ids = [row["input_ids"] for row in rows]
        return {
            "input_ids": padded(ids, self.pad_id),
            "attention_mask": padded([[1] * len(v) for v in ids], 0),
            "labels": padded([row["labels"] for row in rows], IGNORED),
        }


def padded(rows: list[list[int]], fill: int) -> Tensor:
    """Rows of unlike lengths, each filled up on the right: (rows, longest), int64."""
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with; any will do, since padding is masked."""
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    assert isinstance(padding, int)
    return padding


def beginnings(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that mark the beginning of a row, behind which a prompt stands."""
    return tuple(i for i in (tokenizer.bos_token_id, tokenizer.cls_token_id) if isinstance(i, int))


def completed(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> Example:
    """A prompt as generation will see it, and a completion with its end, which is learned."""
    read = ids_of(prompt, tokenizer, start=True)
    said = ended(ids_of(completion, tokenizer), tokenizer)
    return Example(read + said, [IGNORED] * len(read) + said)


def conversed(messages: Any, tokenizer: PreTrainedTokenizerBase, where: str) -> Example:
    """A conversation through the chat template; what the assistant says is learned. Arguments of `chat_segments`."""
    ids: list[int] = []
    labels: list[int] = []
    for segment in chat_segments(messages, tokenizer, where):
        part = ids_of(segment.text, tokenizer)
        ids += part
        labels += part if segment.is_answer else [IGNORED] * len(part)
    if ids[-1] not in tokenizer.all_special_ids:
        # Many templates end a turn with a token of their own; where one does not, the model learns the general end.
        ids, labels = ended(ids, tokenizer), ended(labels, tokenizer)
    return Example(ids, labels)


def text_of(row: Row, column: str) -> str:
    """The text in a column.

    Raises:
        DataError: there is no such column, or something else in it.
    """
    if column not in row.values:
        raise missing(row, column)
    value = row.values[column]
    if not isinstance(value, str):
        raise DataError(f"{row.where}: expected text in the column {column!r}, found {value!r}")
    return value


def filled(row: Row, column: str) -> str:
    """As `text_of`, and there is some.

    Raises:
        DataError: there is nothing but white space.
    """
    text = text_of(row, column)
    if not text.strip():
        raise DataError(f"{row.where}: the column {column!r} is empty, so there is nothing to learn")
    return text


def missing(row: Row, column: str) -> DataError:
    """Of a row without a column."""
    found = ", ".join(map(repr, row.values)) or "none"
    return DataError(f"{row.where}: there is no column {column!r}{nearest(column, row.values)} (found: {found})")


def ids_of(text: str, tokenizer: PreTrainedTokenizerBase, start: bool = False) -> list[int]:
    """Token ids; at the start of a row with the special tokens that the tokenizer would give a prompt."""
    ids: list[int] = tokenizer(text, add_special_tokens=start, verbose=False)["input_ids"]
    return ids


def ended(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids with the end-of-sequence token, unless they end with it already.

    Raises:
        ConfigError: the tokenizer has none.
    """
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise ConfigError("the base's tokenizer has no end-of-sequence token, so a model could not learn to stop")
    return ids if ids and ids[-1] == end else [*ids, end]


def keeps_end(tokenizer: PreTrainedTokenizerBase) -> Callable[[Placed, Example, int], Example | None]:
    """To shorten rows by their left (after the first token, if it marks the beginning), if the last answer stays."""
    bos = tokenizer.bos_token_id
    return lambda row, example, length: _keep_end(example, length, bos)


def _encoding(first: Row, columns: Columns, prompt: str, tokenizer: PreTrainedTokenizerBase) -> Encoding[Row]:
    """How the rows of a data set become examples, as the first row's columns say."""
    found = set(first.values)
    if columns.messages in found:
        return Encoding(lambda row: _chat(row, columns, tokenizer), keeps_end(tokenizer))
    if found & {columns.prompt, columns.completion}:
        return Encoding(lambda row: _pair(row, columns, prompt, tokenizer), keeps_end(tokenizer))
    if columns.text in found:
        return Encoding(lambda row: _plain(row, columns, tokenizer), lambda row, example, n: _keep_start(example, n))
    names = (columns.messages, columns.prompt, columns.completion, columns.text)
    hint = next((text for name in sorted(found) if (text := nearest(name, names, 1))), "")
    raise DataError(
        f"{first.where}: expected the columns {columns.prompt!r} and {columns.completion!r}, or {columns.messages!r}, "
        f"or {columns.text!r}; found {', '.join(map(repr, sorted(found))) or 'none'}{hint}. Rename the columns, or "
        "name yours with prompt_column, completion_column, messages_column or text_column"
    )


def _pair(row: Row, columns: Columns, prompt: str, tokenizer: PreTrainedTokenizerBase) -> Example:
    read = prompt.replace(INPUT, text_of(row, columns.prompt))
    return completed(read, filled(row, columns.completion), tokenizer)


def _chat(row: Row, columns: Columns, tokenizer: PreTrainedTokenizerBase) -> Example:
    if columns.messages not in row.values:
        raise missing(row, columns.messages)
    return conversed(row.values[columns.messages], tokenizer, row.where)


def _plain(row: Row, columns: Columns, tokenizer: PreTrainedTokenizerBase) -> Example:
    ids = ended(ids_of(filled(row, columns.text), tokenizer, start=True), tokenizer)
    return Example(ids, list(ids))


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
