"""The demo's two tasks: say what a function does, and name a function after what it does."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from weft.demo.stdlib import Function

_SOURCE_LINES, _SOURCE_CHARACTERS = 16, 600
_EVALUATED = 200


@dataclass(frozen=True)
class Task:
    """One task: how a function becomes a prompt and the completion that is wanted."""

    name: str
    title: str
    prompt: Callable[[Function], str]
    completion: Callable[[Function], str]

    def write(self, functions: Sequence[Function], folder: Path, most: int, seed: int = 0) -> tuple[Path, Path]:
        """Writes the task's rows as JSONL under `folder`, `most` rows to train on and 200 to evaluate on at most.

        Returns the file for training and that for evaluation. Rows are shuffled; no row of a module that is evaluated
        is trained on, nor is a row twice in a file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for split, held_out in (("train", False), ("eval", True)):
            own = [f for f in functions if f.is_held_out == held_out and len(f.source) <= 4 * _SOURCE_CHARACTERS]
            rows = list(dict.fromkeys((self.prompt(f), self.completion(f)) for f in own))
            random.Random(seed).shuffle(rows)
            kept = rows[: min(_EVALUATED, most) if held_out else most]
            lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in kept]
            files.append(folder / f"{self.name}-{split}.jsonl")
            files[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
        return files[0], files[1]


def _shortened(source: str) -> str:
    text = "\n".join(source.splitlines()[:_SOURCE_LINES])
    return text if len(text) <= _SOURCE_CHARACTERS else text[:_SOURCE_CHARACTERS].rpartition("\n")[0]


SUMMARIZE = Task(
    name="summarize",
    title="source -> what it does",
    prompt=lambda f: f"{_shortened(f.source)}\n\n# What it does:",
    completion=lambda f: f" {f.summary}",
)
NAME = Task(
    name="name",
    title="what it does -> name",
    prompt=lambda f: f"# {f.summary}\ndef",
    completion=lambda f: f" {f.name}",
)
TASKS = (SUMMARIZE, NAME)
