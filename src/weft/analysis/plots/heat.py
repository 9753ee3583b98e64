"""A number for each block and kind of module, as a heat map; with sums at its edges where sums mean something."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from weft.analysis.grid import BlockGrid
from weft.analysis.plots.theme import INK, POSITIVE, shades, shortened

_NUMBERED = 16


def heat_figure(grid: BlockGrid, unit: str, *, sums: bool = False, form: str = "{:.3g}") -> Figure:
    """Blocks from left to right, kinds from top to bottom; stronger is more; few blocks have their numbers written in.

    Args:
        grid: the numbers.
        unit: what they are.
        sums: also draw the sum of each block and of each kind.
        form: how numbers are written.
    """
    rows, columns = len(grid.kinds), len(grid.blocks)
    height = 0.25 * rows + 0.75 + (0.75 if sums else 0)
    figure = Figure(figsize=(10, height), layout="constrained")
    if sums:
        axes = figure.subplots(
            2, 2, sharex="col", sharey="row",
            gridspec_kw={"width_ratios": [8, 1.3], "height_ratios": [0.7, 0.25 * rows], "hspace": 0.02, "wspace": 0.02},
        )  # fmt: skip
        above, corner, main, right = axes[0][0], axes[0][1], axes[1][0], axes[1][1]
        corner.axis("off")
        above.bar(range(columns), grid.by_block(), color=POSITIVE, width=0.8)
        by_kind = grid.by_kind()
        right.barh(range(rows), by_kind, color=POSITIVE, height=0.7)
        for k, value in enumerate(by_kind):
            right.annotate(
                form.format(value), (value, k), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5
            )
        right.set_xlim(0, max(by_kind) * 1.6 or 1)
        for side in (above, right):
            side.spines[:].set_visible(False)
            side.tick_params(length=0, labelleft=False, labelbottom=False)
    else:
        main = figure.add_subplot()
    _cells(main, grid, form)
    main.set_title(unit, loc="left", fontsize=8, fontweight="normal") if not sums else above.set_title(
        unit, loc="left", fontsize=8, fontweight="normal"
    )
    return figure


def _cells(axes: Axes, grid: BlockGrid, form: str) -> None:
    values = [list(row) for row in zip(*grid.cells, strict=True)]  # kinds down
    there = [value for row in values for value in row if value is not None]
    largest = max((abs(value) for value in there), default=0.0)
    axes.imshow(shades(values, largest), aspect="auto", interpolation="none")
    if len(grid.blocks) <= _NUMBERED:
        for k, row in enumerate(values):
            for i, value in enumerate(row):
                if value is not None:
                    axes.text(i, k, form.format(value), ha="center", va="center", fontsize=7, color=INK)
    missing = [(i, k) for k, row in enumerate(values) for i, value in enumerate(row) if value is None]
    if missing:
        axes.plot(*zip(*missing, strict=True), linestyle="", marker="_", markersize=3, color=INK, alpha=0.35)
    if there:
        low, high = min(there), max(there)
        axes.set_xlabel(f"block · from {form.format(low)} (faintest) to {form.format(high)} (strongest)", fontsize=8)
    step = max(1, -(-len(grid.blocks) // 40))
    ticks = range(0, len(grid.blocks), step)
    axes.set_xticks(list(ticks), ["none" if grid.blocks[i] is None else str(grid.blocks[i]) for i in ticks])
    axes.set_yticks(range(len(grid.kinds)), [shortened(kind) for kind in grid.kinds])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
