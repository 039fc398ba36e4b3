"""What is said of clipping: kept while a training goes on, told when it ends."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.audit import ClipEvidence, clipping_event, summarise_clipping
from lightning_gradwatch.events import Moment
from lightning_gradwatch.findings.findings import Findings


class ClipNews:
    """Of one training: when there is anything new, so that a run which is killed leaves what was
    known of its clipping.
    """

    def __init__(self) -> None:
        self._written = 0

    def __call__(self, samples: int) -> bool:
        """Whether so many samples are worth another record: run.json is written anew for it, so
        that of the first ones each is, and then those that are a tenth more.
        """
        if samples <= 1.1 * self._written:
            return False
        self._written = samples
        return True


def keep_clipping(findings: Findings, evidence: Sequence[ClipEvidence]) -> None:
    """Record what became of the gradients between backward pass and step so far."""
    findings.take_clipping([summarise_clipping(one) for one in evidence])


def tell_clipping(findings: Findings, evidence: Sequence[ClipEvidence], moment: Moment, *, write: bool) -> None:
    """Record it for good, and tell as events what wants a look.

    Args:
        write: whether it is this rank that writes them: where gradients are common they are the
            same on all.
    """
    keep_clipping(findings, evidence)
    for one in findings.clipping:
        event = clipping_event(one, moment, several=len(findings.clipping) > 1)
        if event is not None:
            findings.sink.take(event, write=write)
