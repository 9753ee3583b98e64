"""The kinds of run: one file a task, and its settings, which import neither torch nor transformers, in `settings`."""

import importlib
from typing import TYPE_CHECKING

from weft.tasks.settings.classify import ClassifyRun
from weft.tasks.settings.image import ImageRun
from weft.tasks.settings.instruct import InstructRun
from weft.tasks.settings.speech import SpeechRun
from weft.tasks.settings.summarize import SummarizeRun
from weft.tasks.settings.text import TextRun

if TYPE_CHECKING:
    from weft.tasks.language.evaluation import evaluate, generate_answers

__all__ = [
    "ClassifyRun",
    "ImageRun",
    "InstructRun",
    "SpeechRun",
    "SummarizeRun",
    "TextRun",
    "evaluate",
    "generate_answers",
]

# What needs torch and transformers is imported when it is first asked for.
_HOMES = {
    "evaluate": "weft.tasks.language.evaluation",
    "generate_answers": "weft.tasks.language.evaluation",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'weft.tasks' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
