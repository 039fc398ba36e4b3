"""What is said of clipping when a fit ends."""

from __future__ import annotations

from lightning_gradwatch.audit import clipping_event, summarise_clipping
from lightning_gradwatch.callbacks.output.watch_recorder import WatchRecorder
from lightning_gradwatch.events import Moment
from lightning_gradwatch.trainer.clip_audit import ClipAudit


def tell_clipping(audit: ClipAudit, recorder: WatchRecorder, moment: Moment, *, write: bool) -> None:
    """Record what became of the gradients between backward pass and step, and tell it as events.

    Args:
        write: whether it is this rank that writes them: they are the same on all.
    """
    summaries = [summarise_clipping(one) for one in audit.findings()]
    recorder.take_clipping(summaries)
    for one in summaries:
        event = clipping_event(one, moment, several=len(summaries) > 1)
        if event is not None:
            recorder.sink.take(event, write=write)
