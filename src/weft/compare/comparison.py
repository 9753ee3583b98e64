"""`compare`: all jobs of a comparison, one after another, and what they come to."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from weft.compare.job import About, Found, Job, Kind, read
from weft.compare.methods import BASE, Candidate
from weft.compare.progress import Bar
from weft.errors import ConfigError, TrainingError
from weft.training.config import RunConfig
from weft.training.folder import write_whole
from weft.training.task import Metric

AUTO = (10**-0.5, 1.0, 10**0.5)  # learning rates of a sweep, over a method's usual one
_FURTHER = 2  # rates that may be added at an end of the sweep where the best one stands

Runner = Callable[[Job, Path], Found]
"""Does a job; the path is where a runner may keep what it needs for it."""


@dataclass(frozen=True)
class Sweep:
    """What one candidate came to.

    Attributes:
        candidate: the method, at its rank.
        config: its settings, at the chosen rate and the first seed.
        tried: learning rate -> what the run of the first seed found.
        rate: the chosen learning rate; None if no run came to a result.
        runs: at that rate, one for each seed, those that failed too.
    """

    candidate: Candidate
    config: RunConfig
    tried: Mapping[float, Found]
    rate: float | None
    runs: Sequence[Found]

    @property
    def finished(self) -> list[Found]:
        """The runs that came to a result."""
        return [run for run in self.runs if run.failed is None]

    @property
    def is_at_end(self) -> bool:
        """Whether the best rate is the lowest or the highest one tried, so that a better one may lie beyond."""
        return self.rate is not None and len(self.tried) > 1 and self.rate in (min(self.tried), max(self.tried))


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to.

    Attributes:
        folder: where everything is.
        config: the run's settings.
        metric: what decides.
        metrics: all that the task has.
        about: rows and machine.
        base: the base alone.
        sweeps: the candidates, in the order in which they were named.
        seeds: of the runs; the first chose the learning rates.
        test: the rows that the figures are from; None if they are from those that chose.
    """

    folder: Path
    config: RunConfig
    metric: Metric
    metrics: Sequence[Metric]
    about: About
    base: Found
    sweeps: Sequence[Sweep]
    seeds: Sequence[int]
    test: str | None


