"""The memory plan of a training run, from its settings or from the run once it is opened."""

import torch
from rich.console import Console
from torch import nn

from weft.memory import MemoryReport, Sketch, memory_report
from weft.training.config import RunConfig
from weft.training.task import Task


def run_device() -> torch.device:
    """Where a run's model will be."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def move_to_device(model: nn.Module) -> None:
    """Puts a model where the run will be, unless it is on a GPU already."""
    device = run_device()
    if next(model.parameters()).device.type != device.type:
        model.to(device)


def run_memory(config: RunConfig, sketch: Sketch, *, opened: bool) -> MemoryReport:
    """What a run with these settings will take; errors as of `weft.memory.plan_memory`.

    Args:
        config: the settings.
        sketch: the task's.
        opened: whether the base is loaded already; it is on the CPU then.
    """
    device = run_device()
    return memory_report(
        sketch,
        config.lora(),
        device,
        gradient_checkpointing=config.gradient_checkpointing,
        loaded=opened and device.type == "cpu",
    )


def show_memory(task: Task, console: Console) -> None:
    """Prints what an opened run will take, before an adapter is attached, and a warning if that is too much.

    A model that cannot be planned is still trained: its own code may read values, which a plan does not have.
    """
    try:
        report = run_memory(task.config, task.sketch(), opened=True)
    except Exception as error:  # from any model's own code
        reason = str(error).strip().splitlines()
        console.print(
            f"memory: not planned, since the model needs values for it ({reason[0] if reason else ''})", markup=False
        )
        return
    console.print(str(report), markup=False)
    if report.too_much is not None:
        console.print(f"[yellow]warning:[/] {report.too_much}")
