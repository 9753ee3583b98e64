"""`run`: a training run from its settings to the adapter in its folder. The loop is transformers' Trainer."""

import dataclasses
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from weft.analysis.plots import plot_losses, plot_metrics
from weft.errors import ConfigError, TrainingError
from weft.model import active, adapter_names, attach, collect, plan
from weft.training.allocator import keep_freed_memory
from weft.training.arguments import arguments, optional_callbacks
from weft.training.card import card
from weft.training.checked_trainer import CheckedTrainer
from weft.training.checkpoint import latest, remove_incomplete, step_of
from weft.training.config import RunConfig
from weft.training.distance import Distance
from weft.training.folder import FINAL, RunFolder, write_whole
from weft.training.progress import LogBeforeSaving, MetricsWriter, ProgressBar, StepTimer
from weft.training.quantize import require_quantized
from weft.training.result import RunResult
from weft.training.run_memory import move_to_device, show_memory
from weft.training.self_training_config import SelfTrainingRun
from weft.training.task import Evaluation, Task
from weft.training.trainer import AdapterTrainer

__all__ = ["Learner", "check_same", "run", "run_with", "trainer_of", "uses_bf16"]


def run(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    before: Evaluation | None = None,
    console: Console | None = None,
) -> RunResult:
    """Trains an adapter as the settings say, and leaves everything in ``config.output``.

    On the CPU, a run that was killed at any moment and resumed ends in the same weights, bit for bit.

    Args:
        config: the settings.
        resume: continue the run in ``config.output`` from its newest checkpoint, or from the start if it has none.
        overwrite: replace a run that is there.
        before: the evaluation of the base alone, where it is known already and need not be done.
        console: where to show progress; None shows nothing.

    Raises:
        ConfigError: settings that do not fit the base, a folder that is taken, or a resumed run with other settings.
        DataError: data that cannot be used.
        TargetError: a pattern that matches nothing, or a module that cannot be adapted.
        TrainingError: the run would train nothing, went wrong, or the disk did not take it. A run that fails before
            its first checkpoint leaves nothing behind.
    """
    return run_with(_Adapter(), config, resume=resume, overwrite=overwrite, before=before, console=console)


class Learner(ABC):
    """What learns in a run."""

    @abstractmethod
    def size(self, task: Task) -> tuple[int, float]:
        """Its values, and their share of the base's; what cannot be trained is found out here."""

    def foretell(self, task: Task, console: Console | None) -> Distance | None:
        """Says what the run will take, and returns how far its data are from the base, if it looks at that."""
        return None

    @abstractmethod
    def prepare(self, task: Task) -> None:
        """Makes the task's model ready to be trained."""

    @abstractmethod
    def trainer(self, task: Task, folder: RunFolder, callbacks: Sequence[TrainerCallback]) -> CheckedTrainer:
        """Its Trainer, made by `trainer_of`."""

    @abstractmethod
    def save(self, task: Task, folder: RunFolder, steps: int) -> Path:
        """Writes what so many steps have trained, and returns where."""

    @abstractmethod
    def describe(self, task: Task, folder: RunFolder, result: RunResult) -> None:
        """Writes what people read about it."""


class _Adapter(Learner):
    """An adapter on the frozen base."""

    def size(self, task: Task) -> tuple[int, float]:
        planned = plan(task.model, task.config.lora())
        return planned.parameters, planned.share

    def foretell(self, task: Task, console: Console | None) -> Distance | None:
        if console is not None:
            show_memory(task, console)
        move_to_device(task.model)
        distance = task.distance()
        if console is not None and distance is not None:
            console.print(str(distance), markup=False, soft_wrap=True)
        return distance

    def prepare(self, task: Task) -> None:
        attach(task.model, task.config.lora())

    def trainer(self, task: Task, folder: RunFolder, callbacks: Sequence[TrainerCallback]) -> CheckedTrainer:
        kind = partial(AdapterTrainer, nested=task.config.nested)
        return trainer_of(kind, task, folder, arguments(task, folder), callbacks)

    def save(self, task: Task, folder: RunFolder, steps: int) -> Path:
        adapter = collect(task.model)
        about = {"base": task.config.base, "task": task.config.task, "data": task.config.train, "steps": steps}
        dataclasses.replace(adapter, provenance={**adapter.provenance, **about}).save(folder.adapter)
        task.save_beside(folder.adapter)
        return folder.adapter

    def describe(self, task: Task, folder: RunFolder, result: RunResult) -> None:
        write_whole(folder.card, card(task, folder, result))


