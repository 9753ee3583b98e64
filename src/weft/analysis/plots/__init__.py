"""Pictures, one file each; the only part that imports matplotlib. They draw numbers and compute none."""

from weft.analysis.plots.comparison import plot_comparison
from weft.analysis.plots.losses import plot_losses
from weft.analysis.plots.metrics import plot_metrics
from weft.analysis.plots.rank_curve import plot_rank_curve

__all__ = ["plot_comparison", "plot_losses", "plot_metrics", "plot_rank_curve"]
