"""The verdicts of :mod:`lightning_gradwatch.runlog.summary` as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.runlog.reader import Run
from lightning_gradwatch.runlog.summary import LayerSummary, summarise

__all__ = ["LayerSummary", "horizon_text", "run_names", "summarise", "summary_lines"]


def summary_lines(run: Run) -> list[str]:
    """What was found, a line per module, layer and direction."""
    lines = [f"{found.line} {_events(found)}" for found in summarise(run.profile_records, run.event_records)]
    return lines or ["No profile was recorded: nothing can be said about the gradient through time."]


def horizon_text(found: LayerSummary) -> str:
    """Horizon beside the sequence length: ``12 of 64``; ``≥ 63 of 64`` where it was cut off;
    ``4 of 64 (4 to 17)`` where it varies."""
    if found.horizon is None:
        return "–"
    varies = f" ({found.horizon_range})" if found.horizon_range else ""
    return f"{'≥ ' if found.horizon_censored else ''}{found.horizon} of {found.timesteps}{varies}"


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


def _events(found: LayerSummary) -> str:
    return {0: "No events.", 1: "1 event."}.get(found.events, f"{found.events} events.")
