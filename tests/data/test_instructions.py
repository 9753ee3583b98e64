"""Instructions in each layout become the same conversations; a row of another layout is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from weft.data.instructions import InstructionColumns, load_instructions, read_instructions
from weft.data.text import IGNORED
from weft.errors import DataError

Write = Callable[..., Path]

CHAT = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "3"}]
SYSTEM = {"role": "system", "content": "Be brief."}
SHAREGPT = [{"from": "human", "value": "Add."}, {"from": "gpt", "value": "3"}]

LAYOUTS = {
    "messages": {"messages": CHAT},
    "messages as JSON text": {"messages": json.dumps(CHAT)},
    "sharegpt": {"conversations": SHAREGPT},
    "conversations in OpenAI's spelling": {"conversations": CHAT},
    "alpaca": {"instruction": "Add.", "output": "3"},
    "alpaca, its input empty": {"instruction": "Add.", "input": "", "output": "3"},
    "alpaca, its input null": {"instruction": "Add.", "input": None, "output": "3"},
    "prompt": {"prompt": "Add.", "completion": "3"},
}


@pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_same_conversation(write: Write, row: dict[str, Any]) -> None:
    (found,) = read_instructions(write([row]))
    assert found.turns == CHAT
    (with_system,) = read_instructions(write([row | {"system": "Be brief."}]))
    assert with_system.turns == [SYSTEM, *CHAT]
    (without,) = read_instructions(write([row | {"system": "  "}]))
    assert without.turns == CHAT


def test_which_layout_it_is_is_told(write: Write) -> None:
    assert str(read_instructions(write([LAYOUTS["alpaca"]])).layout) == "alpaca (instruction, output)"
    # Published sets often keep a rendered text, or the first prompt, beside the messages.
    both = {"prompt": "x", "completion": "y", "text": "z", **LAYOUTS["sharegpt"]}
    assert read_instructions(write([both])).layout.name == "sharegpt"


def test_an_input_stands_below_its_instruction(write: Write) -> None:
    row = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    (found,) = read_instructions(write([row]), heading=" // ")
    assert found.turns[0]["content"] == "Add. // 1, 2"


def test_many_turns_and_an_opening_system_turn(write: Write) -> None:
    turns = [{"from": "system", "value": "Be brief."}, *SHAREGPT, *SHAREGPT]
    (found,) = read_instructions(write([{"conversations": turns}]))
    assert found.turns == [SYSTEM, *CHAT, *CHAT]


def test_columns_of_other_names(write: Write) -> None:
    columns = InstructionColumns(instruction="question", output="answer", system="persona")
    (found,) = read_instructions(write([{"question": "Add.", "answer": "3", "persona": "Be brief."}]), columns=columns)
    assert found.turns == [SYSTEM, *CHAT]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [LAYOUTS["alpaca"], LAYOUTS["sharegpt"]],
            r"line 2: expected the layout alpaca \(instruction, output\), which .*line 1 has; found the layout "
            r"sharegpt \(conversations\)",
        ),
        ([LAYOUTS["alpaca"], {"instruction": "Add."}], r"line 2: expected the layout alpaca.*found the columns"),
        ([{"question": "Add."}], r"line 1: expected one of the layouts messages \(messages\); .*found .*'question'"),
        ([{"conversations": [{"from": "narrator", "value": "x"}]}], r"line 1: a message is from 'narrator'; expected"),
        ([{"conversations": [{"from": "gpt"}]}], r'line 1: expected text in the "value" of a message, found None'),
        ([{"messages": [{"text": "x"}]}], r'line 1: expected a message with "role" and "content"'),
        ([{"messages": "Add."}], r"line 1: expected a list of messages in 'messages', or its JSON"),
        ([{"messages": []}], r"line 1: expected a list of messages in 'messages', found \[\]"),
        ([{"instruction": " ", "output": "3"}], r"line 1: the column 'instruction' is empty"),
        ([{"instruction": "Add.", "output": "3", "input": 7}], r"line 1: expected text in the column 'input', found 7"),
        ([{"messages": [SYSTEM, *CHAT], "system": "x"}], r"line 1: the column 'system' and the first message are both"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(write: Write, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_instructions(write(rows)))


def test_answers_alone_are_learned(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"conversations": SHAREGPT}, {"conversations": [*SHAREGPT, *SHAREGPT]}]
    data, layout = load_instructions(write(rows), tokenizer)
    assert layout.name == "sharegpt"
    learned = [tokenizer.decode([i for i in each.labels if i != IGNORED]) for each in data.examples]
    assert learned == ["3<eos>", "3<eos>3<eos>"]
    assert tokenizer.decode(list(data.examples[0].input_ids)) == "<user>Add.\n<assistant>3<eos>"


def test_long_conversations_lose_their_left(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    source = write([{"conversations": SHAREGPT}, {"conversations": [*SHAREGPT, *SHAREGPT]}])
    data, _ = load_instructions(source, tokenizer, max_length=10)
    assert [len(each.input_ids) for each in data.examples] == [9, 10]
    assert (data.report.truncated, data.report.dropped) == (1, 0)
    assert load_instructions(source, tokenizer, max_length=10, long_rows="drop")[0].report.dropped == 1
    with pytest.raises(DataError, match=r"line 2: 19 tokens, and max_length is 10"):
        load_instructions(source, tokenizer, max_length=10, long_rows="error")


def test_rows_without_an_answer_are_left_out_and_counted(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    silent = [{"from": "human", "value": "Add."}, {"from": "gpt", "value": " "}]
    for good, empty in (
        (LAYOUTS["alpaca"], {"instruction": "Add.", "output": ""}),
        (LAYOUTS["prompt"], {"prompt": "Add.", "completion": " "}),
        (LAYOUTS["sharegpt"], {"conversations": silent}),
        (LAYOUTS["sharegpt"], {"conversations": [*SHAREGPT, *silent]}),
        (LAYOUTS["sharegpt"], {"conversations": SHAREGPT[:1]}),
    ):
        data, _ = load_instructions(write([good, empty, good]), tokenizer)
        assert (data.report.rows, data.report.unanswered) == (2, 1)
        assert "1 rows without an answer left out" in str(data.report)
        with pytest.raises(DataError, match="no row has an answer"):
            load_instructions(write([empty]), tokenizer)
    several = [LAYOUTS["prompt"], {"prompt": "Add.", "completion": ""}, {"prompt": "Take.", "completion": "1"}]
    data, _ = load_instructions(write(several), tokenizer)
    assert data.split(0.5, seed=0)[0].report.unanswered == 1
