"""Times several ways of doing one thing, taking turns, and keeps what was found as data.

Variants take turns within each round, so that a machine whose speed drifts slows them all alike. Every round's figure
is kept: medians, and the ratios of any two variants round by round, are worked out by whoever reads the data.
"""

import argparse
import gc
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, TypeVar

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.records import RESULTS, Figures, Row, Setting, append

Effort = Literal["full", "quick", "tiny"]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Options:
    """What the command line chose.

    Attributes:
        effort: full; quick, the same on small settings, in about a minute; tiny, only to see that everything runs.
        rows: the JSONL file of rows for the training benchmark; None for the standard library's functions.
        turns: seconds to take turns in one case, about; None: as the effort says.
    """

    effort: Effort = "full"
    rows: Path | None = None
    turns: float | None = None

    @property
    def seconds(self) -> float:
        """How long to take turns in one case, about."""
        return {"full": 20.0, "quick": 0.5, "tiny": 0.0}[self.effort] if self.turns is None else self.turns


@dataclass(frozen=True)
class Case:
    """One thing to measure: a benchmark in one setting.

    Attributes:
        benchmark: the name of the file of results.
        setting: what the figures depend on, beside the machine.
        measure: does the work, and returns variant -> quantity -> its figures, one a round.
    """

    benchmark: str
    setting: Setting
    measure: Callable[[], Figures]

    def __str__(self) -> str:
        return f"{self.benchmark}: " + ", ".join(f"{key} {value}" for key, value in self.setting.items())


Cases = Callable[[Options], Iterator[Case]]


def device() -> str:
    """Where models are measured: the GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def compare(
    variants: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    prepare: Mapping[str, Callable[[], object]] | None = None,
    calls: int = 1,
    rounds: tuple[int, int] = (5, 60),
) -> Figures:
    """Calls every variant in turn, round after round, and returns the seconds of each.

    Args:
        variants: what to time.
        seconds: how long to go on, about; one round before is not counted.
        prepare: variant -> what to do before it, untimed; garbage is then collected too, so that no variant pays for
            what another left behind.
        calls: how many calls one figure is the mean of, for what takes microseconds.
        rounds: fewest and most.
    """
    prepare = prepare or {}
    figures: Figures = {name: {"seconds": []} for name in variants}
    fewest, most = (1, 1) if seconds == 0 else rounds
    gc.collect()
    gc.freeze()  # what is there already need not be looked through again and again
    started = time.perf_counter()
    for turn in range(1 + most):
        if turn == 1:
            started = time.perf_counter()
        if turn > fewest and time.perf_counter() - started > seconds:
            break
        for name, call in variants.items():
            if name in prepare:
                prepare[name]()
            if prepare:
                gc.collect()
            _synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            _synchronize()
            if turn:
                figures[name]["seconds"].append((time.perf_counter() - start) / calls)
    gc.unfreeze()
    return figures


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_fresh_process(function: Callable[..., _T], *arguments: object) -> _T:
    """What the function returns when a new interpreter calls it, so that nothing measured before weighs on it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


class PeakMemory:
    """The most memory in use over what is in use now, in bytes: the GPU's, or on a CPU the process's resident set."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
            return
        self.start = psutil.Process().memory_info().rss
        if _PROC.exists():
            (_PROC / "clear_refs").write_text("5")  # forget the peak so far: see proc(5)

    def over_start(self) -> int:
        """The peak so far. Outside Linux a process's peak cannot be forgotten: there it is the highest ever."""
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
        elif _PROC.exists():
            line = next(each for each in (_PROC / "status").read_text().splitlines() if each.startswith("VmHWM:"))
            peak = 1024 * int(line.split()[1])
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak - self.start


_PROC = Path("/proc/self")


def main(*benchmarks: Cases, runs: tuple[Cases, ...] = ()) -> None:
    """The command line of a benchmark: measures its cases, shows and keeps what was found.

    Args:
        benchmarks: what to measure.
        runs: what takes too long to be part of a quick look at many.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("effort", nargs="?", choices=("full", "quick"), default="full", help="default: full")
    parser.add_argument("--rows", type=Path, help="JSONL rows for the training benchmark")
    parser.add_argument(
        "--seconds", type=float, help="how long to take turns in one case, about; default: 20, quick: 0.5"
    )
    parser.add_argument("--only", default="", help="only the cases whose line of settings contains this")
    parser.add_argument("--results", type=Path, help="the folder of results")
    arguments = parser.parse_args()
    # what a quick run finds is not for the page
    folder = arguments.results or (RESULTS if arguments.effort == "full" else RESULTS / "quick")
    options = Options(arguments.effort, arguments.rows, arguments.seconds)
    chosen = benchmarks if options.effort == "quick" else (*benchmarks, *runs)
    cases = [case for benchmark in chosen for case in benchmark(options) if arguments.only in str(case)]
    for row in measured(cases, Console()):
        append(row, folder)


def measured(cases: Iterable[Case], console: Console) -> Iterator[Row]:
    """Measures the cases one by one, and shows what it finds."""
    cases = list(cases)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=str(case))
            row = Row(case.benchmark, dict(case.setting), case.measure(), machine(), _now())
            progress.console.print(str(row), highlight=False, markup=False, soft_wrap=True)
            progress.advance(task)
            yield row
            gc.collect()


def machine() -> dict[str, str | int | None]:
    """What figures depend on: processor, threads, accelerator, versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "weft", "transformers", "peft", "loralib")},
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
