"""The default: clip on explosion, and only then."""

from __future__ import annotations

import functools
import math
from typing import Any

from lightning_gradwatch import arguments
from lightning_gradwatch.clip.history import History
from lightning_gradwatch.clip.policies.ordinary_growth import OrdinaryGrowth
from lightning_gradwatch.clip.policies.reasons import (
    GREW_THROUGH_TIME,
    OUT_OF_THE_ORDINARY,
    SHORTENED,
    TOO_LONG,
    cause_of,
)
from lightning_gradwatch.clip.policies.step_length import StepLength
from lightning_gradwatch.clip.policy import ArgumentsMixin, Decision, StepReading, ratio, usable

_SETTLING = 10  # steps until median and maximum are trusted
_FIRST_FACTOR = 30.0  # the bound until then, in the second largest norm so far ...
_FIRST_FLOOR = 0.1  # ... but at least so long a step, in lengths of the parameters; where the length is not known, in parameter norms ...
_FIRST_LENGTH = 1.0  # ... and the very first at most so long a one; ...
_FIRST_NORM = 100.0  # ... where the length is not known, so many parameter norms, ...
_FIRST_ELASTICITY = (
    100.0  # ... or what makes the loss change by so many times itself when the parameters change by their own length
)
_FIRST_LEVEL = 0.1  # what a step beyond the ceiling is brought back to
_LARGE = 3.0  # medians under which no step is too long, and nothing is shortened for being large
_EXPLAINED = 10.0  # times: so much more norm is ordinary, where the loss is as much larger
_GROWN_BOUND = 10.0  # medians that a gradient may have that grew through time
_STEPS_BETWEEN = 10  # steps between two looks at the parameters
_LEFT_OVER = 0.1  # medians that an explosion is brought back to where the optimizer keeps it in its second moments
_MEMORY = 1000  # steps in which a norm is remembered to have been taken
_RANK = 3  # so many norms as large make it a part of the run; under three times that, nothing explodes
_WARY = 1000  # steps after an explosion in which large steps are shortened
_PATIENCE = 20  # successive exploding steps that may turn out to be a new level, ...
_STEADY = 10.0  # ... if the fourth and the seventeenth in order of size differ by less than this factor, ...
_RISE = 1.25  # ... the median of their later half exceeds the earlier one's by no more than this ...
_SHIFT = 4.0  # ... and then the level rises by this factor at most


