"""Sources with their targets: references, the columns, and what is cut of a long one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from weft.data.pairs import PairColumns, load_pairs, read_pairs
from weft.data.text import IGNORED, Example
from weft.errors import DataError

Write = Callable[..., Path]

COLUMNS = PairColumns("dialogue", ("summary",))
REFERENCES = PairColumns("dialogue", ("summary", "summaries", "summary2"))
PROMPT = "Sum: {input}\nIs: "


def words(example: Example, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """What is read, and what is learned."""
    length = example.prompt_length
    labels = [label for label in example.labels if label != IGNORED]
    return tokenizer.decode(list(example.input_ids[:length])), tokenizer.decode(labels)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"summary": "a"}, ["a"]),
        ({"summaries": ["a", "b"]}, ["a", "b"]),
        ({"summary": "a", "summaries": ["a", "b", "c"]}, ["a", "b", "c"]),  # DialogSum, as some publish it
        ({"summary": "a", "summary2": "b", "summaries": None}, ["a", "b"]),
    ],
)
def test_each_reference_of_a_row_is_a_pair(write: Write, row: dict[str, Any], expected: list[str]) -> None:
    pairs = list(read_pairs(write([{"dialogue": "x", **row}]), REFERENCES))
    assert [pair.target for pair in pairs] == expected
    assert {pair.source for pair in pairs} == {"x"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "x", "sumary": "a"}], r"expected the columns 'dialogue' and 'summary'.*did you mean 'summary'"),
        ([{"dialogue": "x", "summary": "a"}, {"dialogue": "y"}], r"line 2: there is no column 'summary'"),
        ([{"dialogue": "x", "summary": "a"}, {"summary": "y"}], r"line 2: there is no column 'dialogue'"),
        ([{"dialogue": " ", "summary": "a"}], r"line 1: the column 'dialogue' is empty"),
        ([{"dialogue": "x", "summary": ["a", ""]}], r"line 1: expected a list of texts in .*'summary', one is ''"),
        ([{"dialogue": "x", "summary": 3}], r"line 1: expected text in the column 'summary', found 3"),
        ([], "the data set is empty"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named(write: Write, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_pairs(write(rows), COLUMNS))


def test_a_decoder_reads_the_prompt_and_learns_the_target(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    source = write([{"dialogue": "{x}", "summary": "a"}])
    (example,) = load_pairs(source, tokenizer, COLUMNS, prompt=PROMPT).examples
    assert words(example, tokenizer) == ("Sum: {x}\nIs: ", "a<eos>")


def test_a_long_source_loses_its_end_and_nothing_else(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    source = write([{"dialogue": "0123456789", "summary": "abc"}, {"dialogue": "01", "summary": "abc"}])
    data = load_pairs(source, tokenizer, COLUMNS, prompt=PROMPT, max_length=20)
    assert [words(each, tokenizer) for each in data.examples] == [
        ("Sum: 012345\nIs: ", "abc<eos>"),
        ("Sum: 01\nIs: ", "abc<eos>"),
    ]
    assert [len(each.input_ids) for each in data.examples] == [20, 16]
    assert (data.report.truncated, data.report.dropped) == (1, 0)
    assert load_pairs(source, tokenizer, COLUMNS, prompt=PROMPT, max_length=20, long_rows="drop").report.dropped == 1
    with pytest.raises(DataError, match=r"line 1: 24 tokens, and max_length is 20"):
        load_pairs(source, tokenizer, COLUMNS, prompt=PROMPT, max_length=20, long_rows="error")
    with pytest.raises(DataError, match="all 2 rows are longer than max_length = 14"):
        load_pairs(source, tokenizer, COLUMNS, prompt=PROMPT, max_length=14)


def test_half_a_character_is_not_kept(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    source = write([{"dialogue": "aéé", "summary": "b"}])  # a character of two tokens each
    (example,) = load_pairs(source, tokenizer, COLUMNS, prompt="{input}:", max_length=7).examples
    assert words(example, tokenizer) == ("aé:", "b<eos>")


def test_pairs_of_one_source_stay_on_one_side_of_a_split(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"dialogue": str(i // 3), "summary": f"{i}"} for i in range(18)]
    data = load_pairs(write(rows), tokenizer, COLUMNS, prompt="{input}:")
    rest, held = data.split(0.4, seed=1)
    sides = [{words(each, tokenizer)[0] for each in part.examples} for part in (rest, held)]
    assert not sides[0] & sides[1]
    assert (len(rest), len(held)) == (12, 6)


def test_references_of_one_source_have_one_prompt_however_it_is_cut(
    write: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"dialogue": "0123456789", "summary": ["abc", "a", "abcdef"]}, {"dialogue": "0123456789", "summary": "b"}]
    data = load_pairs(write(rows), tokenizer, COLUMNS, prompt=PROMPT, max_length=20)
    assert {words(each, tokenizer)[0] for each in data.examples} == {"Sum: 012\nIs: "}
    assert max(len(each.input_ids) for each in data.examples) == 20
    assert data.report.truncated == 4
