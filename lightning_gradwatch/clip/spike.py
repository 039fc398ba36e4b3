"""The default: clip on explosion, and only then."""

from __future__ import annotations

import math
from typing import Any

from lightning_gradwatch.clip.history import History
from lightning_gradwatch.clip.policy import ArgumentsMixin, Decision, ratio, require, usable

_SETTLING = 10  # steps until median and deviation are trusted
_FIRST_FACTOR = 8.0  # the bound until then, in medians
_CEILING = 10.0  # the bound of the very first steps, in parameter norms ...
_CEILING_LEVEL = 0.1  # ... and what a step beyond it is brought back to
_FLOOR = 0.01  # under this many parameter norms, no first step is an explosion
_RECOVERY = 20  # steps after a clipped one in which the run is not trusted: ...
_RECOVERY_FACTOR = 4.0  # ... the bound then, in medians
_PATIENCE = 20  # successive clipped steps that may turn out to be a new level
_STEADY = 4.0  # they are one if max/min of their norms stays under this ...
_RISE = 1.25  # ... the median of their later half exceeds the earlier one's by no more than this ...
_SHIFT = 4.0  # ... and then the level rises by this factor at most


class Spike(ArgumentsMixin):
    """Leave ordinary steps untouched; bring an exploding one back to the ordinary level.

    With m the median of the last ``window`` ordinary norms and s = 1.4826·median|log N_i − log m| their spread, a step
    is exploding if log N > log m + min(max(``deviations``·s, log ``least_factor``), log ``most_factor``). It is scaled
    to m, g ← g·m/N, and enters no history. All of it is in terms of ratios, so the decision does not depend on the
    loss's scale. Our own; median and MAD as in Leys et al. (2013), "Detecting outliers".

    From the first step on: until 10 norms are known, the bound is 8 m, but at most 10 and at least 0.01 norms of the
    parameters; a step beyond the 10 is scaled to 0.1 of them.

    A run that has exploded is not trusted for 20 ordinary steps: the bound is 4 m, and no norm enters the history as more
    than m, so that instability cannot raise the bound.

    A permanent change of level (another loss, another batch size) is not an explosion. Where 20 clipped steps in a row
    stay within a factor of 4 and do not rise, the level is raised, fourfold at most, and again after 20 more. A run that
    explodes does not stay within these bounds, or falls out of them when the level rises.

    Measured (``benchmarks/spike_constants.py healthy``): on 40 healthy runs of 500 steps (character language models with
    LSTM, GRU and RNN, and an MLP; Adam and SGD; batches of 1 to 32; with and without learning-rate warm-up) the largest
    norm was 9.2 medians, and none of 20,000 steps was clipped; within the first 10 steps it was 2.95 medians. ReLU
    networks on a repeating sequence (``unstable``), SGD, spectral radius and rate (1.6, 0.3), (1.3, 1), (1, 2) and (1, 3),
    four seeds each, 120 steps: 14 of 16 end in NaN without clipping. With it none does, and all end under chance (2.8):
    at (1, 3), where ordinary steps are too long already, at 0.0004 to 0.66 with 16 to 59 steps clipped; elsewhere at
    0.0015 to 0.54 with 1 to 13 clipped. Scaling repeated explosions to less than m did worse.

    Args:
        deviations: how many spreads make an explosion.
        least_factor: a norm under this many medians is ordinary, however narrow the spread.
        most_factor: a norm over this many medians is exploding, however wide the spread.
        window: how many ordinary norms are remembered, in steps.
    """

    _arguments = ("deviations", "least_factor", "most_factor", "window")

    def __init__(
        self, deviations: float = 5.0, least_factor: float = 12.0, most_factor: float = 50.0, window: int = 100
    ) -> None:
        require(deviations > 0, self, "deviations", "> 0", deviations, "Leave it at 5.")
        require(least_factor > 1, self, "least_factor", "> 1", least_factor, "Leave it at 12; lower clips sooner.")
        require(
            math.isfinite(most_factor) and most_factor >= least_factor,
            self,
            "most_factor",
            f"finite and ≥ least_factor ({least_factor})",
            most_factor,
            "Leave it at 50.",
        )
        require(window >= _PATIENCE, self, "window", f"≥ {_PATIENCE}", window, "Leave it at 100.")
        self.deviations = float(deviations)
        self.least_factor = float(least_factor)
        self.most_factor = float(most_factor)
        self.window = int(window)
        self._history = History(self.window)
        self._held: list[float] = []
        self._recovery = 0  # steps of it that are left

    @property
    def wants_parameter_norm(self) -> bool:
        """True for the first steps, until the norms speak for themselves."""
        return len(self._history) < _SETTLING

    def decide(self, norm: float, *, parameter_norm: float | None = None) -> Decision:
        """Hold the norm against the ordinary ones."""
        bound, level = self._bound(parameter_norm)
        if not usable(norm):
            return Decision(bound, 1.0)
        if bound is None or norm <= bound:
            self._take(norm, level)
            return Decision(bound, 1.0)
        if not len(self._history):
            self._history.append(level)
        self._recovery = _RECOVERY
        self._hold(norm)
        return Decision(bound, ratio(level, norm))

    def state_dict(self) -> dict[str, Any]:
        """The ordinary norms, oldest first, and those of the present episode of clipping."""
        return {
            "history": self._history.to_list(),
            "held": list(self._held),
            "recovery": self._recovery,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self._history = History(self.window, state_dict["history"])
        self._held = list(state_dict["held"])
        self._recovery = state_dict["recovery"]

    def _bound(self, parameter_norm: float | None) -> tuple[float | None, float]:
        """The largest ordinary norm (None: anything goes), and the level that a larger one is brought back to."""
        if not self.wants_parameter_norm:
            level = self._history.median()
            spread = 1.4826 * self._history.log_mad(level)
            reach = min(max(self.deviations * spread, math.log(self.least_factor)), math.log(self.most_factor))
            bound = level * math.exp(reach)
            return (min(bound, level * _RECOVERY_FACTOR) if self._recovery else bound), level
        bound, level = math.inf, math.inf
        if len(self._history):
            level = self._history.median()
            bound = level * (_RECOVERY_FACTOR if self._recovery else _FIRST_FACTOR)
        if parameter_norm is not None and usable(parameter_norm):
            bound = max(bound, _FLOOR * parameter_norm)
            if bound > _CEILING * parameter_norm:
                bound, level = _CEILING * parameter_norm, min(level, _CEILING_LEVEL * parameter_norm)
        return (bound, level) if bound < math.inf else (None, level)

    def _take(self, norm: float, level: float) -> None:
        """Remember an ordinary norm; in a recovery as the level at most, so that instability cannot raise the bound."""
        self._held.clear()
        if self._recovery:
            self._recovery -= 1
            norm = min(norm, level)
        self._history.append(norm)

    def _hold(self, norm: float) -> None:
        """Remember a clipped norm; take a steady row of them for a new level."""
        self._held.append(norm)
        if len(self._held) < _PATIENCE:
            return
        held, self._held = self._held, []
        earlier, later = History(None, held[: _PATIENCE // 2]), History(None, held[_PATIENCE // 2 :])
        if max(held) <= _STEADY * min(held) and later.median() <= _RISE * earlier.median():
            raised = min(1.0, _SHIFT * self._history.median() / History(None, held).median())
            self._history = History(self.window, [norm * raised for norm in held])
            self._recovery = 0
