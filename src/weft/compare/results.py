"""``results.json``: what a comparison came to, as one document. Its form is stable; `version` grows if it changes."""

import dataclasses
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.compare.comparison import Comparison, Sweep
from weft.compare.estimate import Estimate
from weft.compare.job import Found
from weft.compare.methods import BASE
from weft.errors import FormatError
from weft.training.config import RunConfig
from weft.training.folder import write_whole
from weft.training.task import Metric

VERSION = 1
FILE = "results.json"


@dataclass(frozen=True)
class Row:
    """One method of a table.

    Attributes:
        name: as it is written on the command line; `BASE` for the base alone.
        title: for people.
        rate: the learning rate that the sweep chose.
        at_end: whether it stands at an end of the sweep.
        scores: metric -> its estimate over the seeds, on the rows of the final figures.
        trainable, share: trained parameters, and their share of the base's.
        checkpoint_bytes: the file of what was trained; of the base, none.
        peak_bytes: the median over runs of the most memory in use.
        seconds_per_step: the median over runs of the mean optimizer step.
        sweep: for each rate that was tried, the score that the choice was made by; None where the run failed.
        failed: why runs came to nothing, one reason each.
    """

    name: str
    title: str
    rate: float | None
    at_end: bool
    scores: dict[str, Estimate]
    trainable: int
    share: float
    checkpoint_bytes: int
    peak_bytes: int | None
    seconds_per_step: float | None
    sweep: dict[float, float | None]
    failed: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """A comparison's results, apart from the files of its runs.

    Attributes:
        task, base, train, eval, test: what was compared on; without `test`, the figures are of `eval`.
        rows: of each data set, by its name here.
        steps: optimizer steps of a run.
        rows_per_step: rows in one.
        seeds: of the runs.
        metric: the key of what decides.
        metrics: all that were found.
        machine: processor, threads, GPU, versions.
        settings: those of the run that are not the defaults, paths by their last names.
        command: what was typed, if it was.
        methods: the rows, the base alone first.
    """

    task: str
    base: str
    train: str
    eval: str
    test: str | None
    rows: dict[str, int]
    steps: int
    rows_per_step: int
    seeds: tuple[int, ...]
    metric: str
    metrics: tuple[Metric, ...]
    machine: dict[str, str | int | None]
    settings: dict[str, Any]
    command: str | None
    methods: tuple[Row, ...]

    @property
    def deciding(self) -> Metric:
        """The metric that decides."""
        return next(metric for metric in self.metrics if metric.key == self.metric)

    @classmethod
    def of(cls, comparison: Comparison, command: str | None = None) -> "Results":
        """From a comparison that has just ended, made by a command if it was."""
        config, about = comparison.config, comparison.about
        assert config.eval is not None
        found = [run for sweep in comparison.sweeps for run in sweep.finished]
        sizes = {"train": about.train_rows, "eval": about.eval_rows, "test": about.test_rows}
        return cls(
            task=config.task,
            base=_name(config.base),
            train=_name(config.train),
            eval=_name(config.eval),
            test=None if comparison.test is None else _name(comparison.test),
            rows={name: size for name, size in sizes.items() if size is not None},
            steps=max((run.steps for run in found), default=0),
            rows_per_step=config.batch_size * config.gradient_accumulation,
            seeds=tuple(comparison.seeds),
            metric=comparison.metric.key,
            metrics=tuple(metric for metric in comparison.metrics if metric.key in comparison.base.final),
            machine=dict(about.machine),
            settings=_settings(config),
            command=command,
            methods=(
                _base_row(comparison.base, comparison.metrics),
                *(_row(sweep, comparison.metric, comparison.metrics) for sweep in comparison.sweeps),
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = dataclasses.asdict(self)
        for values, row in zip(plain["methods"], self.methods, strict=True):
            values["scores"] = {key: estimate.to_dict() for key, estimate in row.scores.items()}
            values["sweep"] = [{"rate": rate, "score": score} for rate, score in row.sweep.items()]
        return {"version": VERSION, **plain}

    def save(self, folder: Path) -> Path:
        """Writes ``results.json``."""
        write_whole(folder / FILE, json.dumps(self.to_dict(), indent=2) + "\n")
        return folder / FILE

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Reads it back.

        Raises:
            FormatError: it is none, or of another version.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values.pop("version")
            if version != VERSION:
                raise FormatError(f"{path}: expected results of version {VERSION}, found {version}")
            rows = tuple(_read_row(each) for each in values.pop("methods"))
            metrics = tuple(Metric(**each) for each in values.pop("metrics"))
            seeds = tuple(values.pop("seeds"))
            return cls(**values, seeds=seeds, metrics=metrics, methods=rows)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{path} holds no results of weft compare: {error}") from error


def _base_row(found: Found, metrics: Iterable[Metric]) -> Row:
    return Row(
        name=BASE,
        title="the base alone",
        rate=None,
        at_end=False,
        scores=_scores([found], metrics),
        trainable=0,
        share=0.0,
        checkpoint_bytes=0,
        peak_bytes=found.peak_bytes,
        seconds_per_step=None,
        sweep={},
        failed=(),
    )


def _row(sweep: Sweep, metric: Metric, metrics: Iterable[Metric]) -> Row:
    finished = sweep.finished
    first = finished[0] if finished else Found()
    paces = [run.seconds_per_step for run in finished if run.seconds_per_step is not None]
    failed = [run.failed for run in (*sweep.tried.values(), *sweep.runs) if run.failed is not None]
    return Row(
        name=sweep.candidate.name,
        title=sweep.candidate.method.title,
        rate=sweep.rate,
        at_end=sweep.is_at_end,
        scores=_scores(finished, metrics),
        trainable=first.trainable,
        share=first.share,
        checkpoint_bytes=first.checkpoint_bytes,
        peak_bytes=int(statistics.median(run.peak_bytes for run in finished)) if finished else None,
        seconds_per_step=statistics.median(paces) if paces else None,
        sweep={rate: None if run.failed is not None else run.eval[metric.key] for rate, run in sweep.tried.items()},
        failed=tuple(dict.fromkeys(failed)),
    )


def _scores(runs: list[Found], metrics: Iterable[Metric]) -> dict[str, Estimate]:
    keys = [metric.key for metric in metrics if runs and all(metric.key in run.final for run in runs)]
    return {key: Estimate.of([run.final[key] for run in runs]) for key in keys}


def _read_row(values: dict[str, Any]) -> Row:
    scores = {key: Estimate.of(each["values"]) for key, each in values.pop("scores").items()}
    sweep = {each["rate"]: each["score"] for each in values.pop("sweep")}
    failed = tuple(values.pop("failed"))
    return Row(**values, scores=scores, sweep=sweep, failed=failed)


def _settings(config: RunConfig) -> dict[str, Any]:
    defaults = {name: field.get_default() for name, field in type(config).model_fields.items()}
    given = config.model_dump(mode="json", exclude={"output", "seed"})
    return {key: _name(value) for key, value in given.items() if value != defaults[key] or key == "base"}


def _name(value: Any) -> Any:
    """A folder or file by its last name, since where it stood is nobody's concern; anything else as it is."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
