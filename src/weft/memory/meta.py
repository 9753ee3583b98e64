"""Models on the meta device, and what stands in for the operations that are not what they are elsewhere."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def own_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss that the model itself takes."""
    loss: Tensor = model(**batch)["loss"]
    return loss


@dataclass(frozen=True)
class Sketch:
    """A run without its values.

    Attributes:
        model: on the meta device.
        batch: the largest batch, on the meta device.
        loss: what is differentiated, of the model and the batch.
        padded: whether rows are padded, so that attention needs a mask.
        weights: the bytes of the base, where they are not those of the model, as with a quantized base.
    """

    model: nn.Module
    batch: Mapping[str, Tensor]
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor] = own_loss
    padded: bool = False
    weights: int | None = None


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of a model on the meta device; takes no memory."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def batch_on_meta(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch without its values."""
    return {name: tensor.to("meta") for name, tensor in batch.items()}


class AsOnADevice(TorchFunctionMode):
    """On the meta device, does what a real one does where torch would do something else there.

    Attention is fused, as it is on CPUs and GPUs: it keeps its inputs, its output and a number for each row, and no
    matrix of scores.

    Args:
        shortcuts: what is answered to a condition that depends on values, such as whether a mask masks nothing at all.
    """

    def __init__(self, *, shortcuts: bool) -> None:
        super().__init__()
        self._shortcuts = shortcuts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return _fused_attention(*args, **kwargs)
        if func is Tensor.__bool__ and args[0].is_meta:
            return self._shortcuts
        return func(*args, **kwargs)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.empty_like(attn_mask, dtype=query.dtype)  # torch turns it into what is added to the scores
    output: Tensor = _FusedAttention.apply(query, key, value, attn_mask)
    return output


class _FusedAttention(torch.autograd.Function):
    """The tensors that a fused attention makes and keeps (Dao et al., 2022, arXiv 2205.14135), without their values.

    Query (batch, heads, T, size), key and value (batch, heads or fewer, S, size), output as the query, laid out in
    memory as (batch, T, heads, size); the logarithm of each row's sum (batch, heads, T) in float32.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, T, _ = query.shape
        output = query.new_empty(batch, T, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(batch, heads, T, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None
