"""The losses of runs over their steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_losses(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> Path:
    """Draws training and held-out loss over the optimizer steps, and returns the picture's path.

    Args:
        runs: name -> lines of metrics, each with "step" and "loss" or "eval_loss" (nats per token).
        path: the picture to write; its suffix is its format.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, lines) in enumerate(runs.items()):
        color = f"C{number}"
        training = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        held_out = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
        if training:
            axes.plot(*zip(*training, strict=True), color=color, alpha=0.45, linewidth=1, label=f"{name}: training")
        if held_out:
            axes.plot(*zip(*held_out, strict=True), color=color, marker="o", markersize=4, label=f"{name}: held out")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
    return Path(path)
