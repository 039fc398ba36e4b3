"""How long a step may be, in a run in which some were too long."""

from __future__ import annotations

SHORTEST = 1 / 128  # of the longest step: a run that is held for good must still be able to move


class StepLength:
    """Each explosion within ``window`` steps of another halves the share of the longest step that
    is allowed, and so do ``window`` successive steps that are longer; as many that stay within it
    double it again.

    Args:
        window: in steps.

    Attributes:
        share: of the longest step; 1 while nothing explodes again and again.
        in_row: successive explosions.
    """

    def __init__(self, window: int) -> None:
        self.share = 1.0
        self.in_row = 0
        self._window = window
        self._calm = 0  # successive steps within the length allowed; negative: beyond it
        self._since = window  # steps since an explosion, up to that many

    def exploded(self) -> None:
        """A step exploded."""
        if self._since < self._window:
            self.share = max(self.share / 2, SHORTEST)
        self.in_row, self._calm, self._since = self.in_row + 1, 0, 0

    def stayed(self, *, within: bool) -> None:
        """A step did not explode; ``within``: it was not longer than allowed either."""
        self.in_row, self._since = 0, min(self._since + 1, self._window)
        self._calm = max(self._calm, 0) + 1 if within else min(self._calm, 0) - 1
        if abs(self._calm) >= self._window:
            self.share = min(1.0, 2 * self.share) if within else max(self.share / 2, SHORTEST)
            self._calm = 0

    def state_dict(self) -> dict[str, float | int]:
        """Four numbers."""
        return {"share": self.share, "in_row": self.in_row, "calm": self._calm, "since": self._since}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Take them up."""
        self.share, self.in_row = float(state["share"]), int(state["in_row"])
        self._calm, self._since = int(state["calm"]), int(state["since"])
