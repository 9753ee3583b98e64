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
    from weft.training.evaluation import EvalResult, evaluate
    from weft.training.job import run
    from weft.training.result import RunResult
    from weft.training.trainer import AdapterTrainer

__all__ = [
    "AdapterTrainer",
    "Base",
    "EvalResult",
    "RankCurve",
    "RunConfig",
    "RunResult",
    "TextDataset",
    "evaluate",
    "load_base",
    "load_text",
    "rank_curve",
    "run",
]

# transformers takes seconds to import, so what needs it is imported when it is first asked for.
_HOMES = {
    "AdapterTrainer": "weft.training.trainer",
    "Base": "weft.training.base",
    "EvalResult": "weft.training.evaluation",
    "RankCurve": "weft.training.curve",
    "RunResult": "weft.training.result",
    "TextDataset": "weft.data.text",
    "evaluate": "weft.training.evaluation",
    "load_base": "weft.training.base",
    "load_text": "weft.data.text",
    "rank_curve": "weft.training.curve",
    "run": "weft.training.job",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'weft.training' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
