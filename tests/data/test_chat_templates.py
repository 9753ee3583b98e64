"""weft's own chat templates, as a tokenizer renders them and as a run learns them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from weft.data.chat_templates import INPUT_HEADING, chat_template
from weft.data.text import IGNORED, conversed
from weft.errors import DataError

Turns = list[dict[str, Any]]

TURNS: Turns = [
    {"role": "user", "content": "Add."},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "Again."},
    {"role": "assistant", "content": "6"},
]

# Written out from the repository that published it: prompt_input and prompt_no_input of its train.py.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:"
)
ALPACA_ALONE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Response:"
)


@pytest.fixture
def speaking(base: Path) -> Callable[[Any], PreTrainedTokenizerFast]:
    """A tokenizer without a template of its own, given one of weft's."""

    def _speaking(name: Any) -> PreTrainedTokenizerFast:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
        tokenizer.chat_template = chat_template(name, tokenizer)
        return tokenizer

    return _speaking


def read(turns: Turns, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """All of a conversation, and what is learned of it."""
    example = conversed(turns, tokenizer, "here")
    return tokenizer.decode(list(example.input_ids)), tokenizer.decode([i for i in example.labels if i != IGNORED])


def test_plain_turns_are_marked_in_words_and_answers_alone_are_learned(speaking: Any) -> None:
    tokenizer = speaking("plain")
    text = "### User:\nAdd.\n\n### Assistant:\n3<eos>\n\n### User:\nAgain.\n\n### Assistant:\n6<eos>"
    assert read(TURNS, tokenizer) == (text, "3<eos>6<eos>")
    system = {"role": "system", "content": "Be brief."}
    assert read([system, *TURNS], tokenizer)[0] == "Be brief.\n\n" + text


def test_alpacas_prompt_is_the_published_one(speaking: Any) -> None:
    tokenizer = speaking("alpaca")
    assert read(TURNS[:2], tokenizer) == (ALPACA_ALONE + "3<eos>", "3<eos>")
    asked = {"role": "user", "content": "Add." + INPUT_HEADING + "1, 2"}
    assert read([asked, TURNS[1]], tokenizer) == (ALPACA_WITH_INPUT + "3<eos>", "3<eos>")
    later = "\n\n### Instruction:\nAgain.\n\n### Response:6<eos>"
    assert read(TURNS, tokenizer) == (ALPACA_ALONE + "3<eos>" + later, "3<eos>6<eos>")


@pytest.mark.parametrize("name", ["plain", "alpaca"])
def test_generation_sees_what_was_learned_from(speaking: Any, name: str, tmp_path: Path) -> None:
    speaking(name).save_pretrained(tmp_path)  # and a saved tokenizer speaks so too
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    example = conversed(TURNS, tokenizer, "here")
    prompt = tokenizer.apply_chat_template(TURNS[:3], add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert list(example.input_ids[: example.prompt_length]) == ids


def test_the_mark_of_the_beginning_is_there_where_the_tokenizer_gives_prompts_one(base: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base, bos_token="<bos>")
    tokenizer.chat_template = chat_template("plain", tokenizer)
    assert read(TURNS[:2], tokenizer)[0].startswith("### User:")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = chat_template("plain", tokenizer)
    assert read(TURNS[:2], tokenizer)[0].startswith("<bos>### User:")


def test_a_role_that_a_template_does_not_know_is_named(speaking: Any) -> None:
    with pytest.raises(DataError, match=r"here: the chat template refuses.*roles system, user and assistant.*tool"):
        read([{"role": "tool", "content": "x"}, *TURNS], speaking("plain"))
