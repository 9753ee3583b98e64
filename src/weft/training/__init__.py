"""Training an adapter with transformers' Trainer: the loop is theirs, the adapter's part is here.

`run` takes a run from its `RunConfig` to the adapter in its folder; `AdapterTrainer` is for a loop of your own.
"""

import importlib
from typing import TYPE_CHECKING

from weft.training.config import RunConfig

if TYPE_CHECKING:
    from weft.data.text import TextDataset, load_text
    from weft.training.base import Base, load_base
    from weft.training.curve import RankCurve, rank_curve
    from weft.training.job import run
    from weft.training.lorahub import Composition, search_weights
    from weft.training.result import RunResult
    from weft.training.self_training import SelfTrainingResult, self_train
    from weft.training.task import Evaluation, Metric, Sample, Task
    from weft.training.trainer import AdapterTrainer
    from weft.training.weight_search import WeightSearch

__all__ = [
    "AdapterTrainer",
    "Base",
    "Composition",
    "Evaluation",
    "Metric",
    "RankCurve",
    "RunConfig",
    "RunResult",
    "Sample",
    "SelfTrainingResult",
    "Task",
    "TextDataset",
    "WeightSearch",
    "load_base",
    "load_text",
    "rank_curve",
    "run",
    "search_weights",
    "self_train",
]

# transformers takes seconds to import, so what needs it is imported when it is first asked for.
_HOMES = {
    "AdapterTrainer": "weft.training.trainer",
    "Base": "weft.training.base",
    "Composition": "weft.training.lorahub",
    "Evaluation": "weft.training.task",
    "Metric": "weft.training.task",
    "RankCurve": "weft.training.curve",
    "RunResult": "weft.training.result",
    "Sample": "weft.training.task",
    "SelfTrainingResult": "weft.training.self_training",
    "Task": "weft.training.task",
    "TextDataset": "weft.data.text",
    "WeightSearch": "weft.training.weight_search",
    "load_base": "weft.training.base",
    "load_text": "weft.data.text",
    "rank_curve": "weft.training.curve",
    "run": "weft.training.job",
    "search_weights": "weft.training.lorahub",
    "self_train": "weft.training.self_training",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'weft.training' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
