"""Judges of what is said of a gradient on its way back through time: how far it reaches, how fast it falls or grows."""

from __future__ import annotations

import math

from benchmarks.campaigns.truth.sentences import SAID, Context
from benchmarks.campaigns.truth.verdicts import GROWN, Words, of_late

# ------------------------------------------------------------------ how far, how fast


def horizon(c: Context, said: str) -> None:
    """A horizon in timesteps."""
    found = c.between(lambda one: one.horizon)
    if found is not None:
        c.number(said, *found, "the horizon")


def timesteps(c: Context, said: str) -> None:
    """The length of the sequences."""
    found = c.between(lambda one: (one.timesteps, one.timesteps))
    if "timesteps" in c.case.where:
        found = c.case.where["timesteps"], c.case.where["timesteps"]
    if found is not None:
        c.number(said, *found, "the number of timesteps")


def rate(c: Context, m: Words) -> None:
    """A growth rate, rounded to three digits; of a median over curves and samples."""
    found = c.between(lambda one: one.rate)
    if "rate" in m and found is not None:
        c.number(m["rate"], found[0] - 0.01, found[1] + 0.01, "the growth rate", slack=0.05)


@SAID(
    "The gradient falls under 1 % after <n:h> of <int:t> timesteps (growth rate <n:rate> nats per timestep)«: "
    "what lies further back is not learned»."
)
@SAID("The gradient falls under 1 % after <n:h> of <int:t> timesteps«: what lies further back is not learned».")
def falls(c: Context, m: Words) -> None:
    horizon(c, m["h"])
    timesteps(c, m["t"])
    rate(c, m)
    if "not learned" in c.sentence:
        _starve(c)


def _starve(c: Context) -> None:
    late = of_late(c)
    c.verdict(not late or any(one.starving[1] > 0 for one in late), "no timestep starves")


_ENOUGH = "every timestep has a loss near enough, so it matters only if the task needs a longer memory."


@SAID(
    "The gradient falls under 1 % after <n:h> of <int:t> timesteps (growth rate <n:rate> nats per timestep); "
    f"{_ENOUGH}",
    f"The gradient falls under 1 % after <n:h> of <int:t> timesteps; {_ENOUGH}",
)
def _falls_as_a_note(c: Context, m: Words) -> None:
    falls(c, m)
    enough(c, m)


@SAID("Every timestep has a loss near enough to learn from; it matters if the task needs a longer memory.")
def enough(c: Context, m: Words) -> None:
    late = of_late(c)
    c.verdict(not late or any(one.starving[0] == 0 for one in late), "the first timesteps starve")


@SAID(
    "The gradient falls under 1 % after <n:h> of <int:t> timesteps (growth rate <n:rate> nats per timestep); "
    "at step <int:step> it reached <int:before>, as learning may leave it."
)
@SAID(
    "The gradient falls under 1 % after <n:h> of <int:t> timesteps; at step <int:step> it reached "
    "<int:before>, as learning may leave it."
)
def _shortened(c: Context, m: Words) -> None:
    falls(c, m)
    _reached_at(c, m["before"], int(m["step"]))


def _reached_at(c: Context, said: str, step: int) -> None:
    found = c.between(
        lambda one: (min(one.horizon[0], one.timesteps - 1), min(one.horizon[1], one.timesteps - 1)), [step]
    )
    if found is not None:
        c.number(said, *found, f"the horizon at step {step}")


@SAID(
    "The gradient falls under 1 % after <n:h> of <int:t> timesteps (growth rate <n:rate> nats per timestep), "
    "but <int:samples> sample«s» cannot tell whether it stays so."
)
def _too_few(c: Context, m: Words) -> None:
    falls(c, m)


@SAID(
    "The gradient stays above 1 % for all of the <int:t> timesteps (growth rate <n:rate> nats per timestep).",
    "The gradient stays above 1 % for all of the <int:t> timesteps.",
)
def _outlives(c: Context, m: Words) -> None:
    late = of_late(c)
    c.verdict(not late or any(math.isinf(one.horizon[1]) for one in late), "it falls under 1 %")
    c.verdict(not late or any(one.reached[1] == one.timesteps for one in late), "not all timesteps get a gradient")
    timesteps(c, m["t"])
    rate(c, m)


@SAID(
    "The gradient stays above 1 % for all of the <int:seen> timesteps over which it could be followed, of "
    "<int:t> (growth rate <n:rate> nats per timestep).",
    "The gradient stays above 1 % for all of the <int:seen> timesteps over which it could be followed, of <int:t>.",
)
def _outlives_what_is_seen(c: Context, m: Words) -> None:
    timesteps(c, m["t"])
    rate(c, m)
    found = c.between(lambda one: one.reached)
    if found is not None:
        c.number(m["seen"], 1, found[1], "how far it can be followed")


@SAID(
    "The gradient grows <n:growth>-fold within <int:t> timesteps (growth rate <n:rate> nats per timestep).",
    "The gradient grows <n:growth>-fold within <int:t> timesteps.",
)
def _grows(c: Context, m: Words) -> None:
    timesteps(c, m["t"])
    rate(c, m)
    growth(c, m["growth"])