class Spike(ArgumentsMixin):
    """Leave ordinary steps untouched; bring an exploding one back to the ordinary level.

    With m the median and p the largest of the last ``window`` ordinary norms, and q the third
    largest of all that the optimizer took in the last 1000 steps, a step explodes for one of three
    reasons, and the event says which.

    **Its norm is out of the ordinary**: over 3 q, and over ``least_factor``·m and ``peak_factor``·p
    or over ``most_factor``·m. Where what the loss sends to the recurrent modules is larger
    than its own median by a factor, the norm may be so too, up to tenfold: a rare class, a sum, a
    weight. Such a norm is remembered as it was, so that the third of its kind is part of the run.

    **The step is too long**: SGD would move the parameters by more than ``longest_step`` of their
    own norm, momentum included, and the norm is over 3 m.

    **It grew through time** (SGD): the recurrent weights' gradient, per unit of what the loss sends
    to their module, is over 30 times the least median of it so far. Then the norm may be 10 m (more
    where the loss sends over ten times as much), and m is not learned from it: a level that rises
    because the gradient grows through time is no new level of the loss.

    An exploding step is scaled to m, g ← g·m/N, and to m/10 where the optimizer does not go along
    the gradient (Adam), since what is left of it stays in the second moments for a thousand steps.
    After the third in a row SGD takes steps of the length that is allowed, to get away from there:
    each explosion within 20 steps of another halves that length, and each 20 successive steps
    within it double it, up to ``longest_step`` again. For 1000 steps after an explosion none is
    over 3 m and q, save where it grew through time. A run in which none of the three has happened
    is never touched.

    From the first step on: until 10 norms are known, the bound is 30 times the second largest so
    far, but at least 0.1 norms of the parameters; under SGD at least a step of a tenth of the
    parameters' length. The very first step may be as long as the parameters under SGD, and is
    brought back to a tenth of that. Of another optimizer it may have a norm of 100 times theirs;
    or, however large, one that fits the loss: N·‖w‖ ≤ 100·abs(L), since the loss may be a sum and
    Adam takes no notice of its scale. One beyond both is brought back to a tenth of the parameters'
    norm, and remembered as it was.

    Where 20 exploding steps in a row scatter by less than a decade and do not rise, the level is
    raised, fourfold at most. All is in ratios: the loss's scale does not matter. Our own; the
    median rather than the mean as in Leys et al. (2013), "Detecting outliers". What it was measured
    on is in the documentation, *Clipping compared*.

    Args:
        least_factor: a norm under this many medians is ordinary.
        peak_factor: one under this many times the largest that is remembered is, too ...
        most_factor: ... unless it is over this many medians.
        window: how many ordinary norms are remembered, in steps.
        longest_step: length of a step that is too long, in norms of the parameters.
    """

    _arguments = ("least_factor", "peak_factor", "most_factor", "window", "longest_step")
    wants_step_size = True
    wants_growth = True

    @property
    def wants_loss(self) -> bool:
        """True at the very first step, whose gradient is held against the loss."""
        return not len(self._history)

    def __init__(
        self,
        least_factor: float = 30.0,
        peak_factor: float = 8.0,
        most_factor: float = 100.0,
        window: int = 20,
        longest_step: float = 0.2,
    ) -> None:
        number = functools.partial(arguments.number, owner=self)
        sooner = "lower clips sooner."
        self.least_factor = number("least_factor", least_factor, lambda f: f > 1, "> 1", f"Leave it at 30; {sooner}")
        self.peak_factor = number("peak_factor", peak_factor, lambda f: f >= 1, "≥ 1", f"Leave it at 8; {sooner}")
        rule = f"finite and ≥ least_factor ({least_factor})"
        least = self.least_factor
        self.most_factor = number("most_factor", most_factor, lambda f: least <= f < math.inf, rule, "Leave it at 100.")
        self.window = arguments.whole("window", window, "Leave it at 20.", least=_PATIENCE, owner=self)
        remedy = "Leave it at 0.2; infinity is no bound."
        self.longest_step = number("longest_step", longest_step, lambda f: f > 0, "> 0", remedy)
        self._history = History(self.window)
        self._memory = History(_MEMORY)
        self._causes = History(self.window)  # what the loss sends
        self._growth = OrdinaryGrowth()
        self._length = StepLength()
        self._held: list[float] = []
        self._wary = 0  # steps that are left of the time after an explosion
        self._size: float | None = (
            None  # the parameters' norm when last seen, where a step's length can be told from it
        )
        self._age = 0  # steps since then

    @property
    def wants_parameter_norm(self) -> bool:
        """True for the first steps, until the norms speak for themselves; then at times,
        where a step's length is known.
        """
        return self._settling or (self._size is not None and self._age >= _STEPS_BETWEEN)

    @property
    def _settling(self) -> bool:
        return len(self._history) < _SETTLING

    def decide(self, reading: StepReading) -> Decision:
        """Hold the norm against the ordinary ones."""
        norm, along = reading.norm, reading.step_size is not None
        longest = self._longest(reading)
        grown = self._growth.exceeded(reading.growth) and along and not self._settling
        bounds, level = self._bounds(reading, longest, grown=grown)
        threshold = min(bounds.values())
        if not usable(norm):
            return Decision(threshold if threshold < math.inf else None, 1.0)
        self._wary = max(self._wary - 1, 0)
        reason = next((reason for reason, bound in bounds.items() if norm > bound), "")
        if reason in (OUT_OF_THE_ORDINARY, TOO_LONG):
            target = self._explode(reading, reason, level, longest)
            threshold = max(threshold, min(target, norm))
        else:
            target = min(norm, threshold)
            self._length.stayed(within=norm <= threshold)
            self._take(reading, target, grown=grown)
        clipped = target < norm
        return Decision(
            threshold if threshold < math.inf else None,
            ratio(target, norm) if clipped else 1.0,
            reason=reason if clipped else "",
        )

    def state_dict(self) -> dict[str, Any]:
        """Ordinary norms and those taken, oldest first, their causes, growths, the length allowed,
        the row of explosions, what is left of the mistrust, the parameters' norm.
        """
        return {
            "history": self._history.to_list(),
            "memory": self._memory.to_list(),
            "causes": self._causes.to_list(),
            "growth": self._growth.state_dict(),
            "length": self._length.state_dict(),
            "held": list(self._held),
            "wary": self._wary,
            "size": self._size,
            "age": self._age,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up; what an earlier version did not write begins afresh."""
        self._history = History(self.window, state_dict["history"])
        self._memory = History(_MEMORY, state_dict["memory"])
        self._causes = History(self.window, state_dict.get("causes", ()))
        for part, key in ((self._growth, "growth"), (self._length, "length")):
            if key in state_dict:
                part.load_state_dict(state_dict[key])
        self._held, self._wary = list(state_dict["held"]), state_dict["wary"]
        self._size, self._age = state_dict["size"], state_dict["age"]

    def _longest(self, reading: StepReading) -> float:
        """The norm from which on a step is too long; inf where that is not known."""
        if reading.parameter_norm is not None:
            known = reading.step_size is not None and usable(reading.parameter_norm)
            self._size, self._age = (reading.parameter_norm if known else None), 0
        self._age += 1
        if self._size is None or not reading.step_size:
            return math.inf
        along = 1.0 - reading.momentum if not self._settling else 1.0
        return self.longest_step * self._size * max(along, 0.0) / reading.step_size

    def _bounds(self, reading: StepReading, longest: float, *, grown: bool) -> tuple[dict[str, float], float]:
        """For each reason the largest norm that is left as it is, and the ordinary norm."""
        settling, known = self._settling, len(self._history) > 0
        bound, level = self._first(reading) if settling else self._usual()
        bound *= self._explained(reading)
        part_of_the_run = self._memory.largest(_RANK) if len(self._memory) else 0.0
        bounds = {OUT_OF_THE_ORDINARY: max(bound, _LARGE * part_of_the_run)}
        bounds[TOO_LONG] = max(_LARGE * level, longest) if known else longest / self.longest_step
        if grown:
            more = max(self._more_cause(reading) / _EXPLAINED, 1.0)
            bounds[GREW_THROUGH_TIME] = _GROWN_BOUND * level * more
        if self._length.share < 1.0:
            bounds[SHORTENED] = self._length.share * longest
        if self._wary and not settling and not grown:
            bounds[SHORTENED] = min(bounds.get(SHORTENED, math.inf), max(_LARGE * level, part_of_the_run))
        return bounds, min(level, longest)

    def _usual(self) -> tuple[float, float]:
        """Bound and ordinary norm, from the last ordinary norms."""
        level = self._history.median()
        bound = max(self.least_factor * level, self.peak_factor * self._history.largest())
        return min(bound, self.most_factor * level), level

    def _first(self, reading: StepReading) -> tuple[float, float]:
        """The same of the first steps, from the first norms and the parameters' own."""
        parameter_norm, step_size, loss = reading.parameter_norm, reading.step_size, reading.loss
        bound, level = math.inf, math.inf
        if len(self._history):
            bound, level = _FIRST_FACTOR * self._history.largest(2), self._history.median()
        if parameter_norm is not None and usable(parameter_norm):
            unit = parameter_norm / step_size if step_size else parameter_norm
            bound = max(bound, _FIRST_FLOOR * unit)
            if not len(self._history):
                bound, level = (_FIRST_LENGTH if step_size else _FIRST_NORM) * unit, _FIRST_LEVEL * unit
                if not step_size and loss is not None and usable(abs(loss)):
                    bound = max(bound, _FIRST_ELASTICITY * abs(loss) / parameter_norm)
        return bound, level

    def _more_cause(self, reading: StepReading) -> float:
        """How many times as much as ordinarily the loss sends; 1 where that is not known."""
        cause = cause_of(reading)
        return cause / self._causes.median() if cause is not None and len(self._causes) else 1.0

    def _explained(self, reading: StepReading) -> float:
        return min(max(self._more_cause(reading), 1.0), _EXPLAINED)

    def _take(self, reading: StepReading, taken: float, *, grown: bool) -> None:
        """Remember a norm that was no explosion; after one as three ordinary ones at most; where it
        grew through time only that it was taken.
        """
        self._held.clear()
        self._memory.append(taken)
        if grown:
            return
        norm = reading.norm
        if len(self._history) and (self._length.share < 1.0 or self._wary):
            norm = min(norm, _LARGE * self._history.median())
        self._history.append(norm)
        cause = cause_of(reading)
        if cause is not None:
            self._causes.append(cause)

    def _explode(self, reading: StepReading, reason: str, level: float, longest: float) -> float:
        """Trust the run no more, save after the very first norm. Returns the norm to take."""
        norm, along = reading.norm, reading.step_size is not None
        if not len(self._history):
            self._history.append(level if reading.step_size else norm)
            return level if along else _LEFT_OVER * level
        more = self._more_cause(reading) * self.least_factor * self._history.median()
        explained = reason == OUT_OF_THE_ORDINARY and more >= norm
        if along:
            self._length.exploded()
        if not explained:
            self._wary = _WARY
        allowed = self._length.share * longest if longest < math.inf else math.inf
        target = min(level, allowed) if along else _LEFT_OVER * level
        if self._length.in_row >= _RANK and allowed < math.inf:
            target = allowed
        self._memory.append(norm if explained else min(target, norm))
        self._hold(norm)
        return target

    def _hold(self, norm: float) -> None:
        """Remember a clipped norm; take a steady row of them for a new level."""
        self._held.append(norm)
        if len(self._held) < _PATIENCE:
            return
        held, self._held = self._held, []
        ordered = sorted(held)
        earlier, later = History(None, held[: _PATIENCE // 2]), History(None, held[_PATIENCE // 2 :])
        if ordered[-4] <= _STEADY * ordered[3] and later.median() <= _RISE * earlier.median():
            raised = min(1.0, _SHIFT * self._history.median() / History(None, held).median())
            self._history = History(self.window, [norm * raised for norm in held])
            self._wary = 0
