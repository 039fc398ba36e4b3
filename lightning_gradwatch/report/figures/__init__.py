"""Figures on matplotlib axes. They draw what the run log holds and compute no norm."""

from lightning_gradwatch.report.figures.clipping import plot_clipping
from lightning_gradwatch.report.figures.curves import plot_channels, plot_horizon, plot_lag, plot_profile
from lightning_gradwatch.report.figures.heatmap import plot_heatmap
from lightning_gradwatch.report.figures.influence import plot_influence, plot_words
from lightning_gradwatch.report.figures.picture import profile_picture

__all__ = [
    "plot_channels",
    "plot_clipping",
    "plot_heatmap",
    "plot_horizon",
    "plot_influence",
    "plot_lag",
    "plot_profile",
    "plot_words",
    "profile_picture",
]
