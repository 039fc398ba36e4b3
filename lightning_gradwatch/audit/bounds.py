"""The bound that is advised instead of one that limits most steps."""

from __future__ import annotations

import math

from lightning_gradwatch.audit.evidence import ClipEvidence

FOR_A_PERCENTILE = 10
"""Samples from which on a percentile is more than one of them."""

_MOST = 90.0
"""Per cent of the norms, which are ordinary ones."""


def whose(evidence: ClipEvidence) -> str:
    """What the advised bound is, in words."""
    if len(evidence.samples) >= FOR_A_PERCENTILE:
        return f"under which {_MOST:.0f} % of the gradient norms lay"
    return "the largest gradient norm that was seen"


def advised_bound(evidence: ClipEvidence) -> str:
    """Rounded up: rounded down it would cut off what it is meant to let through. Not the largest of
    many norms, which is the very one that clipping is for.
    """
    bound = evidence.percentile(_MOST) if len(evidence.samples) >= FOR_A_PERCENTILE else evidence.largest
    return rounded_up(bound or evidence.largest)  # of gradients that are mostly zero


def rounded_up(bound: float) -> str:
    """To two digits."""
    unit = 10.0 ** (math.floor(math.log10(bound)) - 1)
    return f"{math.ceil(bound / unit * (1 - 1e-9)) * unit:.2g}"
