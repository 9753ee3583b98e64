"""One run of a comparison, as plain values: what is to be done, and what was found."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from weft.training.config import RunConfig

Kind = Literal["base", "adapter", "full"]


@dataclass(frozen=True)
class Job:
    """What a process is to do.

    Attributes:
        name: unlike that of any other job of the comparison; also the run's folder under ``runs/``.
        kind: evaluate the base alone, train an adapter, or train the base.
        config: the run's settings, its output too.
        test: rows to evaluate on in the end, in the forms of the settings' `eval`; None for those of `eval` alone.
        before: the scores of the base alone on the rows of `eval`, "rows" among them; None of the base's own job.
    """

    name: str
    kind: Kind
    config: RunConfig
    test: str | None
    before: Mapping[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; equal for jobs that find the same, wherever their output is."""
        settings = self.config.model_dump(mode="json", exclude={"output"})
        return {
            "name": self.name, "kind": self.kind, "settings": settings, "test": self.test, "before": self.before
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], output: Path) -> Self:
        """The job again, with its output here."""
        config = RunConfig.from_dict({**values["settings"], "output": output})
        return cls(values["name"], values["kind"], config, values["test"], values["before"])


@dataclass(frozen=True)
class About:
    """What the base's job tells of the whole comparison.

    Attributes:
        metrics: the task's, each as the fields of a `weft.training.Metric`.
        best: the key of the one that the task keeps the best weights by.
        train_rows, eval_rows, test_rows: rows of each data set.
        machine: what the figures depend on: processor, threads, GPU, versions.
    """

    metrics: Sequence[Mapping[str, Any]]
    best: str
    train_rows: int
    eval_rows: int
    test_rows: int | None
    machine: Mapping[str, str | int | None]


@dataclass(frozen=True)
class Found:
    """What a job found.

    Attributes:
        eval, test: scores by metric, on the rows that choose and on those of `test`.
        steps, best_step: optimizer steps, and the step whose weights were kept, if not the last.
        trainable, share: trained parameters, and their share of the base's.
        checkpoint_bytes: the file of what was trained.
        peak_bytes: the most memory in use over what the imports take: the GPU's, or on a CPU the process's.
        seconds_per_step: the mean optimizer step.
        seconds: the whole job.
        failed: why there is no result; all else is then empty.
        about: from the base's job.
    """

    eval: Mapping[str, float] = dataclasses.field(default_factory=dict)
    test: Mapping[str, float] | None = None
    steps: int = 0
    best_step: int | None = None
    trainable: int = 0
    share: float = 0.0
    checkpoint_bytes: int = 0
    peak_bytes: int = 0
    seconds_per_step: float | None = None
    seconds: float = 0.0
    failed: str | None = None
    about: About | None = None

    @property
    def final(self) -> Mapping[str, float]:
        """The scores to report."""
        return self.eval if self.test is None else self.test

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The same again."""
        about = values["about"]
        return cls(**{**values, "about": None if about is None else About(**about)})


def read(path: Path) -> tuple[dict[str, Any], Found] | None:
    """What a job's file says: the job, as `Job.to_dict` gives it, and what it found; None if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values["job"], Found.from_dict(values["found"])
