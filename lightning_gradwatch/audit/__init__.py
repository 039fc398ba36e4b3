"""What became of an optimizer's gradient between the backward pass and the step, as a verdict."""

from lightning_gradwatch.audit.evidence import CHANGED, ClipEvidence, Clippers, ClipSample, Counted
from lightning_gradwatch.audit.rules import ClipVerdict, judge_clipping
from lightning_gradwatch.audit.summary import ClippingSummary, clipping_event, summarise_clipping

__all__ = [
    "CHANGED",
    "ClipEvidence",
    "ClipSample",
    "ClipVerdict",
    "Clippers",
    "ClippingSummary",
    "Counted",
    "clipping_event",
    "judge_clipping",
    "summarise_clipping",
]
