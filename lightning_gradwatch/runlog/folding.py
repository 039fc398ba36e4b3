"""Events that come at step after step, counted once."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_gradwatch.events import EventKind
from lightning_gradwatch.runlog.measures import Record

FOLDED = (EventKind.GRADIENT_CLIPPED, EventKind.STEP_SKIPPED)
"""What may come a hundred times in succession."""


def counted_once(events: Iterable[Record]) -> list[Record]:
    """Of clipped steps that follow each other, and of skipped ones, the first; all other events."""
    last: dict[tuple[object, ...], int] = {}
    kept: list[Record] = []
    for event in events:
        key = (event["kind"], event.get("severity"), event.get("action"), event.get("rank"))
        follows = event["kind"] in FOLDED and event["step"] - last.get(key, -2) in (0, 1)
        last[key] = event["step"]
        if not follows:
            kept.append(event)
    return kept
