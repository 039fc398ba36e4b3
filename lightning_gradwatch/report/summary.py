"""The verdicts of :mod:`lightning_gradwatch.runlog.summary` as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.runlog.reader import Run
from lightning_gradwatch.runlog.summary import LayerSummary, summarise

__all__ = ["LayerSummary", "horizon_text", "run_names", "summarise", "summary_lines"]


def summary_lines(run: Run) -> list[str]:
    """What was found, a line per module, layer and direction."""
    lines = [f"{layer.line} {_events(layer)}" for layer in summarise(run.profile_records, run.event_records)]
    return lines or ["No profile was recorded: nothing can be said about the gradient through time."]


def horizon_text(layer: LayerSummary) -> str:
    """Horizon beside the sequence length: ``12 of 64``; ``≥ 63 of 64`` where it was cut off;
    ``4 of 64 (4 to 17)`` where it varies."""
    if layer.horizon is None:
        return "–"
    varies = f" ({layer.horizon_range})" if layer.horizon_range else ""
    return f"{'≥ ' if layer.horizon_censored else ''}{layer.horizon} of {layer.timesteps}{varies}"


def run_names(runs: Sequence[Run]) -> list[str]:
    """A different name for each run: its folder's, numbered where two are alike."""
    names: list[str] = []
    for run in runs:
        name, number = run.name, 1
        while name in names:
            number += 1
            name = f"{run.name} ({number})"
        names.append(name)
    return names


def _events(layer: LayerSummary) -> str:
    return {0: "No event names it.", 1: "1 event names it."}.get(layer.events, f"{layer.events} events name it.")
