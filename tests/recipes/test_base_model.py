"""The bundled base: what its card says is what was measured, and it is what it claims to be."""

import json
import runpy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import weft

ROOT = Path(weft.__file__).parent.parent.parent


def test_the_card_is_that_of_the_figures() -> None:
    card = runpy.run_path(str(ROOT / "recipes" / "base_model" / "card.py"))["card"]
    figures = json.loads((weft.bundled_base() / "figures.json").read_text(encoding="utf-8"))
    assert (weft.bundled_base() / "README.md").read_text(encoding="utf-8") == card(figures)


def test_it_is_small_and_in_bfloat16() -> None:
    size = sum(path.stat().st_size for path in weft.bundled_base().iterdir())
    assert size < 16e6
    model = AutoModelForCausalLM.from_pretrained(weft.bundled_base())
    assert model.dtype == torch.bfloat16
    assert 5e6 < model.num_parameters() < 7e6


def test_it_prefers_english_to_the_same_words_backwards() -> None:
    tokenizer = AutoTokenizer.from_pretrained(weft.bundled_base())
    model = AutoModelForCausalLM.from_pretrained(weft.bundled_base(), dtype=torch.float32)

    def loss(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids).loss)

    sentence = "She looked at him for a moment, and then she said that it was time to go home."
    assert loss(sentence) < loss(" ".join(reversed(sentence.split()))) - 0.5


def test_any_text_is_encoded_and_comes_back() -> None:
    tokenizer = AutoTokenizer.from_pretrained(weft.bundled_base())
    for text in ("def f(x):\n    return x\n", "Ünïcödé, 漢字 🧵", "  two  spaces\t\n"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
