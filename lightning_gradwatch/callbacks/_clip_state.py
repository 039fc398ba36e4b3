"""What AdaptiveClip remembers for one optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_gradwatch.clip import ClipPolicy, Decision


@dataclass
class ClipState:
    """One optimizer's policy and counts.

    Args:
        policy: its own instance.
        steps: optimizer steps seen with gradients; ``clipped`` and ``skipped``: how many of them were.
        successive_skips: skips since the last step taken.
        in_episode: whether the step before was clipped, so that an episode of clipping is one event.
        episodes: how many there were.
    """

    policy: ClipPolicy
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
        clipped = decision.coefficient < 1.0
        begins = clipped and not self.in_episode
        self.steps += 1
        self.clipped += clipped
        self.episodes += begins
        self.in_episode = clipped
        self.successive_skips = 0
        return begins

    def count_skip(self) -> None:
        """Count a step not taken."""
        self.steps += 1
        self.skipped += 1
        self.successive_skips += 1
        self.in_episode = False

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, and the policy's own state."""
        return {**{name: getattr(self, name) for name in _COUNTS}, "policy": self.policy.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        for name in _COUNTS:
            setattr(self, name, state[name])
        self.policy.load_state_dict(state["policy"])


_COUNTS = ("steps", "clipped", "skipped", "successive_skips", "in_episode", "episodes")