def run_with(
    learner: Learner,
    config: RunConfig,
    *,
    resume: bool,
    overwrite: bool,
    before: Evaluation | None,
    console: Console | None,
) -> RunResult:
    """`run`, whatever learns; the same arguments and errors."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "weft train runs in one process; under torchrun, use weft.training.AdapterTrainer in a script of your own"
        )
    if isinstance(config, SelfTrainingRun) and config.unlabeled is not None:
        raise ConfigError("unlabeled: one run learns labelled rows alone; weft.training.self_train makes several of it")
    config = config.resolved()
    folder = RunFolder(config.output)
    if not torch.cuda.is_available():
        keep_freed_memory()
    task = config.implementation().open(config.model_copy(update={"bf16": uses_bf16(config)}), console)
    require_quantized(task.model, config.quantize)
    if resume:
        check_same(task.config, folder)
    size = learner.size(task)  # before the folder is made, so that a wrong pattern leaves no trace
    distance = learner.foretell(task, console)
    if not resume:
        folder.start(task.config, overwrite=overwrite)
    try:
        set_seed(config.seed)
        learner.prepare(task)
        with task.session(folder.scratch, console):
            result = _train(learner, size, distance, task, folder, before, console)
        shutil.rmtree(folder.scratch, ignore_errors=True)
        return result
    except Exception as error:
        kept = latest(folder.checkpoints)
        if kept is None and not resume:
            folder.clear()
        reason = _reason(error, folder)
        if reason is None:
            raise
        raise TrainingError(reason + (f" (the last good checkpoint is {kept})" if kept else "")) from error


def _train(
    learner: Learner,
    size: tuple[int, float],
    distance: Distance | None,
    task: Task,
    folder: RunFolder,
    before: Evaluation | None,
    console: Console | None,
) -> RunResult:
    remove_incomplete(folder.checkpoints)
    checkpoint = latest(folder.checkpoints)
    folder.rewind(step_of(checkpoint) if checkpoint else -1)

    timer = StepTimer()
    bar = ProgressBar(console) if console is not None else None
    trainer = learner.trainer(task, folder, [timer, *([bar] if bar else [])])
    before = _first_evaluation(task, folder, before, resumed=checkpoint is not None)
    start = time.perf_counter()
    try:
        output = trainer.train(str(checkpoint) if checkpoint else None)
    finally:
        if bar:
            bar.close()
    seconds = time.perf_counter() - start
    best_step = trainer.load_best() if task.config.keep_best else None

    after = None
    if task.eval_data is not None:
        after = task.evaluate()
        folder.log_evaluation(output.global_step, after, final=True)
    losses = [line["loss"] for line in folder.lines() if "loss" in line]
    trained = learner.save(task, folder, output.global_step)
    result = RunResult(
        folder=folder.root,
        adapter=trained,
        before=before,
        after=after,
        train_data=task.train_report,
        eval_data=task.eval_report,
        steps=output.global_step,
        best_step=best_step,
        seconds=seconds,
        seconds_per_step=timer.seconds / timer.steps if timer.steps else None,
        train_loss=losses[-1] if losses else None,
        trainable=size[0],
        share=size[1],
        distance=distance,
    )
    _draw(task, folder)
    learner.describe(task, folder, result)
    return result


def trainer_of(
    kind: Callable[..., CheckedTrainer],
    task: Task,
    folder: RunFolder,
    settings: TrainingArguments,
    callbacks: Sequence[TrainerCallback],
) -> CheckedTrainer:
    """A Trainer of a kind for a run: its data and its evaluation are the task's."""

    def score(step: int) -> dict[str, Any]:
        found = task.evaluate()
        folder.keep(step, found)
        return found.prefixed()

    trainer = kind(
        model=task.model,
        args=settings,
        train_dataset=task.train_data,
        eval_dataset=task.eval_data,
        data_collator=task.collator,
        callbacks=[LogBeforeSaving(), MetricsWriter(folder), *callbacks, *optional_callbacks(task, folder)],
        compute_loss_func=task.loss,
        score=score,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _first_evaluation(task: Task, folder: RunFolder, known: Evaluation | None, *, resumed: bool) -> Evaluation | None:
    """The base's evaluation; that of the first start, if the run was resumed."""
    if task.eval_data is None:
        return None
    if resumed:
        return folder.evaluation(step=0)
    # A new adapter changes nothing yet, but for a prompt, which stands in the rows while it is active.
    with active(task.model, None) if adapter_names(task.model) else nullcontext():
        found = task.evaluate() if known is None else known
    folder.log_evaluation(0, found)
    return found


def _draw(task: Task, folder: RunFolder) -> None:
    """The pictures of the run's report: its losses, and its other metrics if they were followed."""
    lines = [line for line in folder.lines() if FINAL not in line]
    plot_losses({folder.root.name: lines}, folder.plot)
    titles = {f"eval_{metric.key}": metric.title for metric in task.metrics if metric.key != "loss"}
    plot_metrics(lines, titles, folder.metrics_plot)


def uses_bf16(config: RunConfig) -> bool:
    """Whether to hold the base in bfloat16: as asked, or where the GPU computes in it natively."""
    if config.bf16 == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return config.bf16


def check_same(config: RunConfig, folder: RunFolder) -> None:
    """Raises ConfigError unless the folder holds a run with these very settings."""
    if not folder.config.is_file():
        raise ConfigError(f"there is no run to resume in {folder.root}: it has no config.yaml")
    saved = RunConfig.from_yaml(folder.config).model_dump()
    given = config.model_dump(exclude={"output"})  # the folder may have been moved
    changed = [
        f"{name} was {saved.get(name)!r}, is {given[name]!r}" for name in given if given[name] != saved.get(name)
    ]
    if changed:
        raise ConfigError(
            f"the run in {folder.root} has other settings, and resumed with these it would become another run: "
            f"{'; '.join(changed)}. Resume it with 'weft train --resume {folder.root}', or start a new one"
        )


def _reason(error: Exception, folder: RunFolder) -> str | None:
    """What went wrong, for the errors that a run's settings or its disk can cause; None for any other."""
    if isinstance(error, TrainingError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "the device has too little memory for this run; lower batch_size (and raise gradient_accumulation by as "
            "much), turn gradient_checkpointing on, or lower max_length"
        )
    return f"cannot write the run's folder {folder.root}: {error}" if isinstance(error, OSError) else None
