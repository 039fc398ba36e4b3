"""The rules by which the clipping of an optimizer's gradients gets its verdict."""

from __future__ import annotations

import math
from collections.abc import Callable

from lightning_gradwatch.audit.evidence import ClipEvidence
from lightning_gradwatch.events import StrEnum


class ClipVerdict(StrEnum):
    """What is to be thought of the clipping of one optimizer's gradients."""

    NONE = "none"
    NEVER_ACTED = "never acted"
    SAFETY_NET = "safety net"
    STEP_LIMITER = "step limiter"
    NO_EFFECT = "no effect although called"
    UNDECIDED = "undecided"


LIMITING_SHARE = 0.5
"""Share of the steps. What acts on more of them sets the length of the steps, and is no net."""

RARE_SHARE = 0.05
"""Share of the steps. What acts on no more of them than that might as well never act."""

ENOUGH_STEPS = 10
"""Steps, all counted, from which on a share of them is a habit."""

_CONFIDENCE = 1.96
"""Standard deviations: 95 % of a normal distribution."""

Rule = Callable[[ClipEvidence], ClipVerdict | None]


def judge_clipping(evidence: ClipEvidence) -> ClipVerdict:
    """The verdict of the first rule that applies."""
    return next(verdict for rule in _RULES if (verdict := rule(evidence)) is not None)


def _unseen(evidence: ClipEvidence) -> ClipVerdict | None:
    return None if evidence.samples else ClipVerdict.UNDECIDED


def _other_change(evidence: ClipEvidence) -> ClipVerdict | None:
    """A fixed factor, what leaves the gradient under the one bound that there is, or something that
    makes gradients larger no less often than smaller, as noise does: no clipping.
    """
    grown = sum(sample.grown for sample in evidence.samples)
    grows = grown > 0 and grown >= len(evidence.clipped)
    known = _is_known(evidence) or bool(evidence.clipped and evidence.clippers.named)
    other = evidence.under_bound or ((grows or evidence.constant is not None) and not known)
    return ClipVerdict.NONE if other else None


def _acts(evidence: ClipEvidence) -> ClipVerdict | None:
    counted = evidence.counted
    if counted is not None:
        if not counted.clipped:
            return ClipVerdict.SAFETY_NET if counted.skipped else None
        if counted.steps < ENOUGH_STEPS and len(evidence.samples) < counted.steps:
            return ClipVerdict.UNDECIDED
        often = counted.clipped > LIMITING_SHARE * counted.steps
        return ClipVerdict.STEP_LIMITER if often else ClipVerdict.SAFETY_NET
    if not evidence.clipped:
        return None
    low, high = share_of_all(evidence)
    if low > LIMITING_SHARE:
        return ClipVerdict.STEP_LIMITER
    return ClipVerdict.SAFETY_NET if high <= LIMITING_SHARE else ClipVerdict.UNDECIDED


def _has_no_effect(evidence: ClipEvidence) -> ClipVerdict | None:
    """Called, and yet nothing wrote to the gradient between backward pass and step."""
    who = evidence.clippers
    if any(sample.touched for sample in evidence.samples):
        return None
    surely = who.surely and not evidence.for_others and not may_be_unnoticed(evidence)
    if evidence.elsewhere or (evidence.stale and who.named) or surely:
        return ClipVerdict.NO_EFFECT
    unused = who.bound is not None and who.override and not who.by_value
    return ClipVerdict.NO_EFFECT if unused and evidence.largest > (who.bound or 0.0) else None


def _never_acted(evidence: ClipEvidence) -> ClipVerdict | None:
    if not (_is_known(evidence) or any(sample.touched for sample in evidence.samples)):
        return None
    open_ = may_have_acted(evidence) or may_have_acted_on_probes(evidence)
    return ClipVerdict.UNDECIDED if open_ else ClipVerdict.NEVER_ACTED


def _unnoticed(evidence: ClipEvidence) -> ClipVerdict | None:
    return ClipVerdict.UNDECIDED if may_be_unnoticed(evidence) else None


def may_be_unnoticed(evidence: ClipEvidence) -> bool:
    """Whether what the user's code names may act on a gradient that keeps no trace of it, with a
    bound that is not reached: only what comes before the backward pass surely does not.
    """
    who = evidence.clippers
    return evidence.traceless and not evidence.for_others and not set(who.named) <= set(who.early)


def may_have_acted_on_probes(evidence: ClipEvidence) -> bool:
    """Whether it left alone the first gradient of each step, and others are not known."""
    return bool(evidence.probes) and evidence.counted is None and not evidence.clipped


def may_have_acted(evidence: ClipEvidence) -> float | None:
    """On how large a share of all steps something may have acted that left the gradient as it was
    at each of the samples; None where that is known, or next to none.
    """
    if evidence.clipped or evidence.counted is not None or len(evidence.samples) >= evidence.steps:
        return None
    share = interval(0, len(evidence.samples))[1]
    return share if share > RARE_SHARE else None


def _nothing_clips(evidence: ClipEvidence) -> ClipVerdict:
    return ClipVerdict.NONE


_RULES: tuple[Rule, ...] = (
    _unseen,
    _other_change,
    _acts,
    _has_no_effect,
    _never_acted,
    _unnoticed,
    _nothing_clips,
)
"""The last one applies to whatever is left."""


def _is_known(evidence: ClipEvidence) -> bool:
    """Whether a setting says that something clips."""
    return evidence.clippers.bound is not None or bool(evidence.clippers.adaptive)


def share_of_all(evidence: ClipEvidence) -> tuple[float, float]:
    """Between which shares of all steps those lie on which the gradient was made smaller; one share
    where there were enough, and each was looked at.
    """
    hits, samples = len(evidence.clipped), len(evidence.samples)
    if samples >= max(evidence.steps, ENOUGH_STEPS):
        return hits / samples, hits / samples
    return interval(hits, samples)


def interval(hits: int, samples: int) -> tuple[float, float]:
    """Between which shares of all steps the truth lies, if so many of the samples were hit (Wilson
    1927, 95 %).

    Args:
        samples: ≥ 1.
    """
    share, z = hits / samples, _CONFIDENCE
    wide = 1 + z * z / samples
    middle = (share + z * z / (2 * samples)) / wide
    half = z / wide * math.sqrt(share * (1 - share) / samples + (z / (2 * samples)) ** 2)
    return middle - half, middle + half
