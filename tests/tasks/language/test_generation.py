"""Answers of decoders and encoder-decoders: those of single prompts, without the prompt, whatever the batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from weft.tasks.language.generation import Decoding, generate_texts, spread
from weft.tasks.tiny import bases, build


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    """Tiny bases by name."""

    def _made(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
            folder = build(bases, name)["base"]
        auto = AutoModelForSeq2SeqLM if name in ("t5", "bart") else AutoModelForCausalLM
        return auto.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    return _made


PROMPTS = ["a", "one two three", "one two", "once upon a time"]


@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_in_a_batch_are_those_of_single_prompts(made: Any, name: str, beams: int) -> None:
    model, tokenizer = made(name)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    together = generate_texts(model, tokenizer, prompts, Decoding(6, beams), batch_size=4)
    for prompt, text in zip(prompts, together, strict=True):
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "attention_mask": torch.ones_like(ids)}
        alone = model.generate(ids, **options)[0]
        own = alone if model.config.is_encoder_decoder else alone[len(prompt) :]
        assert text == tokenizer.decode(own, skip_special_tokens=True).strip()
    assert len(set(together)) > 1 or name == "bart"  # else any order would do


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_the_models_own_generation_settings_are_not_heard(made: Any, name: str) -> None:
    model, tokenizer = made(name)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    greedy = generate_texts(model, tokenizer, prompts, Decoding(6))
    model.generation_config.update(num_beams=3, repetition_penalty=5.0, no_repeat_ngram_size=1, min_length=30)
    assert generate_texts(model, tokenizer, prompts, Decoding(6)) == greedy


def test_no_ngram_comes_twice_but_the_prompts_may_be_said_again(made: Any) -> None:
    model, tokenizer = made("llama")
    copied = tokenizer("abcd")["input_ids"][1:]

    class Copier(type(model)):  # type: ignore[misc]
        """Says what follows in the prompt, over and over."""

        def forward(self, input_ids: Any, **options: Any) -> Any:
            output = super().forward(input_ids, **options)
            for row in range(len(output.logits)):
                last = int(input_ids[row, -1])
                following = copied[(copied.index(last) + 1) % len(copied)] if last in copied else copied[0]
                output.logits[row, -1] = 9 * F.one_hot(torch.tensor(following), output.logits.shape[-1]).float()
            return output

    model.__class__ = Copier
    prompt = tokenizer("abcd:")["input_ids"]
    assert generate_texts(model, tokenizer, [prompt], Decoding(8)) == ["abcdabcd"]
    (text,) = generate_texts(model, tokenizer, [prompt], Decoding(8, no_repeat_ngram_size=3))
    assert text.startswith("abcdab")
    assert not text.startswith("abcdabc")


def test_rows_of_one_prompt_are_asked_once() -> None:
    keys = ["a", "b", "a", "c", "b", "d"]
    assert spread(keys, 9) == [[0, 2], [1, 4], [3], [5]]
    assert spread(keys, 2) == [[0, 2], [3]]
    assert spread([], 3) == []


def test_a_long_prompt_leaves_room(base: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    long = tokenizer("x" * 300)["input_ids"]  # the context holds 96
    assert generate_texts(model, tokenizer, [long], Decoding(8)) == generate_texts(
        model, tokenizer, [long[-88:]], Decoding(8)
    )
