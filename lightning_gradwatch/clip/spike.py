"""The default: clip on explosion, and only then."""

from __future__ import annotations

import math
from typing import Any

from lightning_gradwatch.clip.history import History
from lightning_gradwatch.clip.policy import ArgumentsMixin, Decision, ratio, require, usable

_SETTLING = 10  # steps until median and deviation are trusted
_FIRST_FACTOR = 12.0  # the bound until then, in medians
_CEILING = 10.0  # the bound of the very first steps, in parameter norms ...
_CEILING_LEVEL = 0.1  # ... and what a step beyond it is brought back to
_FLOOR = 0.01  # under this many parameter norms, no first step is an explosion
_LONG_FACTOR = 3.0  # medians that make an explosion of a step that is too long
_STEPS_BETWEEN = 10  # steps between two looks at the parameters
_EXTREME = 100.0  # medians from which on an explosion says nothing about ordinary steps
_RECOVERY = 20  # ordinary steps after one that was too long in which the run is not trusted: ...
_RECOVERY_FACTOR = 4.0  # ... the bound then, in medians
_PATIENCE = 20  # successive clipped steps that may turn out to be a new level
_STEADY = 4.0  # they are one if max/min of their norms stays under this ...
_RISE = 1.25  # ... the median of their later half exceeds the earlier one's by no more than this ...
_SHIFT = 4.0  # ... and then the level rises by this factor at most


