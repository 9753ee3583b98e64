"""`measure`: does one job of a comparison, in this process."""

import dataclasses
import gc
import shutil
import time
from pathlib import Path
from typing import Any

from weft.compare.job import About, Found, Job
from weft.compare.machine import machine
from weft.compare.peak_memory import PeakMemory
from weft.errors import WeftError
from weft.formats import load
from weft.model import attach
from weft.training.config import RunConfig
from weft.training.folder import RunFolder
from weft.training.full import load_whole, run_full
from weft.training.job import run, uses_bf16
from weft.training.task import Evaluation, Task

_FILES = {"adapter": "adapter_model.safetensors", "full": "model.safetensors"}


def measure(job: Job) -> Found:
    """What the job finds; of a run that weft refuses or stops, why.

    Run folders keep their adapters, metrics and pictures; not their checkpoints, nor the weights of a whole model.
    """
    start = time.perf_counter()
    kind = job.config.implementation()  # imported before memory is looked at
    gc.collect()
    try:
        found = _base(job, kind) if job.kind == "base" else _trained(job, kind)
    except WeftError as error:
        return Found(failed=str(error), seconds=time.perf_counter() - start)
    return dataclasses.replace(found, seconds=time.perf_counter() - start)


def _base(job: Job, kind: type[Task]) -> Found:
    memory = PeakMemory()
    task = _open(kind, job.config)
    on_eval = task.evaluate()
    peak = memory.over_start()
    train_rows = task.train_report.rows
    test = None if job.test is None else _open(kind, _with_eval(job.config, job.test)).evaluate()
    about = About(
        metrics=[dataclasses.asdict(metric) for metric in kind.metrics],
        best=kind.best,
        train_rows=train_rows,
        eval_rows=on_eval.rows,
        test_rows=None if test is None else test.rows,
        machine=machine(),
    )
    return Found(on_eval.scores, None if test is None else test.scores, peak_bytes=peak, about=about)


def _trained(job: Job, kind: type[Task]) -> Found:
    memory = PeakMemory()
    before = None if job.before is None else Evaluation(int(job.before["rows"]), job.before)
    result = (run_full if job.kind == "full" else run)(job.config, overwrite=True, before=before)
    peak = memory.over_start()
    assert result.after is not None
    folder = RunFolder(result.folder)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    found = Found(
        eval=result.after.scores,
        test=None if job.test is None else _scores_on(job.test, job, kind, result.adapter),
        steps=result.steps,
        best_step=result.best_step,
        trainable=result.trainable,
        share=result.share,
        checkpoint_bytes=(result.adapter / _FILES[job.kind]).stat().st_size,
        peak_bytes=peak,
        seconds_per_step=result.seconds_per_step,
    )
    shutil.rmtree(folder.model, ignore_errors=True)
    return found


def _scores_on(data: str, job: Job, kind: type[Task], trained: Path) -> Any:
    """The scores of what was saved, on other rows."""
    task = _open(kind, _with_eval(job.config, data))
    if job.kind == "full":
        load_whole(task.model, trained)
    else:
        attach(task.model, load(trained))
    return task.evaluate().scores


def _open(kind: type[Task], config: RunConfig) -> Task:
    return kind.open(config.model_copy(update={"bf16": uses_bf16(config)}), None)


def _with_eval(config: RunConfig, data: str) -> RunConfig:
    return config.with_settings({"eval": data, "eval_share": None}).resolved()
