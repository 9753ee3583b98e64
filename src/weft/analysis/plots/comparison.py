"""Ways of fine-tuning side by side: how good each is, and what it costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

_COSTS = (
    ("share", 100, "trained\n(% of the base)", True),
    ("checkpoint_bytes", 1e-6, "checkpoint\n(MB)", True),
    ("peak_bytes", 1e-6, "peak memory\n(MB)", False),
    ("seconds_per_step", 1e3, "step\n(ms)", False),
)
"""Quantity, what it is multiplied by to be shown, its title, and whether its axis is logarithmic."""


def plot_comparison(rows: Sequence[Mapping[str, Any]], metric: str, path: str | Path) -> Path:
    """Draws a row for each method, and returns the picture's path.

    Args:
        rows: from the top, each with "name", "values" of the metric (one a seed), their "mean", "half" the width of
            its interval or None, "share" and "checkpoint_bytes" (0 for an untrained base), and "peak_bytes" and
            "seconds_per_step" (None where there is none).
        metric: its title.
        path: the picture to write; its suffix is its format.
    """
    places = range(len(rows))
    figure = Figure(figsize=(11, 1.3 + 0.34 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 1 + len(_COSTS), sharey=True, width_ratios=(2.6, *(1 for _ in _COSTS)))
    quality, *costs = panels
    for place, row in zip(places, rows, strict=True):
        untrained = not row["share"]
        color = "gray" if untrained else "C0"
        quality.plot(row["values"], [place] * len(row["values"]), ".", color=color, alpha=0.45, markersize=5)
        quality.errorbar(row["mean"], place, xerr=row["half"], fmt="o", color=color, markersize=5.5, capsize=3)
        if untrained:
            quality.axvline(row["mean"], color="gray", linestyle="--", linewidth=0.8)
    quality.set_yticks(list(places), [row["name"] for row in rows])
    quality.set_ylim(len(rows) - 0.5, -0.5)
    quality.set_xlabel(f"{metric}; bars: 95% interval over seeds", fontsize=8)
    for panel, (quantity, factor, title, is_log) in zip(costs, _COSTS, strict=True):
        found = [(place, row[quantity] * factor) for place, row in zip(places, rows, strict=True) if row[quantity]]
        if found:
            panel.plot([value for _, value in found], [place for place, _ in found], "o", color="C1", markersize=5.5)
            if is_log:
                panel.set_xscale("log")
                panel.xaxis.set_minor_locator(NullLocator())
            else:
                panel.set_xlim(0, 1.12 * max(value for _, value in found))
        panel.set_xlabel(title, fontsize=8)
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    metadata = {"Date": None, "Creator": None} if Path(path).suffix == ".svg" else None
    figure.savefig(path, dpi=130, metadata=metadata)
    return Path(path)
