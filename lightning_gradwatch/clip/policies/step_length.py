"""How long a step may be, in a run in which some were too long."""

from __future__ import annotations

_SHORTEST = 1 / 64  # of the longest step: a run that is held for good must still be able to move
_CALM = 20  # successive steps within the length allowed, after which it is doubled


class StepLength:
    """Each step that is too long halves the share of the longest step that is allowed; each 20
    successive ones that stay within it double it again.

    Attributes:
        share: of the longest step; 1 while nothing was too long.
        in_row: successive steps that were too long.
    """

    def __init__(self) -> None:
        self.share = 1.0
        self.in_row = 0
        self._calm = 0

    def halve(self) -> None:
        """A step was too long."""
        self.share = max(self.share / 2, _SHORTEST)
        self.in_row, self._calm = self.in_row + 1, 0

    def stayed(self, *, within: bool) -> None:
        """A step was not too long; ``within``: not longer than allowed either."""
        self.in_row, self._calm = 0, self._calm + 1 if within else 0
        if self._calm >= _CALM:
            self.share, self._calm = min(1.0, 2 * self.share), 0

    def state_dict(self) -> dict[str, float | int]:
        """Three numbers."""
        return {"share": self.share, "in_row": self.in_row, "calm": self._calm}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Take them up."""
        self.share, self.in_row, self._calm = float(state["share"]), int(state["in_row"]), int(state["calm"])
