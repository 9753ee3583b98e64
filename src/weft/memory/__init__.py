"""What a training run will need of a device's memory, found on the meta device before anything is loaded."""

from weft.memory.device import free_memory
from weft.memory.meta import Sketch, batch_on_meta, on_meta
from weft.memory.plan import MemoryPlan, plan_memory
from weft.memory.report import MemoryReport, memory_report

__all__ = [
    "MemoryPlan",
    "MemoryReport",
    "Sketch",
    "batch_on_meta",
    "free_memory",
    "memory_report",
    "on_meta",
    "plan_memory",
]