def in_fresh_process(job: Job, scratch: Path) -> Found:
    """Does a job in a new interpreter, so that its peak of memory is its own.

    Raises:
        TrainingError: the process did not come to its end.
    """
    asked, answered = scratch / "job.json", scratch / "found.json"
    write_whole(asked, json.dumps(job.to_dict()))
    answered.unlink(missing_ok=True)
    command = [sys.executable, "-m", "weft.compare.worker", str(asked), str(job.config.output), str(answered)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        _, errors = process.communicate()
    found = read(answered)
    if process.returncode or found is None:
        last = "\n".join(errors.strip().splitlines()[-5:])
        killed = " (killed: is there enough memory?)" if process.returncode == -9 else ""
        raise TrainingError(
            f"the process of {job.name} ended with {process.returncode}{killed}; what was finished is kept, and "
            f"--resume goes on from there:\n{last}"
        )
    return found[1]


def compare(
    config: RunConfig,
    methods: Sequence[str],
    *,
    output: Path,
    ranks: Sequence[int] = (),
    rates: Mapping[str, Sequence[float]] | None = None,
    seeds: int = 3,
    test: str | None = None,
    metric: str | None = None,
    resume: bool = False,
    console: Console | None = None,
    runner: Runner = in_fresh_process,
) -> Comparison:
    """Trains each method on a run's task, under the same budget, and writes ``results.json`` into the output folder.

    Every run has the run's settings but for what its method changes: the same rows, optimizer steps and batches. For
    each method, runs of the first seed choose the learning rate, by the held-out rows of ``config.eval``; the other
    seeds run at that rate. A method that cannot be, or that diverges at every rate, is reported as such.

    Args:
        config: the run's settings; its output is not looked at, and its seed is the first one.
        methods: names of `weft.compare.methods`, those with a rank also as ``lora@4``.
        output: the comparison's folder.
        ranks: the ranks of the methods that have one; the run's if there are none.
        rates: method -> learning rates to try; those of "" are for all others. For the others, a method's usual one,
            a half power of ten to each side, and up to two more beyond an end that is the best.
        seeds: runs of each method.
        test: rows for the final figures. Without, they are from the rows that chose rates and steps, and so look a
            little better than they are, for every method.
        metric: what decides; by default what the task keeps the best weights by.
        resume: keep what is in the folder, and go on; with more methods, rates or seeds too.
        console: where to show progress; None shows nothing.
        runner: does a job.

    Raises:
        ConfigError: settings that cannot be compared, or a folder that is taken.
        DataError, TrainingError: of the base's evaluation; or a process that did not come to its end.
    """
    candidates = Candidate.all_of(methods, ranks, config.rank)
    _check(config, seeds, rates or {}, candidates)
    if not resume and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output: {output} holds something already; go on with --resume, or choose another folder")
    jobs = _Jobs(config.resolved(), Path(os.path.abspath(output.expanduser())), _absolute(test), runner)
    planned = {each.name: _rates(each, config, rates or {}) for each in candidates}
    with Bar(console, 1 + sum(len(tried) + seeds - 1 for tried, _ in planned.values())) as bar:
        jobs.bar = bar
        base = jobs.base()
        assert base.about is not None
        all_metrics = [Metric(**each) for each in base.about.metrics]
        decides = _metric(metric or base.about.best, all_metrics, base)
        bar.metric = decides
        every_seed = [config.seed + number for number in range(seeds)]
        sweeps = [jobs.sweep(each, *planned[each.name], every_seed, decides) for each in candidates]
    return Comparison(jobs.folder, jobs.config, decides, all_metrics, base.about, base, sweeps, every_seed, jobs.test)


class _Jobs:
    """Does the jobs of one comparison, each once: what is on disk is not done again."""

    def __init__(self, config: RunConfig, folder: Path, test: str | None, runner: Runner) -> None:
        self.config, self.folder, self.test, self.runner = config, folder, test, runner
        self.bar = Bar(None, 0)
        self._before: Mapping[str, float] | None = None

    def base(self) -> Found:
        """The evaluation of the base alone."""
        found = self._do(BASE, "base", self.config)
        if found.failed is not None:
            raise TrainingError(f"the base cannot be evaluated: {found.failed}")
        assert found.about is not None
        self._before = {**found.eval, "rows": found.about.eval_rows}
        return found

    def sweep(
        self, candidate: Candidate, rates: Sequence[float], may_extend: bool, seeds: Sequence[int], metric: Metric
    ) -> Sweep:
        """The runs of one candidate: every rate with the first seed, then the best rate with the others."""
        tried = {rate: self._run(candidate, rate, seeds[0]) for rate in sorted(rates)}
        best = _best(tried, metric)
        for _ in range(_FURTHER if may_extend else 0):
            if best not in (min(tried), max(tried)):
                break
            further = _rounded(best * (AUTO[-1] if best == max(tried) else AUTO[0]))
            self.bar.add(1)
            tried[further] = self._run(candidate, further, seeds[0])
            best = _best(tried, metric)
        if best is None:
            self.bar.add(1 - len(seeds))
            any_rate = min(tried)
            return Sweep(candidate, self._settings(candidate, any_rate, seeds[0]), tried, None, [])
        runs = [tried[best], *(self._run(candidate, best, seed) for seed in seeds[1:])]
        config = self._settings(candidate, best, seeds[0])
        return Sweep(candidate, config, dict(sorted(tried.items())), best, runs)

    def _run(self, candidate: Candidate, rate: float, seed: int) -> Found:
        kind: Kind = "full" if candidate.method.is_full else "adapter"
        name = f"{candidate.name}-rate-{rate:g}-seed-{seed}"
        try:
            config = self._settings(candidate, rate, seed)
        except ConfigError as error:
            self.bar.done(name, Found(failed=str(error)), kept=True)
            return Found(failed=str(error))
        return self._do(name, kind, config)

    def _settings(self, candidate: Candidate, rate: float, seed: int) -> RunConfig:
        return candidate.settings(self.config, rate, seed)

    def _do(self, name: str, kind: Kind, config: RunConfig) -> Found:
        config = config.model_copy(update={"output": self.folder / "runs" / name})
        job = Job(name, kind, config, self.test, self._before)
        path = self.folder / "found" / f"{name}.json"
        values = json.loads(json.dumps(job.to_dict()))
        kept = read(path)
        if kept is not None and kept[1].failed is None:
            _check_same(values, kept[0], self.folder)
            self.bar.done(name, kept[1], kept=True)
            return kept[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        self.bar.start(name)
        found = self.runner(job, self.folder)
        write_whole(path, json.dumps({"job": values, "found": found.to_dict()}, indent=2))
        self.bar.done(name, found, kept=False)
        return found


def _check(
    config: RunConfig, seeds: int, rates: Mapping[str, Sequence[float]], candidates: Sequence[Candidate]
) -> None:
    if config.eval is None:
        more = "; eval_share would hold out other rows with each seed" if config.eval_share is not None else ""
        raise ConfigError(f"compare needs held-out rows that are the same for every run: give eval, a file{more}")
    if seeds < 1:
        raise ConfigError(f"seeds: expected at least 1, found {seeds}")
    names = {each.name for each in candidates} | {each.name.partition("@")[0] for each in candidates}
    for name, tried in rates.items():
        if name and name not in names:
            raise ConfigError(f"rates: {name!r} is none of the methods ({', '.join(sorted(names))})")
        if not tried or not all(rate > 0 and math.isfinite(rate) for rate in tried):
            raise ConfigError(f"rates: expected learning rates such as 1e-4,1e-3, found {list(tried)}")


def _rates(
    candidate: Candidate, config: RunConfig, given: Mapping[str, Sequence[float]]
) -> tuple[Sequence[float], bool]:
    """The learning rates to try, and whether more may be added."""
    for name in (candidate.name, candidate.name.partition("@")[0], ""):
        if name in given:
            return sorted(set(given[name])), False
    return [_rounded(config.learning_rate * candidate.method.rate * factor) for factor in AUTO], True


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


def _best(tried: Mapping[float, Found], metric: Metric) -> float | None:
    """The rate whose run is best on the held-out rows; None if no run came to a result."""
    scores = {rate: found.eval[metric.key] for rate, found in tried.items() if found.failed is None}
    scores = {rate: score for rate, score in scores.items() if math.isfinite(score)}
    if not scores:
        return None
    return (max if metric.greater_is_better else min)(scores, key=scores.__getitem__)


def _metric(key: str, metrics: Sequence[Metric], base: Found) -> Metric:
    found = {metric.key: metric for metric in metrics if metric.key in base.eval}
    if key not in found:
        raise ConfigError(f"metric: there is no {key!r} among what these settings find ({', '.join(found)})")
    return found[key]


def _check_same(job: Mapping[str, Any], kept: Mapping[str, Any], folder: Path) -> None:
    """Raises ConfigError if a job that is on disk had other settings."""
    changed = [name for name in ("kind", "test") if job[name] != kept[name]]
    changed += [name for name, value in job["settings"].items() if kept["settings"].get(name) != value]
    if changed:
        raise ConfigError(
            f"the comparison in {folder} was made with other settings ({', '.join(changed)}); choose another folder, "
            "or resume it with those"
        )


def _absolute(test: str | None) -> str | None:
    return os.path.abspath(Path(test).expanduser()) if test is not None and Path(test).expanduser().exists() else test
