"""The default: clip on explosion, and only then."""

from __future__ import annotations

import functools
import math
from typing import Any

from lightning_gradwatch import arguments
from lightning_gradwatch.clip.history import History
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
_LONG_FACTOR = 3.0  # medians that make an explosion of a step that is too long
_STEPS_BETWEEN = 10  # steps between two looks at the parameters
_LEFT_OVER = 0.1  # medians that an explosion is brought back to where the optimizer keeps it in its second moments
_MEMORY = 1000  # steps in which a norm is remembered to have been taken
_RANK = 3  # so many norms as large make it a part of the run ...
_RANK_FACTOR = 3.0  # ... and under this many times that, nothing explodes
_WARY = 1000  # steps after an explosion in which the run is not trusted: ...
_WARY_FACTOR = 3.0  # ... a step is then shortened to so many medians, or to what is part of the run ...
_WARY_LENGTH = 0.25  # ... and to the length allowed, which each step that is too long halves, down to so much of it
_SHAKEN = 20  # steps after one that was too long in which no norm over the median is remembered
_PATIENCE = 20  # successive exploding steps that may turn out to be a new level
_STEADY = 10.0  # they are one if the fourth and the seventeenth in order of size differ by less than this factor, ...
_RISE = 1.25  # ... the median of their later half exceeds the earlier one's by no more than this ...
_SHIFT = 4.0  # ... and then the level rises by this factor at most


