"""The metrics of a run's evaluations over its steps, beside the loss."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLUMNS = 3


def plot_metrics(lines: Sequence[Mapping[str, Any]], titles: Mapping[str, str], path: str | Path) -> Path | None:
    """Draws each metric that was found at two steps or more in a panel of its own, and returns the picture's path.

    Args:
        lines: of metrics, each with "step" and some of the keys of `titles`.
        titles: key -> title, in the order of the panels.
        path: the picture to write; its suffix is its format. None is written, and None returned, without such a metric.
    """
    curves = {
        title: [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        for key, title in titles.items()
    }
    curves = {title: points for title, points in curves.items() if len(points) > 1}
    if not curves:
        return None
    columns = min(_COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (title, points) in zip(panels, curves.items(), strict=False):
        panel.plot(*zip(*points, strict=True), color="C0", marker="o", markersize=3.5, linewidth=1.4)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("optimizer step", fontsize=8)
        panel.tick_params(labelsize=7.5)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    figure.savefig(path, dpi=130)
    return Path(path)
