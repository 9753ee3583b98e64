"""A run of a language model without its values: what planning its memory needs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weft.data.text import context_length
from weft.errors import ConfigError
from weft.memory import Sketch
from weft.tasks.settings.language import LanguageRun
from weft.training.skeleton import load_skeleton
from weft.training.token_loss import likely_head, token_loss


def language_sketch(config: LanguageRun, longest: int | None = None, longest_answer: int | None = None) -> Sketch:
    """The base and the largest batch of a run of a language model, on the meta device.

    Args:
        config: the settings; `bf16` and `quantize` decide how the weights are held.
        longest: tokens in the longest row; by default as many as the settings, or else the base's context, allow.
        longest_answer: tokens in the longest answer of an encoder-decoder; by default as in the longest row.

    Raises:
        ConfigError: transformers cannot build the base, or nothing says how long a row may be.
    """
    model = load_skeleton(config.base)
    nn.Module.to(model, torch.bfloat16 if config.bf16 is True else torch.float32)
    row = longest or config.max_length
    length = context_length(model) if row is None else row + config.prompt_length
    if length is None:
        raise ConfigError("max_length: this base names no limit of its own; give one, so that memory can be planned")

    def tokens(count: int) -> Tensor:
        return torch.empty(config.batch_size, count, dtype=torch.int64, device="meta")

    batch = {"input_ids": tokens(length)}
    padded = model.config.is_encoder_decoder or config.batching in ("sorted", "random")
    if padded:
        batch["attention_mask"] = tokens(length)
    batch["labels"] = tokens(longest_answer or length) if model.config.is_encoder_decoder else batch["input_ids"]
    return Sketch(model, batch, _loss, padded=padded, weights=_weights(model) if config.quantize == "8bit" else None)


def _weights(model: PreTrainedModel) -> int:
    """The bytes of a model whose linear layers are in 8 bits, with a float32 scale for each output.

    As transformers does, the output head is left out.
    """
    head = model.get_output_embeddings()
    total = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            total += module.weight.numel() + 4 * module.out_features - module.weight.nbytes
    return total


def _loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """As in training, where every token is learned: in chunks if the model has a head of its own."""
    assert isinstance(model, PreTrainedModel)
    head = likely_head(model)
    if head is None:
        loss: Tensor = model(**batch, use_cache=False).loss
        return loss
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    hidden = model.base_model(**inputs, use_cache=False)[0]  # (rows, length, width)
    return token_loss(head, hidden[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
