"""A change beside the base's weight: how much of it was there already, and which directions are new."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from weft.analysis.against_base import BaseComparison
from weft.analysis.plots.theme import INK, SERIES, label_powers, thinned

_DOTS = 1000
"""At most this many modules get a dot."""


def amplification_figure(comparisons: Sequence[BaseComparison], norms: Sequence[float]) -> Figure:
    """||D|| against ||U^T W V|| for each module; lines of equal amplification are diagonal."""
    figure = Figure(figsize=(4.9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    both = thinned(list(zip(comparisons, norms, strict=True)), _DOTS)
    points = [(c.projected_norm, n) for c, n in both if c.projected_norm > 0 and n > 0]
    if points:
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=10, color=SERIES[0], alpha=0.75, linewidths=0, label="in W")
        chance = [(c.chance_norm, n) for c, n in both if c.chance_norm > 0 and n > 0]
        axes.scatter(
            [p[0] for p in chance],
            [p[1] for p in chance],
            s=6,
            color=SERIES[1],
            alpha=0.4,
            linewidths=0,
            label="by chance",
        )
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            label_powers(axis)
        low, high = axes.get_xlim()
        bottom, top = axes.get_ylim()
        for factor in (0.1, 1, 10, 100):
            axes.plot([low, high], [low * factor, high * factor], color=INK, alpha=0.35, linewidth=0.7, linestyle=":")
            at = min(high, top / factor)
            if low < at and bottom < at * factor:
                axes.annotate(f"x{factor:g}", (at, at * factor), fontsize=7, ha="right", va="top")
        axes.set_xlim(low, high)
        axes.set_ylim(bottom, top)
        axes.legend(fontsize=7, loc="lower right")
    axes.set_xlabel("norm of W in the directions of the change", fontsize=8)
    axes.set_ylabel("norm of the change", fontsize=8)
    axes.tick_params(which="both", labelsize=7.5)
    axes.grid(alpha=0.5)
    return figure


def intruder_figure(comparisons: Sequence[BaseComparison]) -> Figure:
    """The largest cosine of each leading direction of W + D to any of W; below epsilon it is an intruder."""
    figure = Figure(figsize=(4.9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    found = thinned([c.intruders for c in comparisons if c.intruders is not None], _DOTS // 4)
    epsilon = found[0].search.epsilon if found else 0.0
    for number, each in enumerate(found):
        # Side by side within a direction, so that equal ones do not hide each other.
        offset = 0.6 * (number / max(1, len(found) - 1) - 0.5)
        axes.scatter(
            [position + offset for position in range(1, len(each.cosines) + 1)],
            [c.high for c in each.cosines],
            s=6, alpha=0.6, linewidths=0, c=[SERIES[0] if c.high >= epsilon else SERIES[1] for c in each.cosines],
        )  # fmt: skip
    if found:
        axes.axhline(epsilon, color=SERIES[1], linewidth=1, linestyle="--")
        axes.text(0.5, epsilon - 0.01, "intruders are below", fontsize=7, va="top")
    axes.set_ylim(0, 1.04)
    axes.set_xlabel("direction of W + D, strongest first", fontsize=8)
    axes.set_ylabel("largest cosine to one of W", fontsize=8)
    axes.tick_params(labelsize=7.5)
    axes.grid(alpha=0.5)
    return figure
