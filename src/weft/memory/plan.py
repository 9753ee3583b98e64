"""The memory of a training run, from one step on the meta device."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weft.config import Kaiming, LoRAConfig
from weft.memory.live import LiveMemory
from weft.memory.meta import AsOnADevice, Sketch
from weft.model import attach, trainable_parameters

_MOMENT_BYTES = 2 * 4  # AdamW's two moments of a parameter, in float32


@dataclass(frozen=True)
class MemoryPlan:
    """The bytes that training takes at its peak; those of the program itself (torch, its kernels) are not among them.

    Attributes:
        weights: the base, parameters and buffers.
        adapter: what is trained.
        gradients: of what is trained.
        optimizer: AdamW's two moments.
        activations: what the forward pass of the largest batch leaves for the backward pass, up to the output head.
        logits: what output head and loss take on top of the activations; 0 for a model without an output head.
        working: what operations take for a moment on top of the activations, most of it in the backward pass.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    working: int

    @property
    def total(self) -> int:
        """The peak: logits and working memory are not needed at one time."""
        kept = self.weights + self.adapter + self.gradients + self.optimizer + self.activations
        return kept + max(self.logits, self.working)

    def to_dict(self) -> dict[str, int]:
        """Plain values for JSON."""
        return {**asdict(self), "total": self.total}

    def rows(self) -> list[tuple[str, int]]:
        """The lines of a table: what it is, and its bytes; the total last."""
        return [
            ("weights of the base", self.weights),
            ("adapter", self.adapter),
            ("its gradients", self.gradients),
            ("AdamW's moments", self.optimizer),
            ("activations of the largest batch", self.activations),
            ("logits, or what the backward pass works with", max(self.logits, self.working)),
            ("total, at the peak", self.total),
        ]


def plan_memory(sketch: Sketch, config: LoRAConfig, *, gradient_checkpointing: bool = False) -> MemoryPlan:
    """What training an adapter takes, found by one step on the meta device.

    Every storage of the step counts once, from the operation that makes it until its last tensor is gone. What an
    allocator rounds up, and what kernels use inside, does not count.

    Args:
        sketch: the model in the dtype that it will have, without adapters, and its largest batch. The model gets the
            adapter.
        config: the adapter's.
        gradient_checkpointing: whether blocks compute their activations again in the backward pass.

    Raises:
        TargetError: a pattern that matches nothing, or a module that cannot be adapted.
        RuntimeError: the model looks at values, which there are none of on the meta device.
    """
    model, as_on_a_device = sketch.model, partial(AsOnADevice, shortcuts=not sketch.padded)
    base = _nbytes([*model.parameters(), *model.buffers()])
    attach(model, replace(config, init=Kaiming()))  # a start that is computed from weights has the same shape
    trained = [parameter for parameter in trainable_parameters(model) if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)  # there from the second step on
    model.train()
    if gradient_checkpointing and isinstance(model, PreTrainedModel):
        model.activation_checkpointing_enable(
            {
                "use_reentrant": False,
                "preserve_rng_state": False,  # the meta device has none
                "context_fn": lambda: (nullcontext(), as_on_a_device()),  # a backward pass leaves function modes
            }
        )
        model.disable_input_require_grads()
    live = LiveMemory()
    head = _Head(model, live)
    with live, as_on_a_device():
        loss = sketch.loss(model, sketch.batch)
        head.arrive()  # a model without one is at its end
        logits = live.peak - head.activations
        live.restart()
        loss.backward()
    size = _nbytes(trained)
    return MemoryPlan(
        weights=base if sketch.weights is None else sketch.weights,
        adapter=size,
        gradients=size,
        optimizer=_MOMENT_BYTES * sum(parameter.numel() for parameter in trained),
        activations=head.activations,
        logits=logits,
        working=max(head.peak, live.peak) - head.activations,
    )


class _Head:
    """Reads the memory at the moment when a forward pass first gets to the output head.

    Attributes:
        activations: bytes that lived then.
        peak: the most until then.
    """

    def __init__(self, model: nn.Module, live: LiveMemory) -> None:
        self.activations = self.peak = 0
        self._live = live
        self._arrived = False
        layer = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
        if isinstance(layer, nn.Module):
            layer.register_forward_pre_hook(lambda module, inputs: self.arrive())

    def arrive(self) -> None:
        """Only the first time counts."""
        if not self._arrived:
            self._arrived = True
            self.activations, self.peak = self._live.now, self._live.peak
            self._live.restart()


def _nbytes(tensors: Iterable[Tensor]) -> int:
    """Of distinct storages."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
