"""Pictures, one file each; the only part that imports matplotlib. They draw numbers and compute none."""

from weft.analysis.plots.losses import plot_losses

__all__ = ["plot_losses"]
