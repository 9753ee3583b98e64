"""A base's weights in 8 bits: what transformers is told, and whether it did so. Every task loads its base this way."""

import importlib.util
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from weft.errors import ConfigError
from weft.nn import storage_of
from weft.training.config import Quantize


def weights_as(dtype: torch.dtype, quantize: Quantize, *, keep: Sequence[str] = ()) -> dict[str, Any]:
    """How a model's weights are to be held, as arguments of transformers' ``from_pretrained``.

    With 8 bits, the linear layers become bitsandbytes' ``Linear8bitLt`` on the GPU, or on the CPU where there is none.
    What transformers leaves out stays in `dtype`: output embeddings, and what is no linear layer.

    Args:
        dtype: of what is not quantised.
        quantize: whether linear layers are.
        keep: names of layers to leave out in the place of those that transformers would, such as a head that it does
            not know for one.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if quantize == "none":
        return {"dtype": dtype}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"quantize: {quantize} needs bitsandbytes, which is not installed; pip install 'weft[quant]'")
    # On the CPU, each product in evaluation mode says that it rounds its input; so it does, and one knows.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {
        "dtype": dtype,
        "quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(keep) or None),
        "device_map": {"": device},
    }


def require_quantized(model: nn.Module, quantize: Quantize) -> None:
    """Raises ConfigError if layers were to be quantised, and none is."""
    if quantize != "none" and not any(storage_of(module) is not None for module in model.modules()):
        raise ConfigError(
            f"quantize: no layer of this {type(model).__name__} was quantised, so the setting would do nothing; "
            "leave it out"
        )