def growth(c: Context, said: str) -> None:
    """How many-fold a gradient grows on its way."""
    found = c.between(lambda one: one.growth)
    if found is not None:
        c.number(said, *found, "the growth", slack=0.02)


@SAID("Its sequences have one timestep: nothing flows through time.")
def _one_timestep(c: Context, m: Words) -> None:
    c.verdict(all(one.timesteps == 1 for one in c.facts()), "they have more")


@SAID("No gradient reached its hidden states.")
def _nothing_reached(c: Context, m: Words) -> None:
    c.verdict(not any(one.fed for one in c.facts()), "gradients reach some")


@SAID("The loss sends no gradient from which the horizon could be measured.")
def _no_lags(c: Context, m: Words) -> None:
    c.verdict(not any(one.curves for one in c.facts()), "it does")


# ------------------------------------------------------------------ events of a gradient on its way


@SAID("The gradient of <place> falls under 1 % after <n:h> timesteps.")
def _vanishes(c: Context, m: Words) -> None:
    horizon(c, m["h"])
    late = of_late(c)
    c.verdict(not late or any(one.horizon[0] < 0.5 * one.timesteps for one in late), "the horizon is long")


@SAID(
    "The sequences have <int:t>; so it was in <int:samples> samples in a row, growth rate <n:rate> nats per timestep.",
    "The sequences have <int:t>; so it was in <int:samples> samples in a row.",
)
def _so_it_was(c: Context, m: Words) -> None:
    timesteps(c, m["t"])
    rate(c, m)
    c.number(m["samples"], 1, len(c.steps()), "the number of samples")


@SAID(
    "The <int:hungry> timesteps furthest from the loss get under 1 % of the largest gradient: nothing is "
    "learned from them."
)
def _starving(c: Context, m: Words) -> None:
    found = c.between(lambda one: one.starving)
    if found is not None:
        c.number(m["hungry"], *found, "the number of starving timesteps")


@SAID("Earlier it reached <int:before>; if the loss is low by now, it was enough.")
def _earlier(c: Context, m: Words) -> None:
    found = c.between(lambda one: (0, min(one.horizon[1], one.timesteps - 1)))
    if found is not None:
        c.number(m["before"], *found, "the furthest horizon")


@SAID(
    "Vanishing of <place> since step <int:begin>, still so when training ended; the horizon was shortest, "
    "<n:h> timesteps, at step <int:step> (bound <n:bound>).",
    "Vanishing of <place> from step <int:begin> to step <int:end>; the horizon was shortest, <n:h> timesteps, "
    "at step <int:step> (bound <n:bound>).",
)
def _episode_of_vanishing(c: Context, m: Words) -> None:
    found = c.between(lambda one: one.horizon, [int(m["step"])])
    if found is not None:
        c.number(m["h"], *found, f"the horizon at step {m['step']}")


@SAID("The gradient of <place> grows <n:growth>-fold on its way back through time (bound <n:bound>).")
def _explodes(c: Context, m: Words) -> None:
    found = c.between(lambda one: one.growth, [c.event.step] if c.event else None)
    if found is not None:
        c.number(m["growth"], *found, "the growth", slack=0.02)
    c.verdict(float(m["growth"]) > float(m["bound"]), "it is under its bound")


@SAID(
    "It outgrows the bound <int:over> timesteps back from the loss and is largest <int:at> back, in sequences "
    "of <int:t> (<n:rate> nats per timestep).",
    "It outgrows the bound <int:over> timesteps back from the loss and is largest <int:at> back, in sequences "
    "of <int:t>.",
)
def _outgrows(c: Context, m: Words) -> None:
    timesteps(c, m["t"])
    step = [c.event.step] if c.event else None
    bound = c.event.threshold if c.event and c.event.threshold else GROWN
    for one in c.facts(steps=step):
        low, high = one.bounds()
        if low == high:
            over = next((lag for lag, ratio in enumerate(high) if ratio > bound), -1)
            c.number(m["over"], over, over, "where it outgrows the bound")
            c.number(m["at"], high.index(max(high)), high.index(max(high)), "where it is largest")


@SAID(
    "Explosion through time of <place> since step <int:begin>, still so when training ended; the growth was "
    "largest, <n:growth>-fold, at step <int:step> (bound <n:bound>).",
    "Explosion through time of <place> from step <int:begin> to step <int:end>; the growth was largest, "
    "<n:growth>-fold, at step <int:step> (bound <n:bound>).",
)
def _episode_of_growth(c: Context, m: Words) -> None:
    found = c.between(lambda one: one.growth, [int(m["step"])])
    if found is not None:
        c.number(m["growth"], *found, f"the growth at step {m['step']}", slack=0.02)


@SAID("No gradient flows through time in <place>: its state is reset or detached at every step.")
def nothing_flows(c: Context, m: Words) -> None:
    c.verdict(all(one.severed for one in c.facts()), "something flows")
    c.verdict(c.case.cause == "severed", "the state is passed on")
