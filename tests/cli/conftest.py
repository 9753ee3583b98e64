"""Tiny bases with tokenizers, and adapters for them, as folders; made once."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner, Result

import weft
from weft.cli import app

_CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Made:
    """A base on disk with an adapter for it."""

    base: Path
    auto: Any
    adapter: weft.Adapter
    adapter_path: Path

    def model(self) -> Any:
        """The base in memory, in the dtype of its files."""
        return self.auto.from_pretrained(self.base, dtype="auto")


def _tokenizer() -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["the warp is held still, the weft is woven"], vocab_size=270, special_tokens=["<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<end>", pad_token="<end>")
    tokenizer.chat_template = _CHAT
    return tokenizer


def make(
    folder: Path, config: PreTrainedConfig, auto: Any, lora: weft.LoRAConfig, dtype: torch.dtype, max_shard_size: str
) -> Made:
    """Writes a random base and an adapter with random factors."""
    torch.manual_seed(0)
    base = folder / "base"
    model = auto.from_config(config, dtype=dtype)
    for parameter in model.parameters():  # biases and norms too: zeros and ones would hide a mix-up
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(base, max_shard_size=max_shard_size)
    _tokenizer().save_pretrained(base)
    model = auto.from_pretrained(base, dtype="auto")
    weft.attach(model, lora)
    with torch.no_grad():
        for parameter in weft.trainable_parameters(model):
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    adapter = weft.collect(model)
    return Made(base, auto, adapter, adapter.save(folder / "run" / "adapter"))


def _llama(**changes: Any) -> LlamaConfig:
    return LlamaConfig(
        **{
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": 270, "max_position_embeddings": 128, "bos_token_id": None,
            "eos_token_id": 0, "pad_token_id": 0,
        } | changes
    )  # fmt: skip


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """bfloat16, in several files."""
    lora = weft.LoRAConfig(rank=4, alpha=8, rank_pattern={"q_proj": 2})
    return make(
        tmp_path_factory.mktemp("llama"), _llama(), AutoModelForCausalLM, lora, torch.bfloat16, max_shard_size="20KB"
    )


@pytest.fixture(scope="session")
def wide_llama(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Of other shapes than `llama`."""
    return make(
        tmp_path_factory.mktemp("wide"),
        _llama(hidden_size=48, num_attention_heads=3),
        AutoModelForCausalLM,
        weft.LoRAConfig(rank=2),
        torch.float32,
        max_shard_size="5GB",
    )


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Weights stored as their transpose, the embedding tied to the head and adapted, biases trained."""
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=270, n_positions=64, bos_token_id=0, eos_token_id=0)
    lora = weft.LoRAConfig(rank=4, alpha=8, targets=("c_attn", "c_fc", "wte"), bias="adapted")
    return make(tmp_path_factory.mktemp("gpt2"), config, AutoModelForCausalLM, lora, torch.float32, "5GB")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A head trained whole, every bias trained, float16, in several files."""
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=270, num_labels=3
    )
    lora = weft.LoRAConfig(
        rank=4, alpha=8, targets=("query", "value", "word_embeddings"), train_modules=("classifier",), bias="all"
    )
    return make(
        tmp_path_factory.mktemp("bert"), config, AutoModelForSequenceClassification, lora, torch.float16, "30KB"
    )


@pytest.fixture(autouse=True)
def _library_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test looks into the user's library."""
    monkeypatch.setenv("WEFT_LIBRARY", str(tmp_path / "library"))


def python(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter's run."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Runs the command line in this process: ``run("plan", base, "--rank", 8, input="...")``."""

    def run_command(*words: object, input: str = "") -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words], input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run_command


@pytest.fixture
def fail(run: Run) -> Callable[..., str]:
    """Runs a command that must fail with exit code 2, nothing on stdout and one error message, which it returns."""

    def fail_command(*words: object, input: str = "") -> str:
        result = run(*words, input=input)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert "Traceback" not in result.stderr
        return result.stderr

    return fail_command
