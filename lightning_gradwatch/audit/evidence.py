"""What is known of the clipping of one optimizer's gradients. No torch: numbers and names alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lightning_gradwatch.plain import count_of
from lightning_gradwatch.tools import Tools, tools_at_hand

CHANGED = 1e-5
"""Share of a norm. A smaller difference is rounding: two norms of the same numbers, taken once with
the loss scale in them and once without."""

CONSTANT = 1e-3
"""Share of a coefficient within which the coefficients of several steps count as one factor."""


@dataclass(frozen=True, slots=True)
class ClipSample:
    """One optimizer step that was looked at.

    Args:
        step: optimizer steps of this fit before it.
        before: L2 norm of the gradient after the backward pass, without the loss scale.
        after: that of the gradient which the optimizer got, over the same parameters.
        touched: something wrote to the gradient in between, or put another in its place, whether
            or not that changed a number.
        grown: the norm of a parameter's gradient grew, which no clipping does.
        scale: the factor of the gradient scaler that was still in the gradient when it was changed;
            1 where there was none, or where this is not known.
        part: where some parameters' gradients were made smaller and the rest left, the norm before
            of those; None where it was all of them, or none.
        uneven: those that were made smaller were so by several factors, as by a bound on each
            tensor or entry: no bound on one norm does that.
        traceless: what writes to it and changes no number leaves no trace, as with sharded
            gradients: ``touched`` may be False then all the same.
    """

    step: int
    before: float
    after: float
    touched: bool = False
    grown: bool = False
    scale: float = 1.0
    part: float | None = None
    uneven: bool = False
    traceless: bool = False

    @property
    def coefficient(self) -> float:
        """Norm after by norm before, dimensionless."""
        return self.after / self.before if self.before > 0 else 1.0

    @property
    def changed(self) -> bool:
        """Whether the optimizer got another gradient than the backward pass had left."""
        return self.grown or abs(self.coefficient - 1) > CHANGED

    @property
    def clipped(self) -> bool:
        """Whether it got a smaller one, as clipping makes it."""
        return not self.grown and self.coefficient < 1 - CHANGED


ABOUT = 1e-2
"""Share of a norm: what a norm that was clipped to a bound is about."""


@dataclass(frozen=True, slots=True)
class Clippers:
    """Who clips, as far as that can be known without listening to anybody's calls.

    Args:
        bound: the Trainer's ``gradient_clip_val``; None without one.
        by_value: it bounds each entry, not the norm.
        override: the module's own ``configure_gradient_clipping``, by name; empty without one.
        adaptive: AdaptiveClip, or clip_adaptively, and its policy; empty without one, or where it
            leaves the clipping to others.
        named: methods of the user's in whose code a clipping function is named.
        surely: those of them in which it is called at every step, come what may.
        early: those of them whose calls all stand before the backward pass.
        hooked: parameters with a hook on their gradient, which acts within the backward pass.
        goes_along: the optimizer's step is as long as the gradient times the learning rate (SGD).
        in_loop: they are in a loop of the user's own, not in a Trainer.
    """

    bound: float | None = None
    by_value: bool = False
    override: str = ""
    adaptive: str = ""
    named: tuple[str, ...] = ()
    surely: tuple[str, ...] = ()
    early: tuple[str, ...] = ()
    hooked: int = 0
    goes_along: bool = False
    in_loop: bool = False

    @property
    def tools(self) -> Tools:
        """What the user has at hand, by name."""
        return tools_at_hand(in_loop=self.in_loop)

    @property
    def alone(self) -> bool:
        """Whether the Trainer's bound on the norm is all that clips."""
        return self.bound is not None and not (self.by_value or self.override or self.adaptive)

    @property
    def names(self) -> list[str]:
        """Of all of them; of code that may not be run, that a clip call stands in it."""
        setting = f"Trainer(gradient_clip_val={self.bound:g})" if self.bound is not None else ""
        named = [name if name in self.surely else f"{name} (a clip call stands in it)" for name in self.named]
        return [name for name in (setting, self.override, self.adaptive, *named) if name]


@dataclass(frozen=True, slots=True)
class Counted:
    """What is known of every step, not only of those that were looked at.

    Args:
        clipped: steps that were clipped, of ``steps``.
        largest: gradient norm; None where it is not known.
        skipped: steps that were not taken, by who clips.
        each: what one of them is: a step, or a gradient evaluation where an optimizer has its
            closure make several in a step, each of which is clipped.
    """

    clipped: int
    steps: int
    largest: float | None = None
    skipped: int = 0
    each: str = "step"

    @property
    def of_all(self) -> str:
        """How many there were, in words."""
        return count_of(self.steps, self.each)


