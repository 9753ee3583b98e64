"""What a comparison shows while it runs: a line for each finished run, and one bar with the time left."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from weft.compare.job import Found
from weft.training.task import Metric

_HOURS = 10 * 3600.0  # a run may take minutes; the time left is judged from all of them


class Bar:
    """The progress of so many runs; None as its console shows nothing."""

    def __init__(self, console: Console | None, total: int) -> None:
        self.metric: Metric | None = None
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=console is None,
            transient=True,
            speed_estimate_period=_HOURS,
        )
        self._total, self._done = total, 0
        self._task = self._bar.add_task("comparing", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def add(self, runs: int) -> None:
        """Says that there are so many runs more, or fewer."""
        self._total += runs
        self._bar.update(self._task, total=self._total)

    def start(self, name: str) -> None:
        """Says what is being done."""
        self._bar.update(self._task, description=name)

    def done(self, name: str, found: Found, *, kept: bool) -> None:
        """Says what came of a run; `kept` of one that was on disk."""
        self._done += 1
        self._bar.update(self._task, completed=self._done)
        if self._console is None:
            return
        if found.failed is not None:
            said = f"failed: {found.failed}"
        else:
            shown = (
                "" if self.metric is None else f"{self.metric.title} {self.metric.shown(found.eval[self.metric.key])}"
            )
            said = f"{shown} {'(from before)' if kept else f'in {found.seconds:.0f} s'}".strip()
        self._bar.console.print(f"{self._done}/{self._total} {name}: {said}", markup=False, soft_wrap=True)
