"""Attention over packed batches: each row to itself, whatever lies beside it.

The batches are `weft.data.packed`'s. transformers' models hand a four-dimensional mask down to their attention as it
is; here it carries where the rows begin, and attention runs row by row with none: no (T, T) mask is made, and no work
is done on pairs of tokens of two rows.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from weft.data.packed import PackedCollator
from weft.nn.quantized import without_outliers
from weft.training.mode import evaluating
from weft.training.token_loss import is_causal

IMPLEMENTATION = "sdpa_packed"  # its name among transformers' attention implementations

_ATTENTION = {"full_attention", "sliding_attention"}  # the kinds of layer in which a token meets others by attention
_WINDOWS = ("sliding_window", "attention_chunk_size")


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **settings: Any,  # what transformers hands to its own
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, row by row where the batch is packed, and transformers' own where it is not.

    Args:
        module: the attention layer.
        query: (1, heads, T, head size) of a packed batch.
        key, value: (1, heads or fewer, T, head size).
        attention_mask: (1, 1, 1, rows + 1) int32 of a packed batch, as `PackedCollator` makes it; or a mask.
        dropout: of the attention's weights.
        is_causal: of a batch that is not packed; one that is packed is causal.
        sliding_window: a token sees itself and the `sliding_window - 1` before it.
        settings: the others of transformers' `sdpa_attention_forward`.

    Returns:
        (1, T, heads, head size), and None for the weights.
    """
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, is_causal=is_causal, **settings
        )
    lengths = [end - start for start, end in pairwise(attention_mask.flatten().tolist())]
    parts = []
    # split, whose gradient is joined once; that of a slice is laid into zeros of the whole batch
    for q, k, v in zip(*(tensor.split(lengths, 2) for tensor in (query, key, value)), strict=True):
        window = _window(q.shape[2], sliding_window, query.device)
        out, _ = sdpa_attention_forward(module, q, k, v, window, dropout=dropout, is_causal=True, **settings)
        parts.append(out)
    return torch.cat(parts, 1), None


def _window(length: int, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """The causal mask of a row that is longer than the window; (1, 1, length, length), bool."""
    if sliding_window is None or length <= sliding_window:
        return None
    mask = torch.ones(length, length, dtype=torch.bool, device=device)
    return mask.tril().triu(1 - sliding_window)[None, None]


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


@contextmanager
def packing(model: PreTrainedModel) -> Iterator[None]:
    """Lets a model take packed batches (others too) as long as the context lasts, backward passes included."""
    before = model.config._attn_implementation
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def obstacle(model: nn.Module, longest: int) -> str | None:
    """Why a model cannot take packed batches, in words; None if it can.

    Its kind is looked at first; then it is tried: a row beside another must give what it gives alone, and give it
    whatever the other holds.

    Args:
        model: the model, with adapters or without.
        longest: tokens in the longest row to come. Only rows that are longer than an attention window show whether
            it is kept.
    """
    if not isinstance(model, PreTrainedModel) or not is_causal(model):
        return "it is no causal language model of transformers"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "it takes no position_ids"
    config = model.config.get_text_config()
    others = set(config.to_dict().get("layer_types") or ()) - _ATTENTION
    if others:
        return f"some of its layers are {', '.join(sorted(others))}"
    if config._attn_implementation not in ("sdpa", IMPLEMENTATION):
        return f"its attention is {config._attn_implementation!r}, not 'sdpa'"
    windows = [value for name in _WINDOWS if isinstance(value := config.to_dict().get(name), int)]
    length = min(longest, 2 + max(windows, default=6))
    with packing(model):
        if config._attn_implementation != IMPLEMENTATION:
            return "its attention cannot be exchanged"
        apart = _keeps_rows_apart(model, max(2, length))
    return None if apart else "rows in one batch would see each other"


def _keeps_rows_apart(model: PreTrainedModel, length: int) -> bool:
    size = model.config.get_text_config().vocab_size
    row, first, other = ([(7 * i + shift) % size for i in range(n)] for n, shift in ((length, 1), (5, 2), (5, 3)))

    def hidden(**batch: Tensor) -> Tensor:
        inputs = {key: value.to(model.device) for key, value in batch.items() if key != "labels"}
        output: Tensor = model.base_model(**inputs, use_cache=False)[0][0, -length:]  # (length, width)
        return output.float()

    def beside(neighbor: list[int]) -> Tensor:
        return hidden(**PackedCollator()([{"input_ids": ids, "labels": ids} for ids in (neighbor, row)]))

    with evaluating(model), without_outliers(model):
        alone, packed, again = hidden(input_ids=torch.tensor([row])), beside(first), beside(other)
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 5e-2
    return torch.equal(packed, again) and bool((packed - alone).norm() <= tolerance * alone.norm())