@dataclass(slots=True)
class ClipEvidence:
    """All that a verdict rests on.

    Args:
        optimizer: which of the Trainer's.
        clippers: who clips.
        samples: steps looked at whose norms are finite, in order.
        steps: optimizer steps of this fit.
        first_step: optimizer steps done before this fit.
        counted: of every step; None where only the samples are known.
        stale: samples before whose backward pass something wrote to the gradients of the step
            before, which are thrown away.
        elsewhere: samples at whose step the gradients of another optimizer had been written to, and
            were not used, and its own had not.
        unseen: why there is no sample.
        for_others: a gradient of another optimizer was written to, as its clipping does.
        probes: gradients that were not looked at though their step was, since a closure made
            several in it, as for LBFGS.
        explosions: steps at which the gradient was told to explode through time, where it still
            does so towards the end, and the training is not lost.
    """

    optimizer: int
    clippers: Clippers
    samples: Sequence[ClipSample] = ()
    steps: int = 0
    first_step: int = 0
    counted: Counted | None = None
    stale: int = 0
    elsewhere: int = 0
    unseen: str = ""
    for_others: bool = False
    probes: int = 0
    explosions: tuple[int, ...] = ()

    @property
    def clipped(self) -> list[ClipSample]:
        """Those on which the gradient was made smaller."""
        return [sample for sample in self.samples if sample.clipped]

    @property
    def largest(self) -> float:
        """Gradient norm after a backward pass."""
        seen = max((sample.before for sample in self.samples), default=0.0)
        of_all = self.counted.largest if self.counted is not None else None
        return max(seen, of_all or 0.0)

    @property
    def share(self) -> float | None:
        """Of the samples, those on which the gradient was made smaller; None without a sample."""
        return len(self.clipped) / len(self.samples) if self.samples else None

    @property
    def median_coefficient(self) -> float | None:
        """To what share of itself, where it was made smaller."""
        return median(sample.coefficient for sample in self.clipped) if self.clipped else None

    @property
    def at_bound(self) -> bool:
        """Whether what was made smaller has the Trainer's bound as its norm."""
        bound = self.clippers.bound
        return bound is not None and all(abs(one.after / bound - 1) <= ABOUT for one in self.clipped)

    @property
    def under_bound(self) -> bool:
        """Whether what was made smaller is under the Trainer's bound on the norm, which is all that
        is known to clip: then it was made so by something else, and never reached the bound.
        """
        who = self.clippers
        unscaled = all(one.scale == 1.0 and one.part is None for one in self.clipped)
        alone = who.alone and not who.named and unscaled and bool(self.clipped)
        return alone and all(one.after < (1 - ABOUT) * (who.bound or 0.0) for one in self.samples)

    @property
    def partial(self) -> bool:
        """Whether a part of the parameters was clipped, at any sample."""
        return any(sample.part is not None for sample in self.clipped)

    @property
    def uneven(self) -> bool:
        """Whether several factors were at work, at any sample."""
        return any(sample.uneven for sample in self.clipped)

    @property
    def traceless(self) -> bool:
        """Whether something may have written to the gradient of which nothing is known."""
        return any(sample.traceless for sample in self.samples)

    @property
    def clipped_norms(self) -> list[float]:
        """Of what was clipped, at the samples where it was: the norms that its bound is held
        against, where that is a bound on one norm.
        """
        return [sample.before if sample.part is None else sample.part for sample in self.clipped]

    @property
    def constant(self) -> float | None:
        """The one factor by which the gradient was multiplied at every sample, whatever its norm:
        that is no clipping. None where it is not so, or not to be told from it.
        """
        factors = [sample.coefficient for sample in self.samples]
        norms = [sample.before for sample in self.samples]
        if len(factors) < 3 or not all(sample.clipped for sample in self.samples):
            return None
        alike = max(factors) - min(factors) <= CONSTANT * max(factors)
        return median(factors) if alike and max(norms) > 1.1 * min(norms) else None

    def percentile(self, percent: float) -> float:
        """Of the gradient norms after a backward pass, interpolated linearly."""
        return percentile_of([sample.before for sample in self.samples], percent)


def percentile_of(norms: Sequence[float], percent: float) -> float:
    """Interpolated linearly."""
    ordered = sorted(norms)
    place = percent / 100 * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))
