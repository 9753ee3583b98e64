"""How alike adapters are: the matrix of all of them, modules by depth, and the grids of the LoRA paper."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from weft.analysis.plots.theme import INK, LINE, MUTED, SERIES, shades, shortened, thinned
from weft.analysis.similarity import Overlap, PairSimilarity, SimilarityGrid
from weft.patterns import block_index

_NUMBERED = 14
"""Matrices of up to this many adapters have their numbers written in."""
_DOTS = 1000
"""At most this many modules get a dot."""


def overlap_figure(overlap: Overlap) -> Figure:
    """Cosine and mean subspace similarity of every two adapters."""
    n = len(overlap.names)
    size = min(0.9 + 0.42 * n, 6.5)
    figure = Figure(figsize=(min(10.0, 3 * size + 1), size + 0.3), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    titles = ("cosine of the changes", "common input directions", "common output directions")
    for panel, title, values in zip(panels, titles, (overlap.cosine, overlap.inputs, overlap.outputs), strict=True):
        panel.imshow(shades(values, 1.0), interpolation="none", aspect="equal")
        if n <= _NUMBERED:
            for i, row in enumerate(values):
                for j, value in enumerate(row):
                    text = "" if value is None else "1" if i == j else f"{round(value, 2) + 0.0:.2f}"
                    panel.text(j, i, text, ha="center", va="center", fontsize=7, color=INK)
        names = [shortened(name, 16) for name in overlap.names]
        panel.set_xticks(range(n), names, rotation=40, ha="right", rotation_mode="anchor")
        panel.set_yticks(range(n), names)
        panel.set_title(title, loc="left", fontsize=8, fontweight="normal")
        _bare(panel)
    return figure


def depth_figure(pair: PairSimilarity) -> Figure:
    """Cosine and subspace similarity of each module of two adapters, by block."""
    figure = Figure(figsize=(10, 2.3), layout="constrained")
    panels = figure.subplots(1, 3)
    modules = thinned(pair.modules, _DOTS)
    blocks = [index if (index := block_index(m.path)) is not None else -1 for m in modules]
    measures: dict[str, list[tuple[float | None, float | None]]] = {
        "cosine": [(m.cosine, None) for m in modules],
        "common input directions": [(m.inputs, m.chance_inputs) for m in modules],
        "common output directions": [(m.outputs, m.chance_outputs) for m in modules],
    }
    for panel, (title, measured) in zip(panels, measures.items(), strict=True):
        values = [value for value, _ in measured]
        points = [(block, value) for block, value in zip(blocks, values, strict=True) if value is not None]
        if points:
            panel.scatter(*zip(*points, strict=True), s=8, color=SERIES[0], alpha=0.7, linewidths=0)
        chances = [(block, chance) for block, (_, chance) in zip(blocks, measured, strict=True) if chance is not None]
        if chances:
            panel.scatter(
                *zip(*sorted(set(chances)), strict=True), marker="_", s=30, color=INK, alpha=0.7, linewidths=0.9
            )
            panel.set_title("– by chance", loc="right", fontsize=7, fontweight="normal")  # noqa: RUF001  # the marker
        panel.axhline(0, color=LINE, linewidth=0.8)
        panel.set_title(title, loc="left", fontsize=8, fontweight="normal")
        panel.set_xlabel("block", fontsize=8)
        panel.tick_params(labelsize=7.5)
        panel.grid(alpha=0.5)
    return figure


def grid_figure(grids: Sequence[SimilarityGrid]) -> Figure:
    """phi(i, j) of each module: input side, output side, and two random matrices; figures 3 and 4 of the paper."""
    columns = len(grids)
    width = min(10.0, 1.5 * columns + 1.6)
    figure = Figure(figsize=(width, 5.0))
    # Places in inches: finding them out by the constrained layout takes longer than all other pictures together.
    panels = figure.subplots(3, columns, squeeze=False, gridspec_kw={"wspace": 0.22, "hspace": 0.16})
    figure.subplots_adjust(left=0.6 / width, right=1 - 0.1 / width, top=1 - 0.45 / 5, bottom=0.45 / 5)
    for column, grid in enumerate(grids):
        for row, (name, values) in enumerate(
            (("inputs", grid.inputs), ("outputs", grid.outputs), ("random", grid.chance))
        ):
            panel = panels[row][column]
            i, j = len(values), len(values[0])
            panel.imshow(shades(values, 1.0), interpolation="none", aspect="auto", extent=(0.5, j + 0.5, i + 0.5, 0.5))
            _bare(panel)
            panel.set_xticks([1, j] if j > 1 else [1])
            panel.set_yticks([1, i] if i > 1 else [1])
            if row == 0:
                *_, parent, leaf = ["", *grid.path.split(".")]
                block = block_index(grid.path)
                where = f"block {block}" if block is not None else parent
                panel.set_title(f"{shortened(leaf, 14)}\n{where}", fontsize=8, fontweight="normal")
            if column == 0:
                panel.set_ylabel(f"{name}\ni", fontsize=8)
            if row == 2:
                panel.set_xlabel("j", fontsize=8)
    return figure


def scale_figure() -> Figure:
    """What the shades of a similarity mean: a bar from 0 to 1."""
    figure = Figure(figsize=(2.6, 0.42), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shades([[k / 63 for k in range(64)]], 1.0), aspect="auto", interpolation="none", extent=(0, 1, 0, 1))
    axes.set_yticks([])
    axes.set_xticks([0, 0.5, 1])
    axes.tick_params(length=0, labelsize=7.5, labelcolor=MUTED)
    axes.spines[:].set_visible(False)
    return figure


def _bare(panel: Axes) -> None:
    panel.tick_params(length=0, labelsize=7.5)
    panel.spines[:].set_visible(True)
    panel.spines[:].set_linewidth(0.6)
