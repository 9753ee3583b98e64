"""Loading a base model and its tokenizer, from a folder or a hub id."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from weft.bundled import bundled_base
from weft.errors import ConfigError

BUNDLED = "bundled"


@dataclass(frozen=True)
class Base:
    """A base model with its tokenizer, and the name that it was asked for by."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str


def base_path(name: str | Path) -> str:
    """The folder or hub id that `name` stands for; ``bundled`` is the base model that comes with weft."""
    return str(bundled_base()) if str(name) == BUNDLED else str(name)


def load_base(name: str | Path, *, dtype: torch.dtype = torch.float32, meta: bool = False) -> Base:
    """Loads a causal language model, in evaluation mode, and its tokenizer.

    Args:
        name: a folder, a hub id, or ``bundled``.
        dtype: the weights' dtype.
        meta: build the model on the meta device, without reading any weights.

    Raises:
        ConfigError: there is no such folder, or transformers cannot load what is there; the message says why.
    """
    path = base_path(name)
    if any(mark in path[:1] for mark in "./~") and not Path(path).expanduser().is_dir():
        raise ConfigError(f"base: there is no folder {path}; name a folder with a config.json, or a hub id")
    try:
        config = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
        if meta:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"base: transformers cannot load {path!r} as a causal language model: {reason}") from error
    return Base(model.eval(), tokenizer, str(name))
