"""A run's folder: what stands in it, and how it is written so that a kill at any moment hurts nothing.

config.yaml     every setting; the same run again
metrics.jsonl   one JSON object a line: training loss, evaluations
samples.jsonl   answers to held-out rows, one JSON object a line, from each evaluation
loss.png        the losses, drawn
metrics.png     the other metrics of the evaluations, if there were several
pictures/       what the model drew at each evaluation, if it draws
adapter/        the trained adapter; or
model/          a whole model's trained weights
README.md       its card
checkpoints/    the last and the best, for resuming
rounds/         of self-training, each a run of its own
scratch/        while the run lasts, what its task keeps on disk
tensorboard/    events, if TensorBoard is installed
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.errors import ConfigError, TrainingError
from weft.training.config import RunConfig
from weft.training.task import EVAL, Evaluation, Sample

FINAL = "final"  # marks the line of the evaluation after training


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run, and its metrics."""

    root: Path

    @property
    def config(self) -> Path:
        """Where the settings are."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Where the metrics are."""
        return self.root / "metrics.jsonl"

    @property
    def plot(self) -> Path:
        """Where the picture of the losses is."""
        return self.root / "loss.png"

    @property
    def adapter(self) -> Path:
        """Where the trained adapter is."""
        return self.root / "adapter"

    @property
    def model(self) -> Path:
        """Where the weights of a whole model are, if that was trained."""
        return self.root / "model"

    @property
    def card(self) -> Path:
        """Where the card is."""
        return self.root / "README.md"

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.root / "checkpoints"

    @property
    def samples(self) -> Path:
        """Where the answers to held-out rows are."""
        return self.root / "samples.jsonl"

    @property
    def metrics_plot(self) -> Path:
        """Where the picture of the other metrics is."""
        return self.root / "metrics.png"

    @property
    def pictures(self) -> Path:
        """Where the model's pictures are."""
        return self.root / "pictures"

    @property
    def rounds(self) -> Path:
        """Where the rounds of self-training are."""
        return self.root / "rounds"

    @property
    def scratch(self) -> Path:
        """Where the task keeps what it needs while the run lasts."""
        return self.root / "scratch"

    @property
    def tensorboard(self) -> Path:
        """Where TensorBoard's events are."""
        return self.root / "tensorboard"

    def start(self, config: RunConfig, *, overwrite: bool) -> None:
        """Makes the folder for a new run and writes its settings.

        Raises:
            ConfigError: something is there already, and may not be overwritten.
            TrainingError: the disk does not take it.
        """
        if self.root.is_dir() and any(self.root.iterdir()):
            if not overwrite:
                what = "a run" if self.config.is_file() else "something"
                raise ConfigError(
                    f"output: {self.root} holds {what} already; continue a run with --resume, replace it with "
                    "--overwrite, or choose another folder"
                )
            if not self.config.is_file():
                raise ConfigError(f"output: {self.root} holds something that is no run; it is not overwritten")
            self.clear()
        elif self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"output: {self.root} is a file; name a folder")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_whole(self.config, config.to_yaml())
        except OSError as error:
            raise TrainingError(f"cannot write the run's folder {self.root}: {error.strerror}") from error

    def clear(self) -> None:
        """Deletes what a run has written, and the folder if nothing else is in it."""
        for path in (self.config, self.metrics, self.samples, self.plot, self.metrics_plot, self.card):
            path.unlink(missing_ok=True)
        for path in (
            self.adapter,
            self.model,
            self.checkpoints,
            self.pictures,
            self.rounds,
            self.scratch,
            self.tensorboard,
        ):
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: somebody else's files stay
            self.root.rmdir()

    def log(self, line: Mapping[str, Any]) -> None:
        """Appends one line of metrics; a number that JSON cannot hold becomes null."""
        _append(self.metrics, [{key: _finite(value) for key, value in line.items()}])

    def log_evaluation(self, step: int, found: Evaluation, *, final: bool = False) -> None:
        """Appends what an evaluation found; `final` marks that after training."""
        self.log({"step": step, **({FINAL: True} if final else {}), **found.prefixed()})
        self.keep(step, found, final=final)

    def keep(self, step: int, found: Evaluation, *, final: bool = False) -> None:
        """Writes the samples and the picture of an evaluation."""
        mark = {"step": step, **({FINAL: True} if final else {})}
        if found.samples:
            _append(self.samples, [{**mark, **dataclasses.asdict(sample)} for sample in found.samples])
        if found.picture is not None:
            self.pictures.mkdir(exist_ok=True)
            found.picture.save(self.pictures / (f"{FINAL}.png" if final else f"step-{step:06d}.png"))

    def lines(self) -> list[dict[str, Any]]:
        """The metrics so far; a last line that a kill cut short is left out."""
        return _read(self.metrics)

    def evaluation(self, step: int) -> Evaluation | None:
        """What the evaluation after so many steps found, without its picture; None if there was none."""
        for line in self.lines():
            if line["step"] == step and f"{EVAL}loss" in line and FINAL not in line:
                found = {key.removeprefix(EVAL): value for key, value in line.items() if key.startswith(EVAL)}
                samples = [
                    Sample(each["input"], each["reference"], each["answer"])
                    for each in _read(self.samples)
                    if each["step"] == step and FINAL not in each
                ]
                return Evaluation(int(found.pop("rows")), found, samples)
        return None

    def rewind(self, step: int) -> None:
        """Drops what was logged of the steps after `step`, which are about to be done again, and of the end."""
        for path in (self.metrics, self.samples):
            kept = [line for line in _read(path) if line["step"] <= step and FINAL not in line]
            if kept or path.is_file():
                write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))


def _append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def _read(path: Path) -> list[dict[str, Any]]:
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
    return lines


def write_whole(path: Path, text: str) -> None:
    """Writes a text file by way of a temporary one, so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
