"""Stand-ins for language models, and for text."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

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
    config = LlamaConfig(**_decoder(tokenizer))
    return {"base": save_language_model(LlamaForCausalLM(config), tokenizer, folder / "base")}


@bases.register("mistral")
def mistral(folder: Path) -> dict[str, Any]:
    """Mistral's decoder: Llama's, whose tokens see the last few thousand alone."""
    tokenizer = byte_tokenizer()
    config = MistralConfig(**_decoder(tokenizer), sliding_window=4096)
    return {"base": save_language_model(MistralForCausalLM(config), tokenizer, folder / "base")}


@bases.register("qwen")
def qwen(folder: Path) -> dict[str, Any]:
    """Qwen3's decoder: Llama's, with normalized queries and keys, and one matrix for embedding and head."""
    tokenizer = byte_tokenizer("$A", "$A $B")
    config = Qwen3Config(**_decoder(tokenizer), head_dim=8, tie_word_embeddings=True)
    return {"base": save_language_model(Qwen3ForCausalLM(config), tokenizer, folder / "base")}


@bases.register("t5")
def t5(folder: Path) -> dict[str, Any]:
    """T5's encoder and decoder: relative positions, no biases; the decoder starts from padding."""
    tokenizer = byte_tokenizer("$A </s>", "$A </s> $B </s>")
    tokenizer.chat_template = None
    sizes: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = T5Config(vocab_size=len(tokenizer), **sizes, **_ends(tokenizer, start=tokenizer.pad_token_id))
    return {"base": save_language_model(T5ForConditionalGeneration(config), tokenizer, folder / "base")}


@bases.register("bart")
def bart(folder: Path) -> dict[str, Any]:
    """BART's encoder and decoder: learned positions; the decoder starts from the end token."""
    tokenizer = byte_tokenizer("<s> $A </s>", "<s> $A </s> </s> $B </s>")
    tokenizer.chat_template = None
    sizes: dict[str, Any] = {"d_model": 32, "max_position_embeddings": 1024}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_ffn_dim": 64, f"{side}_layers": 2, f"{side}_attention_heads": 4}
    config = BartConfig(vocab_size=len(tokenizer), **sizes, **_ends(tokenizer, start=tokenizer.eos_token_id))
    return {"base": save_language_model(BartForConditionalGeneration(config), tokenizer, folder / "base")}


@data.register("text")
def text(folder: Path) -> dict[str, Any]:
    """Prompts and completions: numbers and the words for them; one held-out prompt has two completions."""
    rows = [{"prompt": f"{i + 1} is", "completion": f" {word}"} for i, word in enumerate(_WORDS)]
    held_out = [*rows[:4], {"prompt": "1 is", "completion": " a unit"}]
    return {
        "train": write_rows(folder / "train.jsonl", rows),
        "eval": write_rows(folder / "eval.jsonl", held_out),
        "prompt_column": "prompt",
        "completion_column": "completion",
    }


@data.register("instruct")
def instruct(folder: Path) -> dict[str, Any]:
    """Sums: conversations of two turns in ShareGPT's layout, held out ones in Alpaca's."""
    conversations = [
        {
            "system": "You add.",
            "conversations": [
                {"from": "human", "value": f"What is {i} plus 1?"},
                {"from": "gpt", "value": f"{i + 1}."},
                {"from": "human", "value": "And plus 2?"},
                {"from": "gpt", "value": f"{i + 2}."},
            ],
        }
        for i in range(12)
    ]
    held_out = [{"instruction": "Add 1.", "input": str(i), "output": f"{i + 1}."} for i in range(4)]
    return {
        "train": write_rows(folder / "train.jsonl", conversations),
        "eval": write_rows(folder / "eval.jsonl", held_out),
    }


@data.register("summarize")
def summarize(folder: Path) -> dict[str, Any]:
    """Talk of two people about a number, in one sentence; held-out dialogues have two references."""
    rows = [
        {
            "dialogue": f"Ann: How many are there?\nBob: Just {word}.\nAnn: Only {word}!",
            "summary": f"Bob has {word}.",
        }
        for word in _WORDS
    ]
    held_out = [
        {**row, "summary": [row["summary"], f"There are {word}."]}
        for row, word in zip(rows[:4], _WORDS[:4], strict=True)
    ]
    return {
        "train": write_rows(folder / "train.jsonl", rows),
        "eval": write_rows(folder / "eval.jsonl", held_out),
        "input_column": "dialogue",
        "summary_column": "summary",
    }


def _decoder(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the configurations of Llama and its kin share."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 4096}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return {"vocab_size": len(tokenizer), **sizes, **heads, **_ends(tokenizer)}


def _ends(tokenizer: PreTrainedTokenizerBase, start: int | None = None) -> dict[str, Any]:
    """The tokens that mark beginnings and ends, and the one that an encoder-decoder's decoder starts from."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return ids if start is None else ids | {"decoder_start_token_id": start}


def save_language_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Writes a model and its tokenizer, and returns the folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes rows as JSONL, and returns the file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
