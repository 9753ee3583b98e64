"""Loading a base model and its tokenizer, from a folder or a hub id."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from weft.bundled import bundled_base
from weft.errors import ConfigError
from weft.training.config import Quantize
from weft.training.quantize import require_quantized, weights_as

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


def checked_path(name: str | Path, setting: str = "base") -> str:
    """`base_path`, with ``~`` resolved; `setting` is what messages call it.

    Raises:
        ConfigError: it can only be a folder, and there is none.
    """
    path = base_path(name)
    local = Path(path).expanduser()
    if path[:1] in ("/", ".", "~") and not local.is_dir():
        raise ConfigError(f"{setting}: there is no folder {path}; name a folder with a config.json, or a hub id")
    return str(local) if path.startswith("~") else path


def reason(error: Exception) -> str:
    """An error of transformers in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def load_base(
    name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    quantize: Quantize = "none",
    encoder_decoders: bool = False,
) -> Base:
    """Loads a language model, in evaluation mode, and its tokenizer.

    Args:
        name: a folder, a hub id, or ``bundled``.
        dtype: the weights' dtype.
        quantize: "8bit" holds the linear layers in 8 bits, and puts the model on the GPU if there is one.
        encoder_decoders: take these too, and not causal language models alone.

    Raises:
        ConfigError: there is no such folder, transformers cannot load what is there (the message says why), it is
            an encoder-decoder that was not asked for, or it cannot be quantised.
    """
    path = checked_path(name)
    weights = weights_as(dtype, quantize)
    try:
        config = AutoConfig.from_pretrained(path)
        if config.is_encoder_decoder and not encoder_decoders:  # of some, transformers would load the decoder alone
            raise ConfigError(
                f"base: {path!r} is an encoder-decoder ({config.model_type}), and what is asked for takes causal "
                "language models; the task 'summarize' takes both"
            )
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = kind.from_pretrained(path, **weights)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"base: transformers cannot load {path!r} as a language model: {reason(error)}") from error
    require_quantized(model, quantize)
    return Base(model.eval(), tokenizer, str(name))
