"""Weights that bitsandbytes quantised, in 8 or 4 bits; nothing is imported from it before such a layer is met.

8 bits (Dettmers et al., 2022, arXiv 2208.07339): each row of W is rounded to whole numbers from -127 to 127,
``W = CB * SCB / 127`` with SCB (out) the largest absolute value of a row. 4 bits (Dettmers et al., 2023,
arXiv 2305.14314): each run of 64 entries is rounded to one of 16 numbers times the run's largest absolute value.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from weft.nn.storage import Storage, register_storage, storage_of

_LEVELS = 127


def round_to_8bit(W: Tensor) -> Tensor:
    """What W (out, in) becomes when it is stored in 8 bits and read again; float32.

    As bitsandbytes does, it is rounded to float16 first.
    """
    half = W.detach().half()
    largest = half.abs().amax(dim=1, keepdim=True).float()
    steps = torch.where(largest > 0, _LEVELS / largest, 0.0)
    return (half * steps).round() * (largest / _LEVELS)


class _BitsAndBytes(Storage):
    """What the two have in common."""

    class_name: str

    @classmethod
    def serves(cls, module: nn.Module) -> bool:
        # By name, so that bitsandbytes need not be there.
        return any(
            t.__module__ == "bitsandbytes.nn.modules" and t.__name__ == cls.class_name for t in type(module).__mro__
        )

    @property
    def shape(self) -> tuple[int, int]:
        module = self.module
        assert isinstance(module, nn.Linear)
        shape = module.out_features, module.in_features
        return shape[::-1] if self._transposed else shape

    @property
    def _transposed(self) -> bool:
        """Whether transformers made the layer from a Conv1D, as GPT-2 has it, whose weight is (in, out)."""
        return getattr(self.module, "source_cls", nn.Linear).__name__ == "Conv1D"

    def _stored(self, places: Tensor) -> Tensor:
        """The flat positions in W (out, in) of those in `shape`."""
        if not self._transposed:
            return places
        width, out = self.shape
        return places % out * width + places // out

    @property
    def weight(self) -> Any:
        """The parameter, of a class of bitsandbytes with attributes of its own."""
        return self.module._parameters["weight"]


@register_storage
class EightBit(_BitsAndBytes):
    """The weight of a ``bitsandbytes.nn.Linear8bitLt``."""

    name = "8bit"
    class_name = "Linear8bitLt"

    def refusal(self) -> str | None:
        if self.weight.dtype == torch.int8 and not self.weight.is_meta:
            return None
        return (
            f"its class Linear8bitLt holds a weight in {self.weight.dtype} on {self.weight.device} that it quantises "
            "later; make it with has_fp16_weights=False, and move the model to its device first"
        )

    @property
    def _scale(self) -> Tensor:
        """SCB / 127 (out), from where bitsandbytes keeps it: the first forward moves it off the parameter."""
        held: Any = self.module.state if self.weight.SCB is None else self.weight
        largest: Tensor = held.SCB
        return largest.float() / _LEVELS

    def dense(self) -> Tensor:
        weight: Tensor = self.weight.data
        return weight.float().mul_(self._scale.unsqueeze(1))

    def sample(self, places: Tensor) -> tuple[Tensor, Tensor]:
        weight: Tensor = self.weight.data
        places = self._stored(places).to(weight.device)
        step = self._scale[places // weight.shape[1]]
        entries = weight.flatten()[places].float() * step
        # Half a step, and what rounding to float16 took before: at most 2^-11 of the largest number of the row.
        return entries.cpu(), (step * (0.5 + _LEVELS * 2**-11)).cpu()


@contextmanager
def without_outliers(model: nn.Module) -> Iterator[None]:
    """8-bit layers that round every column of their input, for the length of a ``with`` block.

    Those with large entries, anywhere in a batch, they otherwise leave as they are (LLM.int8): so what a row gives
    depends, a little, on the rows beside it.
    """
    states: list[Any] = [module.state for module in model.modules() if isinstance(storage_of(module), EightBit)]
    before = [state.threshold for state in states]
    for state in states:
        state.threshold = 0.0
    try:
        yield
    finally:
        for state, threshold in zip(states, before, strict=True):
            state.threshold = threshold


@register_storage
class FourBit(_BitsAndBytes):
    """The weight of a ``bitsandbytes.nn.Linear4bit``: NF4 or FP4, with or without quantised scales."""

    name = "4bit"
    class_name = "Linear4bit"

    def refusal(self) -> str | None:
        state = self.weight.quant_state
        if state is None or self.weight.is_meta:
            return "its class Linear4bit holds a weight that is not quantised yet; move the model to its device first"
        if getattr(state, "packing_format_for_cpu", False):
            return (
                "a forward pass in evaluation mode has packed its 4-bit weight for this CPU, in a form that does not "
                "train; load the base again and attach first, or load it with 8 bits"
            )
        return None

    def dense(self) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        values: Tensor = dequantize_4bit(self.weight.data, self.weight.quant_state)
        return values.float()

    def sample(self, places: Tensor) -> tuple[Tensor, Tensor]:
        from bitsandbytes.functional import dequantize_blockwise

        state = self.weight.quant_state
        places = self._stored(places)
        packed: Tensor = self.weight.data.view(torch.uint8).flatten()
        code: Tensor = state.code.float().cpu()
        largest: Tensor = state.absmax
        if state.nested:
            largest = dequantize_blockwise(state.absmax, state.state2) + state.offset
        pairs = packed[(places // 2).to(packed.device)].cpu().long()
        index = torch.where(places % 2 == 0, pairs >> 4, pairs & 15)  # the first of two stands in the upper half
        scale = largest[(places // state.blocksize).to(largest.device)].float().cpu()
        # The farthest number that rounds to this one is half the way to the next; a scale in 8 bits is off by 1% or so.
        ordered = torch.unique(code)
        gaps = torch.cat([ordered.diff(), ordered.new_zeros(1)])
        reach = torch.maximum(gaps, gaps.roll(1)) / 2
        entries = code[index]
        reach = reach[torch.searchsorted(ordered, entries)]
        return entries * scale, (reach + 0.02 * entries.abs()) * scale
