"""Instructions, in the layouts in which people publish them, as conversations.

| layout | columns |
|---|---|
| messages | `messages`: a list of {"role", "content"} (OpenAI, and most sets on the hub), or the same as JSON text |
| sharegpt | `conversations`: a list of {"from", "value"} (ShareGPT; Vicuna was trained on it) |
| alpaca | `instruction`, `output`, and perhaps `input` (Taori et al., Stanford Alpaca, 2023) |
| prompt | `prompt` and `completion` |

Each may have a column `system`. The first row decides; a row of another layout is an error.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from weft.data.rows import Row, read_rows
from weft.data.text import Encoding, LongRows, TextDataset, conversed, encoded, filled, keeps_end, text_of
from weft.errors import DataError

Turn = dict[str, Any]  # {"role": ..., "content": ...}

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}


@dataclass(frozen=True)
class InstructionColumns:
    """The names of the columns; the first layout that a data set's first row has is taken, in this order."""

    messages: str = "messages"
    conversations: str = "conversations"
    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    prompt: str = "prompt"
    completion: str = "completion"
    system: str = "system"


@dataclass(frozen=True)
class Conversation:
    """The turns of one row, and where it stands in words."""

    turns: list[Turn]
    where: str

    @property
    def is_answered(self) -> bool:
        """Whether the assistant says something whenever it is its turn, at least once."""
        answers = [turn for turn in self.turns if turn["role"] == "assistant"]
        return bool(answers) and all("tool_calls" in turn or str(turn.get("content") or "").strip() for turn in answers)


@dataclass(frozen=True)
class Layout:
    """One way to write instructions down.

    Attributes:
        name: how it is called.
        columns: those that every row has.
        turns: of a row, without the system column.
    """

    name: str
    columns: tuple[str, ...]
    turns: Callable[[Row], list[Turn]]

    def of(self, row: Row) -> bool:
        """Whether a row has its columns."""
        return all(row.values.get(column) is not None for column in self.columns)

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.columns)})"


def layouts(columns: InstructionColumns = InstructionColumns(), heading: str = "\n\n") -> tuple[Layout, ...]:
    """The layouts, in the order in which they are looked for.

    Args:
        columns: the names of the columns.
        heading: what stands between an instruction and its input.
    """

    def alpaca(row: Row) -> list[Turn]:
        instruction, context = filled(row, columns.instruction), row.values.get(columns.input) or ""
        if not isinstance(context, str):
            raise DataError(f"{row.where}: expected text in the column {columns.input!r}, found {context!r}")
        asked = instruction + heading + context if context.strip() else instruction
        return [_turn("user", asked), _turn("assistant", text_of(row, columns.output))]

    def pair(row: Row) -> list[Turn]:
        return [_turn("user", filled(row, columns.prompt)), _turn("assistant", text_of(row, columns.completion))]

    return (
        Layout("messages", (columns.messages,), lambda row: _messages(row, columns.messages)),
        Layout("sharegpt", (columns.conversations,), lambda row: _messages(row, columns.conversations)),
        Layout("alpaca", (columns.instruction, columns.output), alpaca),
        Layout("prompt", (columns.prompt, columns.completion), pair),
    )


@dataclass(frozen=True)
class Instructions:
    """A data set of instructions, opened; iterate over it once.

    Attributes:
        layout: that of its first row.
    """

    layout: Layout
    known: tuple[Layout, ...]
    system: str
    first: Row
    rest: Iterator[Row]

    def __iter__(self) -> Iterator[Conversation]:
        """The conversations, in the data set's order.

        Raises:
            DataError: a row of another layout, or one that cannot be used; the message names its line.
        """
        yield self._conversation(self.first)
        for row in self.rest:
            yield self._conversation(row)

    def _conversation(self, row: Row) -> Conversation:
        if not self.layout.of(row):
            other = next((layout for layout in self.known if layout.of(row)), None)
            found = f"the layout {other}" if other else f"the columns {', '.join(map(repr, row.values)) or 'none'}"
            raise DataError(
                f"{row.where}: expected the layout {self.layout}, which {self.first.where} has; found {found}. A data "
                "set has one layout: make files of their own of the others"
            )
        turns = self.layout.turns(row)
        if row.values.get(self.system) is None or not text_of(row, self.system).strip():
            return Conversation(turns, row.where)
        if turns[0].get("role") == "system":
            raise DataError(
                f"{row.where}: the column {self.system!r} and the first message are both system messages; keep one"
            )
        return Conversation([_turn("system", text_of(row, self.system)), *turns], row.where)


