"""How long a step may be, in a run in which some were too long."""

from __future__ import annotations

_SHORTEST = 1 / 64  # of the longest step: a run that is held for good must still be able to move
_CALM = 20  # steps: so many successive ones within the length allowed double it; explosions further apart are single


class StepLength:
    """Each explosion within 20 steps of another halves the share of the longest step that is
    allowed; each 20 successive steps that stay within it double it again.

    Attributes:
        share: of the longest step; 1 while nothing explodes again and again.
        in_row: successive explosions.
    """

    def __init__(self) -> None:
        self.share = 1.0
        self.in_row = 0
        self._calm = 0
        self._since = _CALM  # steps since an explosion, up to that many

    def exploded(self) -> None:
        """A step exploded."""
        if self._since < _CALM:
            self.share = max(self.share / 2, _SHORTEST)
        self.in_row, self._calm, self._since = self.in_row + 1, 0, 0

    def stayed(self, *, within: bool) -> None:
        """A step did not explode; ``within``: it was not longer than allowed either."""
        self.in_row, self._calm = 0, self._calm + 1 if within else 0
        self._since = min(self._since + 1, _CALM)
        if self._calm >= _CALM:
            self.share, self._calm = min(1.0, 2 * self.share), 0

    def state_dict(self) -> dict[str, float | int]:
        """Four numbers."""
        return {"share": self.share, "in_row": self.in_row, "calm": self._calm, "since": self._since}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Take them up."""
        self.share, self.in_row = float(state["share"]), int(state["in_row"])
        self._calm, self._since = int(state["calm"]), int(state["since"])
