"""What the Trainer tells while it runs: lines of metrics, one progress bar, and the time of a step."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from weft.training.folder import RunFolder


class LogBeforeSaving(TrainerCallback):
    """Logs wherever a checkpoint may be made, so that a resumed run's metrics are those of an uninterrupted one."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> TrainerControl:
        if control.should_save or control.should_evaluate:
            control.should_log = True
        return control


class MetricsWriter(TrainerCallback):
    """Writes each log of the Trainer to the run's metrics."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **rest: Any,
    ) -> None:
        if logs and "train_runtime" not in logs:  # the Trainer's summary, which says nothing new
            self.folder.log({"step": state.global_step, **logs})


class StepTimer(TrainerCallback):
    """Sums the seconds of the optimizer steps, without those of evaluations and checkpoints."""

    def __init__(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self._start = 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self.seconds += time.perf_counter() - self._start
        self.steps += 1


class ProgressBar(TrainerCallback):
    """One bar: steps, time left, and the latest losses."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=console,
        )
        self._task = self._bar.add_task("", losses="")
        self._losses: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **rest: Any,
    ) -> None:
        names = {"loss": "loss", "eval_loss": "held out"}
        self._losses |= {names[key]: value for key, value in (logs or {}).items() if key in names}
        self._bar.update(self._task, losses="  ".join(f"{name} {value:.3f}" for name, value in self._losses.items()))

    def close(self) -> None:
        """Ends the bar, after a failure too."""
        self._bar.stop()
