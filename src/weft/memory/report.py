"""A memory plan beside what the device has to give."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft.config import LoRAConfig
from weft.memory.device import free_memory
from weft.memory.meta import Sketch
from weft.memory.plan import MemoryPlan, plan_memory


@dataclass(frozen=True)
class MemoryReport:
    """What a run will take of its device; `str` is a table for people.

    Attributes:
        plan: what it will take.
        batch: the largest batch, as the shape of its first tensor.
        dtype: of the base's weights.
        device: where it will run.
        free: bytes that are free there for the run; None where that is not known.
    """

    plan: MemoryPlan
    batch: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    free: int | None

    @property
    def too_much(self) -> str | None:
        """What is wrong and what to do, if the device has less than the plan takes."""
        if self.free is None or self.plan.total <= self.free:
            return None
        return (
            f"the run needs about {self.plan.total / 1e9:.2f} GB, and {self.device} has {self.free / 1e9:.2f} GB free: "
            "lower batch_size (and raise gradient_accumulation by as much) or max_length, or turn "
            "gradient_checkpointing or bf16 on"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **self.plan.to_dict(),
            "batch": list(self.batch),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "free": self.free,
        }

    def __str__(self) -> str:
        rows = [*self.plan.rows(), *([("free", self.free)] if self.free is not None else [])]
        shape = " x ".join(map(str, self.batch))
        title = f"memory on {self.device}, base in {str(self.dtype).removeprefix('torch.')}, batch of {shape}"
        width = max(len(name) for name, _ in rows)
        return "\n".join([f"{title}:", *(f"  {name:<{width}}  {size / 1e6:>12,.1f} MB" for name, size in rows)])


def memory_report(
    sketch: Sketch,
    config: LoRAConfig,
    device: torch.device,
    *,
    gradient_checkpointing: bool = False,
    loaded: bool = False,
) -> MemoryReport:
    """Plans the memory of a run on a device; arguments and errors as of `plan_memory`.

    Args:
        sketch, config, gradient_checkpointing: as of `plan_memory`.
        device: where the run will be.
        loaded: whether the base is there already, so that what is free is beside it.
    """
    first: Tensor = next(iter(sketch.batch.values()))
    dtype = next(parameter.dtype for parameter in sketch.model.parameters() if parameter.is_floating_point())
    plan = plan_memory(sketch, config, gradient_checkpointing=gradient_checkpointing)
    free = free_memory(device)
    if free is not None and loaded:
        free += plan.weights
    return MemoryReport(plan, tuple(first.shape), dtype, device, free)