class Spike(ArgumentsMixin):
    """Leave ordinary steps untouched; bring an exploding one back to the ordinary level.

    With m the median of the last ``window`` ordinary norms and s = 1.4826·median|log N_i − log N_{i−1}|/√2 their scatter, of which a
    trend is no part, a step is exploding if log N > log m + min(max(``deviations``·s, log ``least_factor``), log ``most_factor``). It is
    scaled to m, g ← g·m/N. All of it is in terms of ratios, so the decision does not depend on the loss's scale. Our own; medians for
    deviations as in Leys et al. (2013), "Detecting outliers".

    How far out of the ordinary a norm must be depends on the harm that it does. Where the optimizer goes along the gradient (SGD), the
    length of the step is known: one that would move the parameters by more than ``longest_step`` of their own norm is
    exploding from 3 m on, and is brought back to that length at least. Such a run is not trusted for 20 ordinary steps: the bound is
    4 m, and no norm enters the history as more than m, so that instability cannot raise the bound. Other explosions up to 100 m
    enter as the bound, larger ones not at all.

    From the first step on: until 10 norms are known, the bound is 12 m, but at most 10 and at least 0.01 norms of the
    parameters; a norm beyond the 10 is scaled to 0.1 of them. The very first step of SGD may be as long as the parameters.

    A permanent change of level (another loss, another batch size) is not an explosion. Where 20 clipped steps in a row
    stay within a factor of 4 and do not rise, the level is raised, fourfold at most, and again after 20 more. A run that
    explodes does not stay within these bounds, or falls out of them when the level rises.

    What it was measured on is in the documentation, *Clipping compared*.

    Args:
        deviations: how many spreads make an explosion.
        least_factor: a norm under this many medians is ordinary, however narrow the spread.
        most_factor: a norm over this many medians is exploding, however wide the spread.
        window: how many ordinary norms are remembered, in steps.
        longest_step: length of a step that is too long, in norms of the parameters.
    """

    _arguments = ("deviations", "least_factor", "most_factor", "window", "longest_step")
    wants_step_size = True

    def __init__(
        self,
        deviations: float = 5.0,
        least_factor: float = 30.0,
        most_factor: float = 100.0,
        window: int = 20,
        longest_step: float = 0.2,
    ) -> None:
        require(deviations > 0, self, "deviations", "> 0", deviations, "Leave it at 5.")
        require(least_factor > 1, self, "least_factor", "> 1", least_factor, "Leave it at 30; lower clips sooner.")
        require(
            math.isfinite(most_factor) and most_factor >= least_factor,
            self,
            "most_factor",
            f"finite and ≥ least_factor ({least_factor})",
            most_factor,
            "Leave it at 100.",
        )
        require(window >= _PATIENCE, self, "window", f"≥ {_PATIENCE}", window, "Leave it at 20.")
        require(longest_step > 0, self, "longest_step", "> 0", longest_step, "Leave it at 0.2; infinity is no bound.")
        self.deviations = float(deviations)
        self.least_factor = float(least_factor)
        self.most_factor = float(most_factor)
        self.window = int(window)
        self.longest_step = float(longest_step)
        self._history = History(self.window)
        self._held: list[float] = []
        self._recovery = 0  # steps of it that are left
        self._size: float | None = (
            None  # the parameters' norm when last seen, while a step's length can be told from it
        )
        self._age = 0  # steps since then

    @property
    def wants_parameter_norm(self) -> bool:
        """True for the first steps, until the norms speak for themselves; then at times, where a step's length is known."""
        return self._settling or (self._size is not None and self._age >= _STEPS_BETWEEN)

    @property
    def _settling(self) -> bool:
        return len(self._history) < _SETTLING

    def decide(self, norm: float, *, parameter_norm: float | None = None, step_size: float | None = None) -> Decision:
        """Hold the norm against the ordinary ones.

        Args:
            step_size: how far the optimizer moves the parameters per unit of the norm; None where it does not go along the gradient.
        """
        longest = self._longest(parameter_norm, step_size)
        bound, level = self._bound(parameter_norm, longest)
        if not usable(norm):
            return Decision(bound, 1.0)
        if bound is None or norm <= bound:
            self._take(norm, level)
            return Decision(bound, 1.0)
        if not len(self._history):
            self._history.append(level)
        if norm > longest:
            self._recovery = _RECOVERY
        elif norm <= _EXTREME * level:
            self._history.append(bound)
        self._hold(norm)
        return Decision(bound, ratio(level, norm))

    def state_dict(self) -> dict[str, Any]:
        """The ordinary norms, oldest first, those of the present episode of clipping, and the parameters' norm."""
        return {
            "history": self._history.to_list(),
            "held": list(self._held),
            "recovery": self._recovery,
            "size": self._size,
            "age": self._age,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self._history = History(self.window, state_dict["history"])
        self._held = list(state_dict["held"])
        self._recovery = state_dict["recovery"]
        self._size, self._age = state_dict["size"], state_dict["age"]

    def _longest(self, parameter_norm: float | None, step_size: float | None) -> float:
        """The norm from which on a step is too long; inf where that is not known."""
        if parameter_norm is not None:
            self._size, self._age = (parameter_norm if step_size and usable(parameter_norm) else None), 0
        self._age += 1
        return self.longest_step * self._size / step_size if self._size is not None and step_size else math.inf

    def _bound(self, parameter_norm: float | None, longest: float) -> tuple[float | None, float]:
        """The largest ordinary norm (None: anything goes), and the level that a larger one is brought back to."""
        bound, level = self._first(parameter_norm) if self._settling else self._usual()
        if bound > longest:
            if not len(self._history):
                bound = min(bound, longest / self.longest_step)
            else:
                bound = max(_LONG_FACTOR * self._history.median(), longest)
        return (bound if bound < math.inf else None), min(level, longest)

    def _usual(self) -> tuple[float, float]:
        level = self._history.median()
        spread = 1.4826 / math.sqrt(2) * self._history.log_jump()
        reach = min(max(self.deviations * spread, math.log(self.least_factor)), math.log(self.most_factor))
        bound = level * math.exp(reach)
        return (min(bound, level * _RECOVERY_FACTOR) if self._recovery else bound), level

    def _first(self, parameter_norm: float | None) -> tuple[float, float]:
        """Of the first steps, from the first norms and the parameters' own."""
        bound, level = math.inf, math.inf
        if len(self._history):
            level = self._history.median()
            bound = level * (_RECOVERY_FACTOR if self._recovery else _FIRST_FACTOR)
        if parameter_norm is not None and usable(parameter_norm):
            bound = max(bound, _FLOOR * parameter_norm)
            if bound > _CEILING * parameter_norm:
                bound, level = _CEILING * parameter_norm, min(level, _CEILING_LEVEL * parameter_norm)
        return bound, level

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
