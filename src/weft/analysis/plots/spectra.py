"""Singular values by kind of module, and how the energy adds up over the directions."""

import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from weft.analysis.inspect import ModuleNumbers
from weft.analysis.plots.theme import INK, MUTED, NEGATIVE, POSITIVE, SERIES, label_powers, shortened, thinned

_DEPTH = LinearSegmentedColormap.from_list("depth", [POSITIVE, "#7c83b8", NEGATIVE])
_LINES = 48
"""At most this many modules of a kind get a line of their own."""
_DOTS = 200
"""And a dot of their own."""


def spectra_figure(kinds: Mapping[str, Sequence[ModuleNumbers]]) -> Figure:
    """The singular values of each module's change, a panel for each kind, colored by depth."""
    columns = min(4, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    figure = Figure(figsize=(10, 2.0 * rows + 0.25), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for panel, (kind, modules) in zip(panels, kinds.items(), strict=False):
        shown = thinned(modules, _LINES)
        for number, module in enumerate(shown):
            values = [value for value in module.spectrum.singular_values if value > 0]
            depth = number / max(1, len(shown) - 1)
            panel.plot(
                range(1, len(values) + 1), values, color=_DEPTH(depth), linewidth=0.9, alpha=0.8,
                marker="o" if len(values) == 1 else None, markersize=3,
            )  # fmt: skip
        panel.set_yscale("log")
        label_powers(panel.yaxis)
        panel.set_title(shortened(kind), loc="left")
        panel.grid(alpha=0.7)
        panel.tick_params(which="both", labelsize=7.5)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    for panel in panels[len(kinds) :]:
        panel.axis("off")
    figure.supxlabel("direction", fontsize=8, color=MUTED)
    figure.supylabel("singular value of s B A", fontsize=8, color=MUTED)
    return figure


def energy_figure(kinds: Mapping[str, Sequence[ModuleNumbers]]) -> Figure:
    """The share of the energy in the first k directions: for each kind the median, for all modules the range."""
    figure = Figure(figsize=(4.9, 2.9), layout="constrained")
    axes = figure.add_subplot()
    curves = [m.spectrum.cumulative_energy() for modules in kinds.values() for m in modules]
    length = max(map(len, curves))
    padded = [[0.0, *curve, *[curve[-1]] * (length - len(curve))] for curve in curves]
    ranges = [(min(column), max(column)) for column in zip(*padded, strict=True)]
    axes.fill_between(
        range(length + 1),
        [low for low, _ in ranges],
        [high for _, high in ranges],
        color=MUTED,
        alpha=0.12,
        linewidth=0,
        label="all modules",
    )
    position, styles = 0, ("-", "--", ":")
    for number, (kind, modules) in enumerate(kinds.items()):
        curve = [statistics.median(c) for c in zip(*padded[position : position + len(modules)], strict=True)]
        position += len(modules)
        axes.plot(
            curve, linewidth=1.4, color=SERIES[number % len(SERIES)], linestyle=styles[number // len(SERIES) % 3],
            label=shortened(kind),
        )  # fmt: skip
    for share in (0.9, 0.99):
        axes.axhline(share, color=INK, alpha=0.4, linewidth=0.7, linestyle=":")
        axes.text(length, share, f"{share:.0%} ", va="bottom" if share > 0.95 else "top", ha="right", fontsize=7)
    axes.set_xlim(0, length)
    axes.set_ylim(0, 1.06)
    axes.set_xlabel("directions kept", fontsize=8)
    axes.set_ylabel("share of the energy", fontsize=8)
    axes.tick_params(labelsize=7.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=7, ncols=2, loc="lower right")
    return figure


def saturation_figure(kinds: Mapping[str, Sequence[ModuleNumbers]]) -> Figure:
    """Saturation and the rank that 99% of the energy needs, a dot for each module (of many, for some)."""
    figure = Figure(figsize=(4.9, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row, every in enumerate(kinds.values()):
        modules = thinned(every, _DOTS)
        spread = [row + 0.5 * (i / max(1, len(modules) - 1) - 0.5) for i in range(len(modules))]
        shades = [_DEPTH(i / max(1, len(modules) - 1)) for i in range(len(modules))]
        left.scatter([m.spectrum.saturation for m in modules], spread, s=7, c=shades, linewidths=0)
        right.scatter([m.spectrum.rank_99 / m.rank for m in modules], spread, s=7, c=shades, linewidths=0)
    for panel, title in ((left, "saturation"), (right, "rank for 99% / rank")):
        panel.set_title(title, loc="left", fontsize=8, fontweight="normal")
        panel.set_xlim(-0.03, 1.03)
        panel.grid(axis="x", alpha=0.7)
        panel.tick_params(labelsize=7.5)
    left.set_yticks(range(len(kinds)), [shortened(kind, 18) for kind in kinds])
    left.invert_yaxis()
    return figure
