"""What the sentences on clipping are made of."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.audit.evidence import ClipEvidence
from lightning_gradwatch.plain import count_of


def on(evidence: ClipEvidence, each: str = "") -> str:
    """``On the 10 steps looked at, of 480,``."""
    return f"On {each}{looked_at(evidence)}{',' if evidence.steps > len(evidence.samples) else ''}"


def looked_at(evidence: ClipEvidence) -> str:
    """``the 10 steps looked at, of 480``."""
    number = len(evidence.samples)
    of = f", of {evidence.steps:,}" if evidence.steps > number else ""
    return f"the one step looked at{of}" if number == 1 else f"the {number} steps looked at{of}"


def largest(evidence: ClipEvidence) -> str:
    """How large the gradient was, as a sentence; empty where none was seen."""
    if not evidence.samples:
        return ""
    if len(evidence.samples) == 1:
        return f" The gradient norm was {evidence.samples[0].before:.3g}."
    of_all = evidence.counted is not None and evidence.counted.largest is not None
    seen = (
        ""
        if of_all or evidence.steps <= len(evidence.samples)
        else f" of the {count_of(len(evidence.samples), 'step')} looked at"
    )
    return f" The gradient norm{seen}: median {evidence.percentile(50):.3g}, largest {evidence.largest:.3g}."


def left_alone(evidence: ClipEvidence) -> str:
    """That who clips has done nothing on the steps looked at."""
    who = evidence.clippers
    if who.bound is not None or who.adaptive:
        return f"{on(evidence)} {' and '.join(who.names[:2])} left the gradient as it was"
    return (
        f"{on(evidence)} something wrote to the gradient between the backward pass and the step and left it "
        "as it was, as clipping does whose bound is not reached"
    )


def acted(evidence: ClipEvidence) -> str:
    """On how many steps the gradient was made smaller, and by how much."""
    who, counted = evidence.clippers, evidence.counted
    name = who.adaptive if counted is not None and not who.alone else "It"
    to = "the whole to" if evidence.partial else "to"
    median = evidence.median_coefficient
    share = "" if median is None else f", {to} {median:.2g} of itself in the median"
    seen = f"{len(evidence.clipped)} of {looked_at(evidence)}"
    where = seen if counted is None else f"{counted.clipped:,} of {counted.of_all}"
    skipped = counted.skipped if counted is not None else 0
    if counted is not None and skipped and not counted.clipped:
        return f"{name} skipped {skipped:,} of {counted.of_all}, and clipped none"
    what = "the gradients of some of the parameters" if evidence.partial else "the gradient"
    return f"{name} made {what} smaller on {where}{share}{f', and skipped {skipped:,}' if skipped else ''}"


def late(evidence: ClipEvidence) -> str:
    """That it was clipped with the gradient scaler's factor in it; empty where it was not."""
    scaled = [sample for sample in evidence.clipped if sample.scale != 1.0]
    if not scaled:
        return ""
    scale = scaled[-1].scale
    return (
        f" It did so before the gradient scaler had taken its factor of {scale:,.6g} out of the gradient: a "
        f"bound of 1 acts there as one of {1 / scale:.2g}."
    )


def listed(names: Sequence[str], one: str = "names", several: str = "name") -> str:
    """With the verb."""
    return f"{' and '.join(names)} {one if len(names) == 1 else several}"
