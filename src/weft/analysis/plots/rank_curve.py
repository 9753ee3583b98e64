"""The loss of an adapter at each rank, against the rank and against the bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator


def plot_rank_curve(points: Sequence[Mapping[str, Any]], path: str | Path, chosen: int | None = None) -> Path:
    """Draws loss against rank and against size, and returns the picture's path.

    The bars are the intervals of the difference to the whole adapter: they say which ranks are as good.

    Args:
        points: by rank, the base (rank 0) first, the whole adapter last, each with "rank", "nbytes", "loss" in nats per
            token, and "worse" and "worse_interval", its difference to the whole adapter's loss.
        path: the picture to write; its suffix is its format.
        chosen: the rank to mark.
    """
    base, *ranks = points
    losses = [point["loss"] for point in ranks]
    bars = [[max(0.0, sign * (point["worse_interval"][end] - point["worse"])) for point in ranks]
            for end, sign in ((0, -1), (1, 1))]  # fmt: skip
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, places in ((left, [p["rank"] for p in ranks]), (right, [p["nbytes"] / 1e6 for p in ranks])):
        axes.errorbar(places, losses, yerr=bars, marker="o", markersize=4, capsize=2, linewidth=1)
        axes.axhline(losses[-1], color="gray", linestyle="--", linewidth=1)
        for place, point in zip(places, ranks, strict=True):
            if point["rank"] == chosen:
                axes.plot(place, point["loss"], "o", color="C1", markersize=9, fillstyle="none", label="chosen")
                axes.legend(frameon=False)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:.3g}")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_xlabel("rank")
    right.set_xlabel("size (MB)")
    left.set_ylabel("held-out loss (nats per token)")
    figure.suptitle(f"base alone: {base['loss']:.3f}; bars: 95% of the difference to the whole", fontsize=9)
    figure.savefig(path, dpi=130)
    return Path(path)
