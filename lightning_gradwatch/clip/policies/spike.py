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
    LOSS_TOO,
    OUT_OF_THE_ORDINARY,
    SHORTENED,
    TOO_LONG,
)
from lightning_gradwatch.clip.policies.step_length import StepLength
from lightning_gradwatch.clip.policy import ArgumentsMixin, Decision, StepReading, describe, ratio, usable

_first_name = "Spike(least_factor=30.0, peak_factor=8.0, most_factor=100.0, window=20, longest_step=0.2)"

RANK = 3  # norms: so many that are as large make it a part of the run; explosions: so many in a row have to be left
MOST_EXPLAINED = 30.0  # times: by so much more norm a step may have because its loss is larger; a corrupted target is
LARGE = 3.0  # medians: what is no larger is not shortened, and no explosion is remembered as more
LEFT_OVER = 0.1  # of the ordinary norm, that an explosion leaves in second moments; of the parameters', at first
STEEPEST = 100.0  # times itself: so much may the loss change, by the first gradient, over the parameters' own length


class Spike(ArgumentsMixin):
    """Leave ordinary steps untouched; bring an exploding one back to the ordinary level.

    m is the median of the last ``window`` norms, q the third largest of the last ``memory``, and e
    how many times as large as its own median the loss is, from 1 to 30. A step explodes for one of
    two reasons, and the event says which.

    **Its norm is out of the ordinary**: over ``factor``·q and over ``factor``·e·m. So what was let
    through three times is part of the run; and where the loss is larger, for a rare class, a
    weight, a sum, the norm may be, too. Where the loss is larger still and alone accounts for the
    norm, as after a corrupted target or a change of the loss's scale, the step is clipped, but m
    and, within ``window`` steps, q learn from it as it was: after three such steps the next is
    ordinary.

    **The step is too long** (SGD): momentum included, it would move the parameters by more than
    ``longest_step`` of their own norm, and its norm is over 3 m.

    An exploding step is scaled to m, g ← g·m/N, and to m/10 where the optimizer does not go along
    the gradient (Adam), since what is left of it stays in the second moments for a thousand steps.
    It is remembered as m; as up to 3 m, but no longer than ``longest_step``, where the last
    ``window`` norms as they came neither rise, N being no larger than all of them, nor scatter, the
    largest being no more than ``factor`` times their median: a new level that lasts becomes the
    ordinary one by and by, an explosion that goes on does not.

    Then steps are kept short for a while. Under SGD an explosion within ``window`` steps of another
    halves the length that a step may have, down to a 128th, and so do ``window`` successive steps
    that are longer; as many within it double it again. Until it is whole, no norm is remembered as
    more than what was let through; and from the third explosion in a row on a step has just that
    length, to get away from there. Of other optimizers no step is over 3 m for ``memory`` steps. A
    run without explosions is never touched, save where the gradient grows through time.

    **It grew through time** (SGD): the recurrent weights' gradient, per unit of what the loss sends
    to their module, is over ``factor`` times the least median of it so far. That is no explosion
    by itself, but the norm is held to ``factor``·m, or more by as much as the loss is larger, and
    m and q are not learned from it: a level that rises since the gradient grows is no new level.

    The very first step may be as long as the parameters under SGD, or as is stable for a loss L
    that is quadratic: η·N² ≤ 4·abs(L), as small weights are no measure of a step. Of another
    optimizer its norm N may be 100 times theirs, or what fits the loss: N·‖w‖ ≤ 100·abs(L), as the
    loss may be a sum. One beyond is brought back to a tenth of the parameters' norm, or length.
    Until ``window`` norms are known, such a tenth is ordinary.

    All is in ratios: the loss's scale does not matter. Our own; the median rather than the mean as
    in Leys et al. (2013), "Detecting outliers". What each constant buys is in the documentation,
    *Clipping compared*.

    Args:
        factor: times what is ordinary; a norm under it is no explosion by itself.
        memory: how many norms are remembered, in steps.
        window: of how many of them the ordinary one is the median, in steps.
        longest_step: length of a step that is too long, in norms of the parameters.
    """

    _arguments = ("factor", "memory", "window", "longest_step")
    wants_step_size = True
    wants_growth = True
    wants_loss = True

    def __init__(self, factor: float = 10.0, memory: int = 1000, window: int = 20, longest_step: float = 0.3) -> None:
        number = functools.partial(arguments.number, owner=self)
        rule, remedy = "finite and > 1", "Leave it at 10; lower clips sooner."
        self.factor = number("factor", factor, lambda f: 1 < f < math.inf, rule, remedy)
        self.window = arguments.whole("window", window, "Leave it at 20.", least=20, owner=self)
        self.memory = arguments.whole("memory", memory, "Leave it at 1000.", least=self.window, owner=self)
        remedy = "Leave it at 0.3; infinity is no bound."
        self.longest_step = number("longest_step", longest_step, lambda f: f > 0, "> 0", remedy)
        self._norms, self._last, self._losses = History(self.memory), History(self.window), History(self.window)
        self._seen = History(self.window)  # as they came, however large
        self._growth = OrdinaryGrowth(self.window, self.factor)
        self._length = StepLength(self.window)
        self._wary = 0  # steps that are left of the time after an explosion
        self._size: float | None = None  # the parameters' norm when last seen
        self._age = 0  # steps since then

    @property
    def name_in_state(self) -> str:
        """What a checkpoint calls it. With its defaults, it is as 0.1.0 called it with its own: a
        run is gone on from, whatever its arguments are called today.
        """
        own = describe(self)
        return _first_name if own == describe(Spike()) else own

    @property
    def wants_parameter_norm(self) -> bool:
        """True for the first steps, until the norms speak for themselves; then every ``window``
        steps, where a step's length is known.
        """
        return self._settling or (self._size is not None and self._age >= self.window)

    @property
    def _settling(self) -> bool:
        return len(self._norms) < self.window

    def decide(self, reading: StepReading) -> Decision:
        """Hold the norm against the ordinary ones."""
        norm, unit = reading.norm, self._unit(reading)
        grown = self._growth.exceeded(reading.growth) and reading.step_size is not None and not self._settling
        if not usable(norm):
            return Decision(None, 1.0)
        if not len(self._norms):
            return self._first(reading, unit)
        level = self._last.median()
        explosive = self._explosive(reading, level, unit, grown=grown)
        bounds = explosive | self._held(reading, level, unit, grown=grown)
        threshold = min(bounds.values())
        reason = next((why for why, bound in bounds.items() if norm > bound), "")
        self._wary, target = max(self._wary - 1, 0), min(norm, threshold)
        explained = norm <= min(self.factor * self._more_loss(reading) * level, explosive.get(TOO_LONG, math.inf))
        exploded = reason in explosive
        if exploded:
            target = min(target, level if reading.step_size is not None else LEFT_OVER * level)
            reason = LOSS_TOO if explained else reason
        if exploded and not explained:
            self._be_wary(reading)
            if self._length.in_row >= RANK and unit < math.inf:
                target = min(norm, self._length.share * self.longest_step * unit)
                threshold = max(threshold, target)
        elif not grown and reading.step_size is not None:
            self._length.stayed(within=norm <= threshold)
        if not grown:
            taken = min(norm, self._most(reading, level, unit)) if exploded else target if self._shaken else norm
            self._remember(reading, taken, explained=explained or not exploded)
        self._seen.append(norm)
        return Decision(
            threshold, ratio(target, norm) if target < norm else 1.0, reason=reason if target < norm else ""
        )

    def state_dict(self) -> dict[str, Any]:
        """Norms taken, norms as they came and losses, oldest first, growths, the length allowed,
        what is left of the mistrust, the parameters' norm.
        """
        return {
            "memory": self._norms.to_list(),
            "history": self._last.to_list(),
            "seen": self._seen.to_list(),
            "losses": self._losses.to_list(),
            "growth": self._growth.state_dict(),
            "length": self._length.state_dict(),
            "wary": self._wary,
            "size": self._size,
            "age": self._age,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up; what an earlier version did not write begins afresh."""
        self._norms = History(self.memory, state_dict["memory"])
        self._last = History(self.window, state_dict["history"])
        self._seen = History(self.window, state_dict.get("seen", state_dict["history"]))
        self._losses = History(self.window, state_dict.get("losses", ()))
        for part, key in ((self._growth, "growth"), (self._length, "length")):
            if key in state_dict:
                part.load_state_dict(state_dict[key])
        self._wary, self._size, self._age = state_dict["wary"], state_dict["size"], state_dict["age"]

    def _unit(self, reading: StepReading) -> float:
        """The norm of a step as long as the parameters; theirs, where a step does not go along the
        gradient; inf where it is not known.
        """
        size, step_size = reading.parameter_norm, reading.step_size
        if size is not None:
            self._size, self._age = size if usable(size) and step_size is not None else None, 0
        self._age += 1
        if step_size is None:
            return size if size is not None and usable(size) else math.inf
        if self._size is None or not step_size:
            return math.inf
        alone = 1.0 if self._settling else max(1.0 - reading.momentum, 0.0)  # momentum has to gather first
        return self._size * alone / step_size

    def _first(self, reading: StepReading, unit: float) -> Decision:
        """Hold the first norm against the parameters."""
        norm, along, loss = reading.norm, reading.step_size is not None, _loss(reading)
        if reading.step_size:
            # A quadratic loss whose least value is 0 has η·N² ≤ 4·L at each rate that is stable
            bound = max(unit, 2.0 * math.sqrt((loss or 0.0) / reading.step_size))
        else:
            bound = unit if along else max(STEEPEST * unit, STEEPEST * (loss or 0.0) / unit)
        exploded, target = norm > bound, min(norm, LEFT_OVER * unit)
        if exploded and loss is not None:
            self._be_wary(reading)
        self._remember(reading, target if exploded and along else norm, explained=not exploded)
        self._seen.append(norm)
        reason = (TOO_LONG if along else OUT_OF_THE_ORDINARY) if exploded else ""
        return Decision(bound if bound < math.inf else None, ratio(target, norm) if exploded else 1.0, reason=reason)

    def _explosive(self, reading: StepReading, level: float, unit: float, *, grown: bool) -> dict[str, float]:
        """For each reason to call it an explosion, the largest norm that is none."""
        bounds: dict[str, float] = {}
        if not grown:
            part_of_the_run = max(self._norms.largest(RANK), self._last.largest(RANK))
            explained = min(self._more_loss(reading), MOST_EXPLAINED)
            ordinary = self.factor * max(part_of_the_run, explained * level)
            at_first = LEFT_OVER * unit if self._settling and unit < math.inf else 0.0
            bounds[OUT_OF_THE_ORDINARY] = max(ordinary, at_first)
        if reading.step_size is not None:
            bounds[TOO_LONG] = max(self.longest_step * unit, LARGE * level)
        return bounds

    def _held(self, reading: StepReading, level: float, unit: float, *, grown: bool) -> dict[str, float]:
        """The same for each reason to shorten what is no explosion."""
        bounds: dict[str, float] = {}
        if grown:
            bounds[GREW_THROUGH_TIME] = max(self.factor, self._more_loss(reading)) * level
        if reading.step_size is not None and self._length.share < 1.0:
            bounds[SHORTENED] = self._length.share * self.longest_step * unit
        elif reading.step_size is None and self._wary:
            bounds[SHORTENED] = LARGE * level
        return bounds

    def _most(self, reading: StepReading, level: float, unit: float) -> float:
        """As how much an explosion is remembered: not as more than the level, unless norms have
        found a new one.
        """
        seen = self._seen.largest()
        if reading.norm > seen or seen > self.factor * self._seen.median():
            return level
        allowed = self.longest_step * unit if reading.step_size is not None else math.inf
        return min(LARGE * level, max(level, allowed))

    def _more_loss(self, reading: StepReading) -> float:
        """How many times as large as ordinarily the loss is; 1 where it is less, or not known."""
        loss = _loss(reading)
        return max(loss / self._losses.median(), 1.0) if loss is not None and len(self._losses) else 1.0

    def _be_wary(self, reading: StepReading) -> None:
        """Keep steps short for a while."""
        if reading.step_size is not None:
            self._length.exploded()
        else:
            self._wary = self.memory

    @property
    def _shaken(self) -> bool:
        """Whether explosions under SGD have followed one another: then no norm counts as more than
        what was let through.
        """
        return self._length.share < 1.0

    def _remember(self, reading: StepReading, norm: float, *, explained: bool) -> None:
        """Keep what counts as the step's norm, and where its loss ``explained`` it, that loss, and
        the norm as it was for ``window`` steps.
        """
        self._norms.append(norm)
        self._last.append(reading.norm if explained and not self._shaken else norm)
        loss = _loss(reading)
        if loss is not None and explained:
            self._losses.append(loss)


def _loss(reading: StepReading) -> float | None:
    """Its size, where it can be held against others."""
    return abs(reading.loss) if reading.loss is not None and usable(abs(reading.loss)) else None
