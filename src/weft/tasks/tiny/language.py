"""Stand-ins for language models, and for text."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from weft.tasks.tiny.registry import bases, data
from weft.tasks.tiny.tokens import byte_tokenizer

_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@bases.register("bundled")
def bundled(folder: Path) -> dict[str, Any]:
    """The base model that comes with weft: it is small already."""
    return {"base": "bundled"}


@bases.register("llama")
def llama(folder: Path) -> dict[str, Any]:
    """Llama's decoder: grouped heads, a gated MLP, rotary positions."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return {"base": save_language_model(LlamaForCausalLM(config), tokenizer, folder / "base")}


@data.register("text")
def text(folder: Path) -> dict[str, Any]:
    """Prompts and completions: numbers and the words for them."""
    rows = [{"prompt": f"{i + 1} is", "completion": f" {word}"} for i, word in enumerate(_WORDS)]
    return {"train": write_rows(folder / "train.jsonl", rows), "eval": write_rows(folder / "eval.jsonl", rows[:4])}


def save_language_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Writes a model and its tokenizer, and returns the folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes rows as JSONL, and returns the file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
