"""What GradWatch says on the terminal when a fit ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_gradwatch.callbacks.output.watch_recorder import WatchRecorder
from lightning_gradwatch.events import Event
from lightning_gradwatch.report.extra import commands
from lightning_gradwatch.trainer.compat import Trainer, say


def say_findings(recorder: WatchRecorder, others: Sequence[Event], run_dir: Path | None, hint: Sequence[str]) -> None:
    """The verdicts and events in a few lines, and the commands to look further.

    Args:
        others: events that other callbacks wrote into the same run log.
        run_dir: its folder; None without one.
        hint: lines that come last.
    """
    looks = [] if run_dir is None else [f"  {line}" for line in commands(run_dir)]
    say("\n".join([*recorder.summary(others), *looks, *hint]), urgent=recorder.is_critical())


def told_by_others(trainer: Trainer, owner: object, run_dir: Path | None) -> list[Event]:
    """The events of the other callbacks that write into the same run log: a
    verdict rests on all that is in it.
    """
    callbacks: list[object] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]  # set by a connector
    others = [one for one in callbacks if one is not owner and getattr(one, "run_dir", None) == run_dir]
    return [event for one in others for event in getattr(one, "events", ()) if isinstance(event, Event)]
