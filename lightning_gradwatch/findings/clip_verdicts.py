"""What is said of clipping: kept while a training goes on, told when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning_gradwatch.audit import ClipEvidence, clipping_event, summarise_clipping
from lightning_gradwatch.events import ONGOING, Event, EventKind, Moment, closes_episode
from lightning_gradwatch.findings.findings import Findings

_LOST = (EventKind.DIVERGED, EventKind.NONFINITE_LOSS, EventKind.NONFINITE_STATE)


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
    known = [replace(one, explosions=_that_go_on(findings.events, one)) for one in evidence]
    findings.take_clipping([summarise_clipping(one) for one in known])


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


def _that_go_on(events: Sequence[Event], evidence: ClipEvidence) -> tuple[int, ...]:
    """Steps at which an explosion through time began, if one is not over, or began in the second
    half of the training; none where the training is lost, since nothing has held it.
    """
    if any(event.kind in _LOST for event in events):
        return ()
    told = [event for event in events if event.kind == EventKind.EXPLODING_HIDDEN_GRADIENT]
    begins = tuple(event.step for event in told if not closes_episode(event.to_record()))
    late = bool(begins) and begins[-1] >= evidence.first_step + evidence.steps / 2
    return begins if late or any(event.action == ONGOING for event in told) else ()
