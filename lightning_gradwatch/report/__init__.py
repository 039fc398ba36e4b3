"""Shows a run log: figures, a page, a table. Every library that draws is an extra and imported
where it is used."""

from lightning_gradwatch.report.console import print_events, print_summary
from lightning_gradwatch.report.figures import (
    plot_channels,
    plot_clipping,
    plot_heatmap,
    plot_horizon,
    plot_influence,
    plot_lag,
    plot_profile,
    plot_words,
    profile_picture,
)
from lightning_gradwatch.report.html import write_report
from lightning_gradwatch.report.summary import summary_lines

__all__ = [
    "plot_channels",
    "plot_clipping",
    "plot_heatmap",
    "plot_horizon",
    "plot_influence",
    "plot_lag",
    "plot_profile",
    "plot_words",
    "print_events",
    "print_summary",
    "profile_picture",
    "summary_lines",
    "write_report",
]
