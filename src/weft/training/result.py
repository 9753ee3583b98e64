"""What a run came to."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.training.distance import Distance
from weft.training.task import Evaluation, Report


@dataclass(frozen=True)
class RunResult:
    """What a training run came to.

    Attributes:
        folder: the run's folder.
        adapter: the trained adapter's folder in it.
        before, after: the evaluations of the base alone and with the trained adapter; None without held-out data.
        train_data, eval_data: what became of the rows.
        steps: optimizer steps from the run's very beginning.
        best_step: the step whose weights were kept, if not the last one's.
        seconds: this process's training time, evaluations and checkpoints included.
        seconds_per_step: the mean optimizer step in this process, without evaluations; None if it did none.
        train_loss: the last training loss that was logged, in nats per learned token.
        trainable: trained parameters.
        share: these over the base's.
        distance: how far the training data were from the base, where that was looked at.
    """

    folder: Path
    adapter: Path
    before: Evaluation | None
    after: Evaluation | None
    train_data: Report
    eval_data: Report | None
    steps: int
    best_step: int | None
    seconds: float
    seconds_per_step: float | None
    train_loss: float | None
    trainable: int
    share: float
    distance: Distance | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, value in values.items():
            if isinstance(value, Path):
                values[name] = str(value)
            elif isinstance(value, Evaluation):
                values[name] = value.to_dict()
            elif dataclasses.is_dataclass(value) and not isinstance(value, type):
                values[name] = dataclasses.asdict(value)
        return values