def read_instructions(
    source: str | Path,
    split: str = "train",
    columns: InstructionColumns = InstructionColumns(),
    heading: str = "\n\n",
) -> Instructions:
    """Opens a data set of instructions.

    Args:
        source: what `read_rows` takes.
        split: the split to read, where there are several.
        columns: the names of the columns.
        heading: what stands between an instruction and its input, where a row has one.

    Raises:
        DataError: nothing to read, or a first row that has none of the layouts.
    """
    rows = read_rows(source, split)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source}: the data set is empty")
    known = layouts(columns, heading)
    layout = next((each for each in known if each.of(first)), None)
    if layout is None:
        raise DataError(
            f"{first.where}: expected one of the layouts {'; '.join(map(str, known))}; found the columns "
            f"{', '.join(map(repr, first.values)) or 'none'}. Rename the columns, or name yours with the settings "
            "that end in _column"
        )
    return Instructions(layout, known, columns.system, first, rows)


def load_instructions(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str = "train",
    columns: InstructionColumns = InstructionColumns(),
    heading: str = "\n\n",
    max_length: int | None = None,
    long_rows: LongRows = "truncate",
) -> tuple[TextDataset, Layout]:
    """Reads instructions, and tokenizes them through the tokenizer's chat template; answers alone are learned.

    A conversation longer than `max_length` loses its left, where its last answer fits. One in which the assistant is
    silent, as there are some in most published sets, is left out. The report counts both.

    Args:
        source, split, columns, heading: as of `read_instructions`.
        tokenizer: the base's, with a chat template.
        max_length: tokens in a row at most; None for no limit.
        long_rows: as of `load_text`.

    Raises:
        DataError: as of `read_instructions` and `chat_segments`, or a row that is too long.
        ConfigError: the tokenizer has no end-of-sequence token.
    """
    read = read_instructions(source, split, columns, heading)
    unanswered = 0

    def answered() -> Iterator[Conversation]:
        nonlocal unanswered
        for each in read:
            if each.is_answered:
                yield each
            else:
                unanswered += 1

    encoding = Encoding[Conversation](lambda each: conversed(each.turns, tokenizer, each.where), keeps_end(tokenizer))
    rows = encoded(source, answered(), encoding, max_length, long_rows)
    return TextDataset(rows.examples, rows.report.dropped, unanswered), read.layout


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _messages(row: Row, column: str) -> list[Turn]:
    """Messages in either spelling, {"role", "content"} or {"from", "value"}, as a list or as JSON text."""
    messages = row.values[column]
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except ValueError as error:
            raise DataError(f"{row.where}: expected a list of messages in {column!r}, or its JSON: {error}") from error
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DataError(f"{row.where}: expected a list of messages in {column!r}, found {messages!r}")
    return [_message(message, row.where) for message in messages]


def _message(message: Any, where: str) -> Turn:
    if isinstance(message, Mapping) and isinstance(message.get("role"), str):
        return dict(message)
    if not isinstance(message, Mapping) or not isinstance(message.get("from"), str):
        raise DataError(
            f'{where}: expected a message with "role" and "content", or with "from" and "value"; found {message!r}'
        )
    role, said = message["from"], message.get("value")
    if role not in ROLES:
        raise DataError(f"{where}: a message is from {role!r}; expected one of {', '.join(ROLES)}")
    if not isinstance(said, str):
        raise DataError(f'{where}: expected text in the "value" of a message, found {said!r}')
    return _turn(ROLES[role], said)
