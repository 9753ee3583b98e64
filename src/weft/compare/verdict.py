"""What a comparison says, in sentences: which methods are as good as the best, and whether LoRA is one of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from weft.compare.methods import BASE
from weft.compare.results import Results, Row
from weft.training.task import Metric

FULL, LORA = "full", "lora"


@dataclass(frozen=True)
class Verdict:
    """Which methods are as good as the best.

    Attributes:
        best: the method with the best mean.
        equals: those whose mean lies in the best one's 95% interval, the best one too, smallest checkpoint first.
    """

    best: Row
    equals: Sequence[Row]


def verdict(results: Results) -> Verdict | None:
    """None if no method came to a result."""
    metric = results.deciding
    rows = [row for row in results.methods if row.name != BASE and metric.key in row.scores]
    if not rows:
        return None
    best = max(rows, key=lambda row: _gain(row, metric))
    interval = best.scores[metric.key]
    equals = [row for row in rows if interval.holds(row.scores[metric.key].mean)]
    return Verdict(best, sorted(equals, key=lambda row: row.checkpoint_bytes))


def sentences(results: Results) -> list[str]:
    """The verdict, and what is to be borne in mind with it."""
    found = verdict(results)
    if found is None:
        return ["No method came to a result."]
    metric = results.deciding
    best, equals = found.best, found.equals
    estimate = best.scores[metric.key]
    said = []
    if estimate.half is None:
        said.append(
            f"Best {metric.title}: {best.name} ({_shown(best, metric)}). With one seed nothing can be said of how far "
            "others are from it by chance."
        )
    else:
        low, high = (metric.shown(estimate.mean + sign * estimate.half) for sign in (-1, 1))
        said.append(
            f"Best {metric.title}: {best.name} ({_shown(best, metric)}; 95% interval over {len(estimate.values)} "
            f"seeds: {low} to {high})."
        )
        others = [f"{row.name} ({_shown(row, metric)})" for row in equals if row is not best]
        if others:
            said.append(
                f"Within that interval: {', '.join(others)}. Of all of these, {equals[0].name} has the smallest "
                f"checkpoint ({size(equals[0].checkpoint_bytes)}){_cheapest(equals)}."
            )
        else:
            said.append("No other method is within that interval.")
        said += _on_lora(results, found)
    base = results.methods[0].scores.get(metric.key)
    if base is not None and (estimate.holds(base.mean) or _gain(best, metric) <= _gain(results.methods[0], metric)):
        said.append(f"The base alone is no worse ({metric.shown(base.mean)}): training has gained nothing certain.")
    return said


def remarks(results: Results) -> list[str]:
    """What the figures rest on, and what went wrong."""
    said = []
    if results.test is None:
        said.append(
            f"The figures are from the rows that chose learning rates and steps ({results.eval}), and so a little "
            "better than on new rows, for every method; --test FILE reports on others."
        )
    else:
        said.append(
            f"{results.eval} chose learning rates and steps; the figures are from {results.test}, which chose nothing."
        )
    ends = [row.name for row in results.methods if row.at_end]
    if ends:
        said.append(
            f"The best learning rate is the lowest or the highest tried for {', '.join(ends)}: a better one may lie "
            "beyond; --rates tries others."
        )
    said += [f"{row.name}: {reason}" for row in results.methods for reason in row.failed]
    return said


def size(nbytes: float) -> str:
    """A size for a person: ``12.3 MB``."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= one:
            return f"{nbytes / one:.3g} {unit}"
    return f"{nbytes:.0f} bytes"


def _on_lora(results: Results, found: Verdict) -> list[str]:
    """Whether LoRA was the right choice, if it was among the methods."""
    metric = results.deciding
    of_lora = [row for row in results.methods if row.name.partition("@")[0] == LORA and metric.key in row.scores]
    if not of_lora:
        return []
    full = next((row for row in results.methods if row.name == FULL and row.checkpoint_bytes), None)
    good = [row for row in found.equals if row in of_lora]
    if good:
        share = "" if full is None else f", at {good[0].checkpoint_bytes / full.checkpoint_bytes:.2%} of full's bytes"
        return [f"LoRA was a right choice here: {good[0].name} is as good as the best{share}."]
    best = max(of_lora, key=lambda row: _gain(row, metric))
    return [
        f"LoRA was not the best choice here: at its best, {best.name}, it reaches {_shown(best, metric)}, outside of "
        f"the interval of {found.best.name}."
    ]


def _cheapest(rows: Sequence[Row]) -> str:
    """Who of several takes the least memory and the least time for a step."""
    parts = []
    with_memory = [row for row in rows if row.peak_bytes is not None]
    if with_memory:
        least = min(with_memory, key=lambda row: row.peak_bytes or 0)
        parts.append(f"{least.name} takes the least memory ({size(least.peak_bytes or 0)})")
    timed = [row for row in rows if row.seconds_per_step is not None]
    if timed:
        fastest = min(timed, key=lambda row: row.seconds_per_step or 0.0)
        parts.append(f"{fastest.name} has the fastest step ({fastest.seconds_per_step:.3g} s)")
    return "".join(f", {part}" for part in parts)


def _gain(row: Row, metric: Metric) -> float:
    """The mean, so turned that more is better."""
    mean = row.scores[metric.key].mean
    return mean if metric.greater_is_better else -mean


def _shown(row: Row, metric: Metric) -> str:
    return metric.shown(row.scores[metric.key].mean)
