"""What a run came to."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.data.text import DataReport
from weft.training.evaluation import EvalResult


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
    """

    folder: Path
    adapter: Path
    before: EvalResult | None
    after: EvalResult | None
    train_data: DataReport
    eval_data: DataReport | None
    steps: int
    best_step: int | None
    seconds: float
    seconds_per_step: float | None
    train_loss: float | None
    trainable: int
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"folder": str(self.folder), "adapter": str(self.adapter)}
