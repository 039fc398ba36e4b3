"""What is remembered for an optimizer: counts, and each policy's own state."""

from __future__ import annotations

import pytest

from lightning_gradwatch import Norm, Spike
from lightning_gradwatch.clip import Decision, StepReading
from lightning_gradwatch.clip.step.state import ClipCounts, ClipState, OptimizerState, clip_counts

TAKEN, CLIPPED = Decision(None, 1.0), Decision(1.0, 0.5)


def test_an_episode_begins_once() -> None:
    """Successive clipped steps are one episode; a step that is taken as it is, or skipped, ends it."""
    state = ClipState(Norm(1.0))
    assert [state.count(decision) for decision in (TAKEN, CLIPPED, CLIPPED, TAKEN, CLIPPED)] == [
        False,
        True,
        False,
        False,
        True,
    ]
    state.count_skip()
    assert state.count(CLIPPED)
    assert (state.steps, state.clipped, state.skipped, state.episodes) == (7, 4, 1, 3)


def test_skips_count_while_they_are_successive() -> None:
    """A step that is taken begins the count anew; one whose gradients were replaced goes on with it."""
    state = ClipState(Norm(1.0))
    state.count_skip()
    state.count_replaced()
    assert state.successive_skips == 2
    state.count(TAKEN)
    assert state.successive_skips == 0


def test_a_state_that_is_put_back_decides_the_same() -> None:
    """State → new instance → same next decision, for the rest and for each pattern."""
    state = OptimizerState(Spike(), {"head.*": Spike()})
    for clip in (state.rest, *state.patterns.values()):
        for norm in (1.0, 1.1, 0.9) * 10:
            clip.count(clip.policy.decide(StepReading(norm)))
    again = OptimizerState(Spike(), {"head.*": Spike()})
    again.load_state_dict(state.state_dict())
    assert again.state_dict() == state.state_dict()
    for old, new in zip(state.policies(), again.policies(), strict=True):
        assert old.decide(StepReading(1e6)) == new.decide(StepReading(1e6))
        assert old.decide(StepReading(1e6)).clipped


@pytest.mark.parametrize(
    ("steps", "several"),
    [((), False), ((0, 1, 2), False), ((5, 5), True), ((0, 1, 1, 1, 2), True), ((0, 1, 1, 2, 3, 4), True)],
)
def test_gradients_of_one_step_are_counted_as_evaluations(steps: tuple[int, ...], several: bool) -> None:
    """One step that makes several is enough, and steps that follow change nothing about it."""
    state = OptimizerState(Norm(1.0), {})
    for step in steps:
        state.begin(step)
        state.rest.count(TAKEN)
    counts = clip_counts({0: state})[0]
    assert counts == ClipCounts(0, 0, len(steps), several)
    assert counts.each == ("gradient evaluation" if several else "step")


def test_what_has_been_added_since_is_counted_alone() -> None:
    """As of a fit that goes on from another one's counts."""
    state = OptimizerState(Norm(1.0), {})
    for decision in (TAKEN, CLIPPED):
        state.rest.count(decision)
    before = clip_counts({0: state})[0]
    state.rest.count_skip()
    state.rest.count(CLIPPED)
    assert clip_counts({0: state})[0].since(before) == ClipCounts(1, 1, 2)


def test_policies_are_copied() -> None:
    """Two optimizers that are given one policy do not share its history."""
    policy = Spike()
    one, other = OptimizerState(policy, {}), OptimizerState(policy, {})
    one.rest.policy.decide(StepReading(5.0))
    assert other.state_dict() == OptimizerState(Spike(), {}).state_dict() == OptimizerState(policy, {}).state_dict()
