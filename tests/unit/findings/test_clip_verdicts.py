"""Which explosions through time the advice on clipping hears of."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from lightning_gradwatch import Event, EventKind
from lightning_gradwatch.audit import ClipEvidence, Clippers, ClippingSummary, ClipSample, Counted
from lightning_gradwatch.events import ENDED, ONGOING
from lightning_gradwatch.findings.clip_verdicts import keep_clipping

STEPS = 24


def explosion(step: int, action: str | None = None) -> Event:
    return Event(EventKind.EXPLODING_HIDDEN_GRADIENT, step, value=1e4, threshold=1e3, action=action)


def advice(*events: Event) -> str:
    """Where a bound cuts every step of a training with these events."""
    kept: list[ClippingSummary] = []
    findings = SimpleNamespace(events=list(events), take_clipping=kept.extend)
    samples = [ClipSample(step, 3.0 + step % 2, 1.0, True) for step in range(STEPS)]
    keep_clipping(findings, [ClipEvidence(0, Clippers(bound=1.0), samples, STEPS, counted=Counted(STEPS, STEPS))])
    return kept[0].remedy


@pytest.mark.parametrize(
    "events", [[explosion(20)], [explosion(1), explosion(20)], [explosion(1), explosion(23, ONGOING)]]
)
def test_one_that_goes_on_or_came_late_is_told(events: list[Event]) -> None:
    """Then the bound is not to be raised."""
    assert "Leave the bound where it is" in advice(*events)


@pytest.mark.parametrize("events", [[], [explosion(1)], [explosion(1), explosion(5, ENDED)]])
def test_one_that_is_over_is_not(events: list[Event]) -> None:
    """What was in the first half has passed."""
    assert "Leave the bound" not in advice(*events)


@pytest.mark.parametrize("kind", [EventKind.DIVERGED, EventKind.NONFINITE_LOSS, EventKind.NONFINITE_STATE])
def test_of_a_training_that_is_lost_it_is_not_said_that_limiting_is_what_it_needs(kind: EventKind) -> None:
    """Nothing has held it."""
    assert "Leave the bound" not in advice(explosion(20), Event(kind, 22, value=math.nan, threshold=1.0))
