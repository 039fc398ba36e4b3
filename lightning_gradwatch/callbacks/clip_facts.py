"""What a callback that clips tells to the others of a fit."""

from __future__ import annotations

from lightning_gradwatch.clip import ClipPolicy, TensorPolicy
from lightning_gradwatch.clip.step.groups import PolicyGroups
from lightning_gradwatch.clip.step.state import ClipCounts, OptimizerState, clip_counts


class ClipFacts:
    """Of the present fit, or of the last one."""

    _groups: PolicyGroups
    _states: dict[int, OptimizerState]
    _acting: bool
    _deferring: bool

    @property
    def clips_by(self) -> str:
        """In words; empty while it clips nothing."""
        return f"AdaptiveClip ({self._groups.rule})" if self._acting and not self._deferring else ""

    def clip_counts(self) -> dict[int, ClipCounts]:
        """Of each optimizer, by its index, how many steps were clipped and skipped, of how many."""
        return clip_counts(self._states)

    def policies_in_use(self) -> list[list[ClipPolicy | TensorPolicy]]:
        """Of each optimizer the policies that hold a state of this fit."""
        return [self._states[index].policies() for index in sorted(self._states)]
