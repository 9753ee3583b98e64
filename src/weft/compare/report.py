"""A comparison's table, and its README with the picture."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from weft.analysis.plots import plot_comparison
from weft.compare.estimate import Estimate
from weft.compare.results import Results, Row
from weft.compare.verdict import remarks, sentences, size
from weft.training.folder import write_whole
from weft.training.task import Metric

PICTURE = "comparison"


COSTS = ("trained", "checkpoint", "peak memory", "step", "rate")


def short_table(results: Results) -> list[tuple[str, ...]]:
    """The deciding metric and what it costs, its heading first; narrow enough for a terminal."""
    heading = ("", results.metric, *COSTS)
    return [heading, *(_line(row, [results.deciding]) for row in results.methods)]


def table(results: Results) -> list[tuple[str, ...]]:
    """The deciding metric, the others, and what it costs, its heading first."""
    metrics = [results.deciding, *(each for each in results.metrics if each.key != results.metric)]
    lines = [(*_line(row, metrics), f"{row.trainable:,}" if row.trainable else "") for row in results.methods]
    return [("", *(metric.title for metric in metrics), *COSTS, "parameters"), *lines]


def _line(row: Row, metrics: Sequence[Metric]) -> tuple[str, ...]:
    return (
        row.name,
        *(interval(metric, row.scores.get(metric.key)) for metric in metrics),
        f"{row.share:.3%}" if row.trainable else "",
        size(row.checkpoint_bytes) if row.checkpoint_bytes else "",
        size(row.peak_bytes) if row.peak_bytes is not None else "",
        _time(row.seconds_per_step) if row.seconds_per_step is not None else "",
        f"{row.rate:g}" if row.rate is not None else ("failed" if row.failed else ""),
    )


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def interval(metric: Metric, estimate: Estimate | None) -> str:
    """A mean with half the width of its interval."""
    if estimate is None:
        return ""
    return metric.shown(estimate.mean) + ("" if estimate.half is None else f" ± {metric.shown(estimate.half)}")


def setting(results: Results) -> str:
    """What was compared on, in a sentence."""
    rows = ", ".join(f"{name} {count:,}" for name, count in results.rows.items())
    seeds = f"{len(results.seeds)} seed{'s' if len(results.seeds) > 1 else ''}"
    return (
        f"Task {results.task}, base {results.base}, trained on {results.train} (rows: {rows}); {results.steps:,} steps "
        f"of {results.rows_per_step} rows for every method, {seeds}."
    )


def write(results: Results, folder: Path) -> None:
    """Writes the results, the picture and the README into the comparison's folder."""
    results.save(folder)
    draw(results, folder / f"{PICTURE}.png")
    write_whole(folder / "README.md", page(results))


def draw(results: Results, path: Path) -> None:
    """The picture of a comparison."""
    plot_comparison(
        [
            {
                "name": row.name,
                "values": list(row.scores[results.metric].values),
                "mean": row.scores[results.metric].mean,
                "half": row.scores[results.metric].half,
                "share": row.share,
                "checkpoint_bytes": row.checkpoint_bytes,
                "peak_bytes": row.peak_bytes,
                "seconds_per_step": row.seconds_per_step,
            }
            for row in results.methods
            if results.metric in row.scores
        ],
        results.deciding.title,
        path,
    )


def page(results: Results) -> str:
    """The README, as Markdown."""
    steps = ["| method | learning rate: " + f"{results.deciding.title} of seed {results.seeds[0]} on {results.eval} |"]
    steps += [
        "|---|---|",
        *(f"| {row.name} | {_sweep(row, results.deciding)} |" for row in results.methods if row.sweep),
    ]
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items() if value is not None)
    parts = [
        f"# Ways of fine-tuning {results.base} on {results.train}",
        setting(results),
        *sentences(results),
        markdown(table(results)),
        f"![comparison]({PICTURE}.png)",
        "±: half the width of the 95% interval of the mean over seeds, by Student's t. Checkpoint: the file of what "
        "was trained. Peak memory: the most that the run's process (or the GPU) held over what its imports take, "
        "evaluations included. Step: the mean optimizer step. Both are medians over runs.",
        *remarks(results),
        "## Learning rates",
        "\n".join(steps),
        *(["## The command", f"```\n{results.command}\n```"] if results.command else []),
        "## Machine",
        machine,
    ]
    return "\n\n".join(parts) + "\n"


def _sweep(row: Row, metric: Metric) -> str:
    found = [f"{rate:g}: {'failed' if score is None else metric.shown(score)}" for rate, score in row.sweep.items()]
    return "; ".join(found)


def markdown(lines: Iterable[Sequence[str]]) -> str:
    """A table, its heading first; numbers to the right."""
    heading, *rows = lines
    ruled = [heading, ("---", *("---:" for _ in heading[1:])), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)
