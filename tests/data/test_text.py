from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from weft.data.text import IGNORED, Collator, Columns, Example, load_text
from weft.errors import ConfigError, DataError

Write = Callable[..., Path]

NL = "{{ '\\n' }}"  # a line break of the template's own after a block would be trimmed
# Marks what the assistant says; ends a turn with the general end.
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<assistant>{% generation %}{{ m.content }}<eos>"
    "{% endgeneration %}{% else %}<user>{{ m.content }}{% endif %}" + NL + "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# ChatML-like: no marks, and an end of turn of its own.
UNMARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<assistant>{% else %}<user>{% endif %}"
    + NL + "{{ m.content }}<end>" + NL + "{% endfor %}{% if add_generation_prompt %}<assistant>" + NL + "{% endif %}"
)  # fmt: skip

CHAT = [
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "three?"},
    {"role": "assistant", "content": " 3 "},
]


def learned(example: Example, tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode([label for label in example.labels if label != IGNORED])


def read(example: Example, tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode(list(example.input_ids))


def one(write: Write, row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, **options: Any) -> Example:
    (example,) = load_text(write([row]), tokenizer, **options).examples
    return example


@pytest.fixture
def chat(tokenizer: PreTrainedTokenizerFast) -> Any:
    """The tokenizer with a chat template of one's choice, for the length of a test."""
    before = tokenizer.chat_template

    def _with(template: str | None) -> PreTrainedTokenizerFast:
        tokenizer.chat_template = template
        return tokenizer

    yield _with
    tokenizer.chat_template = before


def test_only_the_completion_and_the_end_are_learned(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    example = one(write, {"prompt": "ab ", "completion": " cd"}, tokenizer)
    assert read(example, tokenizer) == "ab  cd<eos>"
    assert learned(example, tokenizer) == " cd<eos>"
    assert example.prompt_length == 3


def test_the_prompt_is_tokenized_as_generation_will(write: Write, base: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base, bos_token="<bos>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    example = one(write, {"prompt": "ab", "completion": "cd"}, tokenizer)
    assert list(example.input_ids[: example.prompt_length]) == tokenizer("ab")["input_ids"]
    assert example.input_ids.count(tokenizer.bos_token_id) == 1
    # and a long prompt loses its left, but not the mark of the beginning
    short = one(write, {"prompt": "abcdefgh", "completion": "xy"}, tokenizer, max_length=6)
    assert read(short, tokenizer) == "<bos>ghxy<eos>"


def test_all_of_plain_text_is_learned(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    example = one(write, {"text": "abc"}, tokenizer)
    assert learned(example, tokenizer) == read(example, tokenizer) == "abc<eos>"
    assert example.prompt_length == 0


def test_an_end_that_is_there_is_not_doubled(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    assert read(one(write, {"text": "abc<eos>"}, tokenizer), tokenizer) == "abc<eos>"


def test_chat_follows_the_templates_marks(write: Write, chat: Any) -> None:
    tokenizer = chat(MARKED)
    example = one(write, {"messages": CHAT}, tokenizer)
    assert read(example, tokenizer) == "<user>two?\n<assistant>2<eos>\n<user>three?\n<assistant> 3 <eos>"
    assert learned(example, tokenizer) == "2<eos> 3 <eos>"
    prompt = tokenizer.apply_chat_template(CHAT[:3], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(list(example.input_ids[: example.prompt_length])) == prompt


def test_chat_without_marks_is_told_from_the_generation_prompt(write: Write, chat: Any) -> None:
    tokenizer = chat(UNMARKED)
    example = one(write, {"messages": CHAT}, tokenizer)
    assert read(example, tokenizer).endswith("<assistant>\n 3 <end>")
    assert learned(example, tokenizer) == "2<end> 3 <end>"
    prompt = tokenizer.apply_chat_template(CHAT[:3], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(list(example.input_ids[: example.prompt_length])) == prompt


def test_a_template_without_an_end_of_turn_gets_the_general_one(write: Write, chat: Any) -> None:
    tokenizer = chat(UNMARKED.replace("<end>", ""))
    assert learned(one(write, {"messages": CHAT[:2]}, tokenizer), tokenizer) == "2<eos>"


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, CHAT, "line 1: .* the tokenizer has no chat template"),
        ("{{ messages | length }} {{ messages[-1].content }}", CHAT, "rewrites earlier turns"),
        ("{{ raise_exception('no system role') }}", CHAT, "refuses these messages: no system role"),
        (MARKED, CHAT[:1], "no message has the role 'assistant' .found: user"),
        (MARKED, [*CHAT[:1], {"role": "assistant", "content": " "}], "an assistant message is empty"),
        (MARKED, ["hello"], "expected a message with a role and a content, found 'hello'"),
        (MARKED, [], "expected a list of messages"),
    ],
)
def test_chat_that_cannot_be_learned_is_refused(
    write: Write, chat: Any, template: str | None, messages: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        one(write, {"messages": messages}, chat(template))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a"}], "data.jsonl line 2: there is no column 'completion'"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": " "}], "line 2: .*is empty"),
        ([{"prompt": "a", "completion": 7}], "line 1: expected text in the column 'completion', found 7"),
        ([{"text": "a"}, {"txt": "a"}], "line 2: there is no column 'text'; did you mean 'txt'"),
        ([{"txet": "a"}], "found 'txet'; did you mean 'text'"),
        ([{"prompt": "", "completion": "b<eos>"}, {"text": ""}], "line 2: there is no column 'prompt'"),
        ([], "data.jsonl: the data set is empty"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    write: Write, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_text(write(rows), tokenizer)


def test_columns_can_have_other_names(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    columns = Columns(prompt="question", completion="answer")
    example = one(write, {"question": "a", "answer": "b"}, tokenizer, columns=columns)
    assert learned(example, tokenizer) == "b<eos>"


def test_long_rows_are_counted_and_never_lose_their_answers_end(
    write: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [
        {"prompt": "abcdef", "completion": "xyz"},
        {"prompt": "a", "completion": "z" * 20},
        {"prompt": "a", "completion": "b"},
    ]
    data = load_text(write(rows), tokenizer, max_length=6)
    assert [read(example, tokenizer) for example in data.examples] == ["efxyz<eos>", "ab<eos>"]
    assert (data.report.rows, data.report.truncated, data.report.dropped) == (2, 1, 1)
    assert "1 rows truncated; 1 rows too long and left out" in str(data.report)
    assert load_text(write(rows), tokenizer, max_length=6, long_rows="drop").report.dropped == 2
    with pytest.raises(DataError, match="line 1: 10 tokens, and max_length is 6"):
        load_text(write(rows), tokenizer, max_length=6, long_rows="error")
    with pytest.raises(DataError, match="all 1 rows are longer than max_length = 6"):
        load_text(write(rows[1:2]), tokenizer, max_length=6)


def test_long_text_loses_its_right_and_its_end(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    assert read(one(write, {"text": "abcdef"}, tokenizer, max_length=4), tokenizer) == "abcd"


def test_an_answer_whose_beginning_was_cut_is_not_learned(write: Write, chat: Any) -> None:
    tokenizer = chat(MARKED)
    example = one(write, {"messages": CHAT}, tokenizer, max_length=15)
    assert len(example.input_ids) == 15
    assert learned(example, tokenizer) == " 3 <eos>"


def test_a_tokenizer_without_an_end_is_refused(write: Write, base: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base, eos_token=None)
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        one(write, {"text": "a"}, tokenizer)


def test_a_batch_is_padded_where_nothing_is_read_or_learned() -> None:
    batch = Collator(pad_id=9)([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]


def test_a_split_is_decided_by_the_seed(pairs: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = load_text(pairs, tokenizer)
    (rest, held), (_, again), (_, other) = data.split(0.2, 1), data.split(0.2, 1), data.split(0.2, 2)
    assert (len(rest), len(held)) == (16, 4)
    assert [e.input_ids for e in held.examples] == [e.input_ids for e in again.examples]
    assert [e.input_ids for e in held.examples] != [e.input_ids for e in other.examples]
    assert not {tuple(e.input_ids) for e in rest.examples} & {tuple(e.input_ids) for e in held.examples}
