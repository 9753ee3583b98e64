"""A run's losses, where the held-out one was lowest, and the gradient's norm."""

from matplotlib.figure import Figure

from weft.analysis.plots.theme import INK, SERIES
from weft.analysis.signs import Curves


def run_figure(curves: Curves) -> Figure:
    """The losses, and beside them the norm of the gradient if it was logged."""
    panels = 2 if curves.gradients else 1
    figure = Figure(figsize=(10, 2.7), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False, gridspec_kw={"width_ratios": [2, 1][:panels]})[0]
    losses = axes[0]
    if curves.training:
        losses.plot(*zip(*curves.training, strict=True), color=SERIES[0], alpha=0.6, linewidth=1, label="training")
    if curves.held_out:
        losses.plot(
            *zip(*curves.held_out, strict=True), color=SERIES[1], marker="o", markersize=3.5, linewidth=1.4,
            label="held out",
        )  # fmt: skip
        best = min(curves.held_out, key=lambda point: point[1])
        losses.plot(*best, linestyle="", marker="o", markersize=8, markerfacecolor="none", markeredgecolor=INK)
        losses.annotate(
            f"lowest: {best[1]:.3f}", best, xytext=(4, 9), textcoords="offset points", fontsize=7.5, ha="right"
        )
    losses.set_ylabel("loss, nats per token", fontsize=8)
    losses.legend(fontsize=7.5)
    if curves.gradients:
        axes[1].plot(*zip(*curves.gradients, strict=True), color=SERIES[2], linewidth=1)
        axes[1].set_ylabel("norm of the gradient", fontsize=8)
        axes[1].set_ylim(bottom=0)
    for panel in axes:
        panel.set_xlabel("optimizer step", fontsize=8)
        panel.tick_params(labelsize=7.5)
        panel.grid(alpha=0.5)
    return figure
