"""The clipping of one optimizer's gradients: numbers, verdict, words and event."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lightning_gradwatch.audit.evidence import ClipEvidence
from lightning_gradwatch.audit.rules import LIMITING_SHARE, ClipVerdict, judge_clipping
from lightning_gradwatch.audit.words import remedy_of, sentence_of
from lightning_gradwatch.events import Event, EventKind, Moment

_KINDS = {
    ClipVerdict.STEP_LIMITER: EventKind.CLIPPING_LIMITS_STEPS,
    ClipVerdict.NO_EFFECT: EventKind.CLIPPING_WITHOUT_EFFECT,
}


@dataclass(frozen=True)
class ClippingSummary:
    """What became of one optimizer's gradients between backward pass and step, over a fit.

    Args:
        optimizer: which of the Trainer's.
        verdict: in a word or two; ``sentence``: the same in a sentence or two.
        remedy: what to do; empty where nothing is to be done.
        by: who clips, as far as that is known.
        bound: the Trainer's ``gradient_clip_val``; None without one.
        samples: optimizer steps looked at, of ``steps`` of this fit, which began at ``first_step``.
        share: of the samples, those on which the gradient was made smaller; None without a sample.
        median_coefficient: to what share of itself, where it was made smaller; None where never.
        norm_percentiles: of the gradient norm after the backward pass, over the samples: ``p50``,
            ``p90``, ``p99``, ``max``; None without a sample.
        clipped_steps: how many of all steps were clipped, where that is known of every step.
    """

    optimizer: int
    verdict: ClipVerdict
    sentence: str
    remedy: str
    by: list[str]
    bound: float | None
    samples: int
    steps: int
    first_step: int
    share: float | None
    median_coefficient: float | None
    norm_percentiles: dict[str, float] | None
    clipped_steps: int | None

    def line(self, *, several: bool) -> str:
        """The verdict in a line.

        Args:
            several: whether the training has several optimizers.
        """
        which = f", optimizer {self.optimizer}" if several else ""
        return f"Clipping{which}: {self.verdict}. {self.sentence}"

    def to_record(self) -> dict[str, Any]:
        """An entry of ``clipping`` in run.json."""
        return {**asdict(self), "verdict": str(self.verdict)}


def summarise_clipping(evidence: ClipEvidence) -> ClippingSummary:
    """The verdict with its words and numbers."""
    verdict = judge_clipping(evidence)
    shown = {f"p{percent}": evidence.percentile(percent) for percent in (50, 90, 99)} if evidence.samples else None
    return ClippingSummary(
        optimizer=evidence.optimizer,
        verdict=verdict,
        sentence=sentence_of(evidence, verdict),
        remedy=remedy_of(evidence, verdict),
        by=evidence.clippers.names,
        bound=evidence.clippers.bound,
        samples=len(evidence.samples),
        steps=evidence.steps,
        first_step=evidence.first_step,
        share=evidence.share,
        median_coefficient=evidence.median_coefficient,
        norm_percentiles=shown and {**shown, "max": evidence.largest},
        clipped_steps=None if (counted := evidence.counted) is None or counted.each != "step" else counted.clipped,
    )


def clipping_event(summary: ClippingSummary, moment: Moment, *, several: bool) -> Event | None:
    """The event of a verdict that wants a look; None of any other.

    Args:
        several: whether the training has several optimizers.
    """
    kind = _KINDS.get(summary.verdict)
    if kind is None:
        return None
    share = summary.share if summary.clipped_steps is None else summary.clipped_steps / max(summary.steps, 1)
    limits = kind == EventKind.CLIPPING_LIMITS_STEPS
    value, threshold = (share, LIMITING_SHARE) if limits else (None, None)
    which = f" Optimizer {summary.optimizer}." if several else ""
    return moment.event(kind, value=value, threshold=threshold, remedy=summary.remedy, detail=summary.sentence + which)
