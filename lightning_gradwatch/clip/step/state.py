"""What AdaptiveClip remembers for one optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_gradwatch.clip import ClipPolicy, Decision, TensorPolicy
from lightning_gradwatch.clip.policy import copy_of

Policy = ClipPolicy | TensorPolicy


@dataclass
class ClipState:
    """One policy's own instance, and counts of the steps that it saw.

    Args:
        policy: None where nothing is clipped.
        steps: optimizer steps seen with gradients; ``clipped`` and
            ``skipped``: how many of them were.
        successive_skips: skips, or gradients replaced, since the last step taken as it was.
        in_episode: whether the step before was clipped, so that an
            episode of clipping is one event.
        episodes: how many there were.
    """

    policy: Policy | None
    steps: int = 0
    clipped: int = 0
    skipped: int = 0
    successive_skips: int = 0
    in_episode: bool = False
    episodes: int = 0

    @property
    def clip_rate(self) -> float:
        """Share of the steps that were clipped."""
        return self.clipped / max(self.steps, 1)

    def count(self, decision: Decision) -> bool:
        """Count a step taken; true where it begins an episode of clipping."""
        begins = decision.clipped and not self.in_episode
        self.steps += 1
        self.clipped += decision.clipped
        self.episodes += begins
        self.in_episode = decision.clipped
        self.successive_skips = 0
        return begins

    def count_skip(self) -> None:
        """Count a step not taken."""
        self.steps += 1
        self.skipped += 1
        self.successive_skips += 1
        self.in_episode = False

    def count_replaced(self) -> None:
        """Count a step whose gradients were replaced."""
        self.steps += 1
        self.clipped += 1
        self.successive_skips += 1
        self.in_episode = False

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, and the policy's own state."""
        policy = {} if self.policy is None else self.policy.state_dict()
        return {**{name: getattr(self, name) for name in _COUNTS}, "policy": policy}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        for name in _COUNTS:
            setattr(self, name, state[name])
        if self.policy is not None:
            self.policy.load_state_dict(state["policy"])


class OptimizerState:
    """One optimizer's policies and counts.

    Args:
        policy: copied for the parameters that no pattern names; its counts are the optimizer's.
        policies: copied, each for those that its pattern names.

    Attributes:
        evaluates: whether one of its steps made several gradients, each of which was judged, as
            LBFGS has its closure do.
    """

    def __init__(self, policy: Policy, policies: Mapping[str, Policy]) -> None:
        self.rest = ClipState(copy_of(policy))
        self.patterns = {pattern: ClipState(copy_of(policy)) for pattern, policy in policies.items()}
        self.excluded = ClipState(None)
        self.evaluates = False
        self._step: int | None = None

    def begin(self, step: int) -> None:
        """Gradients are about to be judged, in a step with so many before it."""
        self.evaluates |= step == self._step
        self._step = step

    def policies(self) -> list[Policy]:
        """The policies, in an order that stays."""
        states = (self.rest, *self.patterns.values())
        return [state.policy for state in states if state.policy is not None]

    def state_dict(self) -> dict[str, Any]:
        """The state of each."""
        patterns = {pattern: state.state_dict() for pattern, state in self.patterns.items()}
        return {**self.rest.state_dict(), "policies": patterns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.rest.load_state_dict(state)
        for pattern, clip_state in self.patterns.items():
            clip_state.load_state_dict(state["policies"][pattern])


class ClipCounts(NamedTuple):
    """How many steps were clipped and how many were skipped, of all; or gradient evaluations, where
    a step made several.
    """

    clipped: int = 0
    skipped: int = 0
    steps: int = 0
    evaluations: bool = False

    @property
    def each(self) -> str:
        """What is counted."""
        return "gradient evaluation" if self.evaluations else "step"

    def since(self, before: ClipCounts) -> ClipCounts:
        """What has been added since then."""
        clipped, skipped, steps, _ = before
        return ClipCounts(self.clipped - clipped, self.skipped - skipped, self.steps - steps, self.evaluations)


def clip_counts(states: Mapping[int, OptimizerState]) -> dict[int, ClipCounts]:
    """The counts of each optimizer, by its index."""
    return {
        index: ClipCounts(one.rest.clipped, one.rest.skipped, one.rest.steps, one.evaluates)
        for index, one in states.items()
    }


_COUNTS = ("steps", "clipped", "skipped", "successive_skips", "in_episode", "episodes")