class Spike(ArgumentsMixin):
    """Leave ordinary steps untouched; bring an exploding one back to the ordinary level.

    With m the median and p the largest of the last ``window`` ordinary norms, and q the third
    largest of all norms that the optimizer took in the last 1000 steps, a step is exploding if its
    norm N is more than 3 q and either more than ``least_factor``·m and ``peak_factor``·p, or more
    than ``most_factor``·m. It is scaled to m, g ← g·m/N; and to m/10 where the optimizer does not
    go along the gradient (Adam), since what is left of it stays in the second moments for a
    thousand steps. All of it is in terms of ratios, so the decision does not depend on the loss's
    scale. Our own; the median rather than the mean as in Leys et al. (2013), "Detecting outliers";
    the largest rather than a deviation, since a network that leaves a plateau may make norms of a
    hundred medians, but climbs there; the long memory, since a rare class has a large gradient each
    time that it comes up.

    How far out of the ordinary a norm must be depends on the harm that it does. Where the optimizer
    goes along the gradient (SGD), the length of the step is known: one that would move the
    parameters by more than ``longest_step`` of their own norm is exploding from 3 m on, and is
    brought back to that length at least.

    A run that has exploded is not trusted for the next 1000 steps: a step over 3 m and q is
    shortened to the larger of them. Under SGD an exploding step that was too long halves the length
    that is allowed, down to a quarter of ``longest_step``, and no step is longer; and for 20 steps
    no norm enters the history as more than m, so that instability cannot raise the bound. A run
    that has not exploded is never touched.

    From the first step on: until 10 norms are known, the bound is 30 times the second largest so
    far, but at least 0.1 norms of the parameters; under SGD at least a step of a tenth of the
    parameters' length. The very first step may be as long as the parameters under SGD, and is
    brought back to a tenth of that. Of another optimizer it may have a norm of 100 times theirs;
    or, however large, one that fits the loss: N·‖w‖ ≤ 100·abs(L), since the loss may be a sum and
    Adam takes no notice of its scale. One beyond both is brought back to a tenth of the parameters'
    norm, and remembered as it was.

    A permanent change of level (another loss, another batch size) is not an explosion. Where 20
    exploding steps in a row scatter by less than a decade and do not rise, the level is raised,
    fourfold at most, and again after 20 more. A run that explodes does not stay within these
    bounds, or falls out of them when the level rises.

    What it was measured on is in the documentation, *Clipping compared*.

    Args:
        least_factor: a norm under this many medians is ordinary.
        peak_factor: one under this many times the largest that is remembered is, too ...
        most_factor: ... unless it is over this many medians.
        window: how many ordinary norms are remembered, in steps.
        longest_step: length of a step that is too long, in norms of the parameters.
    """

    _arguments = ("least_factor", "peak_factor", "most_factor", "window", "longest_step")
    wants_step_size = True

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
        self._held: list[float] = []
        self._wary = 0  # steps that are left of the time after an explosion ...
        self._shaken = 0  # ... and after a step that was too long
        self._allowed = 1.0  # of the longest step
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
        norm, parameter_norm, step_size, loss = (
            reading.norm,
            reading.parameter_norm,
            reading.step_size,
            reading.loss,
        )
        longest = self._longest(parameter_norm, step_size)
        bound, limit, level = self._bounds(parameter_norm, step_size, longest, loss)
        threshold = limit if limit < math.inf else None
        if not usable(norm):
            return Decision(threshold, 1.0)
        self._wary = max(self._wary - 1, 0)
        if norm > bound:
            self._explode(norm, level, longest, known=bool(step_size))
            target = min(level if step_size is not None else _LEFT_OVER * level, norm)
        else:
            self._take(norm, level)
            target = min(norm, limit)
        self._memory.append(target)
        return Decision(threshold, ratio(target, norm) if target < norm else 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Ordinary norms and those taken, oldest first, the row of explosions, what is left of the
        mistrust, the parameters' norm.
        """
        return {
            "history": self._history.to_list(),
            "memory": self._memory.to_list(),
            "held": list(self._held),
            "wary": self._wary,
            "shaken": self._shaken,
            "allowed": self._allowed,
            "size": self._size,
            "age": self._age,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self._history = History(self.window, state_dict["history"])
        self._memory = History(_MEMORY, state_dict["memory"])
        self._held = list(state_dict["held"])
        self._wary, self._shaken, self._allowed = (state_dict[key] for key in ("wary", "shaken", "allowed"))
        self._size, self._age = state_dict["size"], state_dict["age"]

    def _longest(self, parameter_norm: float | None, step_size: float | None) -> float:
        """The norm from which on a step is too long; inf where that is not known."""
        if parameter_norm is not None:
            known = step_size is not None and usable(parameter_norm)
            self._size, self._age = (parameter_norm if known else None), 0
        self._age += 1
        if self._size is None or not step_size:
            return math.inf
        return self.longest_step * (self._allowed if self._wary else 1.0) * self._size / step_size

    def _bounds(
        self, parameter_norm: float | None, step_size: float | None, longest: float, loss: float | None
    ) -> tuple[float, float, float]:
        """The largest norm that is no explosion (inf: anything goes), the one that it is
        shortened to, and the ordinary one.
        """
        bound, level = self._first(parameter_norm, step_size, loss) if self._settling else self._usual()
        part_of_the_run = self._memory.largest(_RANK) if len(self._memory) else 0.0
        bound = max(bound, _RANK_FACTOR * part_of_the_run)
        if self._wary and not self._settling:
            return bound, min(max(_WARY_FACTOR * level, part_of_the_run), longest), min(level, longest)
        if bound > longest:
            known = len(self._history) > 0
            bound = max(_LONG_FACTOR * self._history.median(), longest) if known else longest / self.longest_step
        return bound, bound, min(level, longest)

    def _usual(self) -> tuple[float, float]:
        """Bound and ordinary norm, from the last ordinary norms."""
        level = self._history.median()
        bound = max(self.least_factor * level, self.peak_factor * self._history.largest())
        return min(bound, self.most_factor * level), level

    def _first(self, parameter_norm: float | None, step_size: float | None, loss: float | None) -> tuple[float, float]:
        """The same of the first steps, from the first norms and the parameters' own."""
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

    def _take(self, norm: float, level: float) -> None:
        """Remember a norm that was no explosion; for a while after one as no more than a
        multiple of the ordinary norm.
        """
        self._held.clear()
        if self._shaken:
            self._shaken -= 1
            norm = min(norm, level)
        elif self._wary:
            norm = min(norm, _WARY_FACTOR * self._history.median())
        self._history.append(norm)

    def _explode(self, norm: float, level: float, longest: float, *, known: bool) -> None:
        """Trust the run no more, for a while; save after the very first norm, where the length
        of the step is not known either.
        """
        if not len(self._history):
            self._history.append(level if known else norm)
            if not known:
                return
        if norm > longest:
            self._allowed = max((self._allowed if self._wary else 1.0) / 2, _WARY_LENGTH)
            self._shaken = _SHAKEN
        self._wary = _WARY
        self._hold(norm)

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
            self._wary = self._shaken = 0
