"""The judges of the truth campaign: what is true passes, and every sort of falsehood is found."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from benchmarks.campaigns.truth import campaign, healthy, reach
from benchmarks.campaigns.truth.case import Told, Truth, train
from benchmarks.campaigns.truth.sentences import MISS, NUMBER, REMEDY, SAID, UNREAD, VERDICT, judged
from lightning_gradwatch import EventKind

Run = tuple[Truth, Told]


@pytest.fixture(scope="module")
def vanishing() -> Run:
    campaign.quietly()
    return train(reach.vanishing(Random(1)))


@pytest.fixture(scope="module")
def well() -> Run:
    campaign.quietly()
    return train(healthy.many_to_one(Random(2)))


def sorts(run: Run, told: Told) -> set[str]:
    """Of the faults found in what is told of a run."""
    return {fault.sort for fault in judged(run[0], told, SAID, campaign.misses).faults}


def altered(run: Run, old: str, new: str) -> Told:
    """What was told of a run, with other words in its lines."""
    told = run[1]
    assert any(old in line for line in told.lines), told.lines
    return replace(told, lines=[line.replace(old, new) for line in told.lines])


def test_what_was_told_of_these_runs_is_true(vanishing: Run, well: Run) -> None:
    """No judge finds anything in a run that vanishes or in a healthy one, and each has several sentences."""
    for run in (vanishing, well):
        assert sorts(run, run[1]) == set()
        assert judged(*run, SAID, campaign.misses).sentences >= 5


def test_a_green_word_over_a_gradient_that_vanishes_is_false(vanishing: Run) -> None:
    """``healthy`` instead of ``vanishing`` is a false verdict."""
    assert VERDICT in sorts(vanishing, altered(vanishing, ": vanishing.", ": healthy."))


def test_a_red_word_over_a_healthy_run_is_false(well: Run) -> None:
    """``vanishing`` or ``exploding`` instead of ``healthy`` is a false verdict."""
    for word in ("vanishing", "exploding", "not finite", "barely reached", "saturated", "diverged"):
        assert VERDICT in sorts(well, altered(well, ": healthy.", f": {word}."))


def test_a_number_that_is_off_by_one_is_false(well: Run) -> None:
    """A sequence of one timestep more than there are is a false number."""
    timesteps = next(facts[0].timesteps for facts in well[0].at(0).values())
    assert NUMBER in sorts(
        well, altered(well, f"all of the {timesteps} timesteps", f"all of the {timesteps + 1} timesteps")
    )


def test_a_horizon_and_a_rate_that_are_off_are_false(vanishing: Run) -> None:
    """Neither a horizon that is one too long nor another growth rate passes."""
    (horizon, _), *_ = (facts[0].horizon for facts in vanishing[0].at(vanishing[1].sampled[-1]).values())
    words = f"falls under 1 % after {horizon:.0f} of"
    assert NUMBER in sorts(vanishing, altered(vanishing, words, f"falls under 1 % after {horizon + 1:.0f} of"))
    assert NUMBER in sorts(vanishing, altered(vanishing, "growth rate -", "growth rate -3"))


def test_advice_against_something_else_does_not_fit(vanishing: Run) -> None:
    """A remedy for numbers that are not finite is no help against a gradient that vanishes."""
    told = vanishing[1]
    events = [replace(event, remedy=EventKind.NONFINITE_INPUT.remedy) for event in told.events]
    assert REMEDY in sorts(vanishing, replace(told, events=events))


def test_silence_over_a_fault_is_a_miss(vanishing: Run) -> None:
    """A run whose gradient vanishes and of which nothing is told is missed."""
    assert MISS in sorts(vanishing, replace(vanishing[1], events=[]))


def test_new_words_need_a_judge(well: Run) -> None:
    """A sentence that no judge knows is counted, whatever stands around it."""
    assert sorts(well, altered(well, "No events.", "No events. All is well in Denmark.")) == {UNREAD}
