"""A comparison on a tiny base, made of real runs in this process."""

import dataclasses
import json
from pathlib import Path

from weft.compare import Comparison, compare
from weft.compare.job import Found, Job
from weft.compare.measure import measure
from weft.tasks import TextRun


class Here:
    """Does jobs in this process, and remembers their names."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def __call__(self, job: Job, scratch: Path) -> Found:
        self.done.append(job.name)
        return measure(job)


@dataclasses.dataclass(frozen=True)
class Made:
    config: TextRun
    test: Path
    comparison: Comparison
    done: list[str]


def rows(path: Path, numbers: range) -> Path:
    lines = [json.dumps({"prompt": f"{i}:", "completion": " odd" if i % 2 else " even"}) for i in numbers]
    path.write_text("\n".join(lines))
    return path


def make(base: Path, folder: Path) -> Made:
    """LoRA, biases alone (which this base has none of) and full fine-tuning, two seeds each."""
    config = TextRun(
        base=str(base), train=str(rows(folder / "train.jsonl", range(24))), output=folder / "unused", rank=2,
        eval=str(rows(folder / "eval.jsonl", range(30, 40))), max_steps=4, batch_size=6, eval_every=2, seed=1,
        learning_rate=1e-2, tensorboard=False,
    )  # fmt: skip
    test = rows(folder / "test.jsonl", range(50, 60))
    runner = Here()
    comparison = compare(
        config, ["lora", "bitfit", "full"], output=folder / "out", rates={"": [1e-2]}, seeds=2, test=str(test),
        runner=runner,
    )  # fmt: skip
    return Made(config, test, comparison, runner.done)
