"""A run's folder: what stands in it, and how it is written so that a kill at any moment hurts nothing.

config.yaml     every setting; the same run again
metrics.jsonl   one JSON object a line: training loss, evaluations
loss.png        the losses, drawn
adapter/        the trained adapter
README.md       its card
checkpoints/    the last and the best, for resuming
frozen_states/  while the run lasts, the frozen blocks' output, if it is cached
tensorboard/    events, if TensorBoard is installed
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.errors import ConfigError, TrainingError
from weft.training.config import RunConfig

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
    def card(self) -> Path:
        """Where the card is."""
        return self.root / "README.md"

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.root / "checkpoints"

    @property
    def frozen_states(self) -> Path:
        """Where the frozen blocks' output is."""
        return self.root / "frozen_states"

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
        for path in (self.config, self.metrics, self.plot, self.card):
            path.unlink(missing_ok=True)
        for path in (self.adapter, self.checkpoints, self.frozen_states, self.tensorboard):
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: somebody else's files stay
            self.root.rmdir()

    def log(self, line: Mapping[str, Any]) -> None:
        """Appends one line of metrics; a number that JSON cannot hold becomes null."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: _finite(value) for key, value in line.items()}) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """The metrics so far; a last line that a kill cut short is left out."""
        if not self.metrics.is_file():
            return []
        lines = []
        for text in self.metrics.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
        return lines

    def rewind(self, step: int) -> None:
        """Drops the metrics of the steps after `step`, which are about to be done again, and of the end."""
        kept = [line for line in self.lines() if line["step"] <= step and FINAL not in line]
        write_whole(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))


def write_whole(path: Path, text: str) -> None:
    """Writes a text file by way of a temporary one, so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
