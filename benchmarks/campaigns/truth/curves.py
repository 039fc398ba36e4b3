"""Judges of what is said of a gradient on its way back through time: how far it reaches, how fast it falls or grows."""

# Over 300 lines: one register: a judge of each sentence about a curve.
from __future__ import annotations

import math
import re

from benchmarks.campaigns.truth.sentences import SAID, Context
from benchmarks.campaigns.truth.verdicts import GROWN, Words, of_late
from lightning_gradwatch.thresholds import VANISHING_SHARE

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


_RATE = (
    "growth rate <n:rate> nats per timestep« over all lags»«: «on average »<how:words>»"
    "«, but <pace:pace> over the first lags»"
)
_SPREAD = "<int:shortest> to« over» <int:longest>« or more» in the last <int:of> samples"
_LENGTHS = "its sequences have <int:fewest> to <int:most> timesteps"
_BEHIND = "no loss reaches its last« <int:behind>»« one»"
_SPEED = f"« («{_LENGTHS}»«; »«{_BEHIND}»«; »«{_SPREAD}»«; »«{_RATE}»)»"
_FALL = (
    "The gradient falls under 1 % after <n:h>« of <int:t>» timesteps«, more than the <int:counted> that "
    "count»«, beside <int:more> more whose inputs are equal, as in padding»" + _SPEED
)
_LOW = "«, with the loss down to <n:loss> from <n:first>»"


def rate(c: Context, m: Words) -> None:
    """A growth rate, rounded to three digits, of a median over curves and samples; and what it makes of the gradient with each timestep."""
    found = c.between(lambda one: one.rate)
    if "rate" in m and found is not None:
        c.number(m["rate"], found[0] - 0.01, found[1] + 0.01, "the growth rate", slack=0.05)
    if "words" in m:
        _in_words(c, m["words"], math.exp(float(m["rate"])))
    if "longest" in m:
        _spread(c, m)
    if "behind" in m:
        behind(c, m["behind"])
    if "fewest" in m:
        for said in (m["fewest"], m["most"]):
            timesteps(c, said)


def behind(c: Context, said: str) -> None:
    """How many timesteps lie behind the last one that the loss reaches."""
    found = c.between(lambda one: (one.timesteps - one.reached[1], one.timesteps - one.reached[0]))
    if found is not None:
        c.number(said, *found, "the number of timesteps behind the loss")


def _spread(c: Context, m: Words) -> None:
    found = c.between(lambda one: one.horizon)
    if found is not None:
        c.number(m["shortest"], *found, "the shortest horizon")
        c.number(m["longest"], min(found[0], 1.0), found[1], "the longest horizon")
    c.number(m["of"], 1, len(c.told.sampled), "the number of samples")


def _in_words(c: Context, words: str, factor: float) -> None:
    """What a growth rate makes of the gradient with each timestep back."""
    percent = re.search(r"([\d.e+]+) %", words)
    if words == "it keeps its size":
        c.verdict(0.98 < factor < 1.02, f"it is {factor:.3g} times as large with each timestep")
    elif "fades" in words:
        c.verdict(factor < 1, "it grows")
        if percent is not None and "under" not in words:
            c.number(percent[1], 100 * factor - 1, 100 * factor + 1, "what is left with each timestep")
    else:
        c.verdict(factor > 1, "it fades")
        if percent is not None:
            c.number(percent[1], 100 * (factor - 1), 100 * (factor - 1), "the growth with each timestep", slack=0.1)


@SAID(f"{_FALL}.")
def falls(c: Context, m: Words) -> None:
    """A horizon, the length of the sequences and how fast the gradient falls."""
    horizon(c, m["h"])
    real = m["t"] if "t" in m else m["counted"]
    timesteps(c, str(int(real.replace(",", "")) + int(m.get("more", "0").replace(",", ""))))
    rate(c, m)
    if "more" in m:
        found = c.truth.padding()
        c.verdict(bool(found), "no inputs are equal")
        if found:
            c.number(m["more"], min(found), max(found), "the padding")
    if "loss" in m:
        low(c, m)


@SAID("The loss is down to <n:loss> from <n:first>: what the task needs may well be within reach.")
def low(c: Context, m: Words) -> None:
    """A loss that is low beside the first one."""
    c.number(m["loss"], min(c.truth.losses), max(c.truth.losses), "the loss", slack=0.05)
    c.number(m["first"], c.truth.losses[0], c.truth.losses[0], "the first loss", slack=0.05)
    c.verdict(float(m["loss"]) < 0.2 * float(m["first"]), "it is not low")


@SAID(f"{_FALL}: what lies further back is not learned.")
@SAID(f"{_FALL}{_LOW}: what lies further back teaches next to nothing, which the task may not need.")
def _falls_and_starves(c: Context, m: Words) -> None:
    falls(c, m)
    late = of_late(c)
    c.verdict(not late or any(one.starving[1] > 0 for one in late), "no timestep starves")


_YET = (
    "yet every timestep gets 1 % of the largest gradient or more, so it matters only if the task needs a longer memory"
)


@SAID(f"{_FALL}; {_YET}.")
def _falls_as_a_note(c: Context, m: Words) -> None:
    falls(c, m)
    enough(c, m)


@SAID("Every timestep gets 1 % of the largest gradient or more: it matters if the task needs a longer memory.")
def enough(c: Context, m: Words) -> None:
    """No timestep starves."""
    late = of_late(c)
    c.verdict(not late or any(one.starving[0] == 0 for one in late), "the first timesteps starve")


@SAID(f"{_FALL}; at step <int:step> it reached <int:before>.")
def _shortened(c: Context, m: Words) -> None:
    falls(c, m)
    _reached_at(c, m["before"], int(m["step"].replace(",", "")))


@SAID("What has been learned needs little gradient.")
def _learned(c: Context, m: Words) -> None:
    c.verdict(min(c.truth.losses[-3:]) < 0.6 * c.truth.losses[0], "little was learned")


@SAID("The loss went from <n:first> to <n:last>.")
def _went(c: Context, m: Words) -> None:
    late = c.truth.losses[-c.truth.steps // 2 :]
    c.number(m["first"], c.truth.losses[0], c.truth.losses[0], "the first loss", slack=0.01)
    c.number(m["last"], min(late), max(late), "the last losses", slack=0.01)


@SAID(
    f"{_FALL}, and then hardly any more: what lies further back gets little, but gets it from all timesteps alike; whether it is learned "
    "the loss has to show."
)
def _falls_at_first(c: Context, m: Words) -> None:
    falls(c, m)
    slow = [one.rate[1] > -2.2 / one.timesteps for one in of_late(c) if one.rate is not None]
    c.verdict(not slow or any(slow), "it goes on to fade")


def _reached_at(c: Context, said: str, step: int) -> None:
    found = c.between(
        lambda one: (min(one.horizon[0], one.timesteps - 1), min(one.horizon[1], one.timesteps - 1)), [step]
    )
    if found is not None:
        c.number(said, *found, f"the horizon at step {step}")


@SAID(f"{_FALL}, but <int:few> sample«s» cannot tell whether it stays so.")
def _too_few(c: Context, m: Words) -> None:
    falls(c, m)


@SAID("For a verdict after so few steps sample more often: every_n_steps=<int:every> takes <int:taken> in <int:steps>.")
def _more_samples(c: Context, m: Words) -> None:
    steps, every = int(m["steps"]), int(m["every"])
    c.number(m["steps"], c.truth.steps, c.truth.steps, "the number of steps", slack=0.0)
    c.number(m["taken"], len(range(0, steps, every)), len(range(0, steps, every)), "samples", slack=0.0)
    c.verdict(len(c.told.sampled) < 3 and every < c.case.every, "it has samples enough")


_PADDED = "the <int:padded> timesteps before the loss have equal inputs, as padding has, and have to be crossed first"


@SAID(f"{_FALL}{_LOW}: {_PADDED}.")
def _falls_in_padding(c: Context, m: Words) -> None:
    falls(c, m)
    padding(c, m)


def padding(c: Context, m: Words) -> None:
    """The equal inputs that a gradient has to cross."""
    c.verdict(c.case.cause == "padding", "there is none in the way")
    found = c.truth.padding()
    if found:
        c.number(m["padded"], min(found), max(found), "the padding")


@SAID(f"The gradient stays above 1 % for all of the <int:t> timesteps{_SPEED}.")
def _outlives(c: Context, m: Words) -> None:
    late = of_late(c)
    c.verdict(not late or any(math.isinf(one.horizon[1]) for one in late), "it falls under 1 %")
    c.verdict(not late or any(one.reached[1] == one.timesteps for one in late), "not all timesteps get a gradient")
    timesteps(c, m["t"])
    rate(c, m)


@SAID(
    "The gradient stays above 1 % for all of the <int:seen> timesteps over which it could be followed, of "
    f"<int:t>{_SPEED}."
)
def _outlives_what_is_seen(c: Context, m: Words) -> None:
    timesteps(c, m["t"])
    rate(c, m)
    found = c.between(lambda one: one.reached)
    if found is not None:
        c.number(m["seen"], 1, found[1], "how far it can be followed")


@SAID("The gradient could be followed over <int:seen> of <int:t> timesteps only, too few to judge.")
def _seen_too_little(c: Context, m: Words) -> None:
    timesteps(c, m["t"])
    c.verdict(int(m["seen"]) < VANISHING_SHARE * int(m["t"]), "it is enough to judge")


@SAID(f"The gradient grows <n:growth>-fold within <int:t> timesteps{_SPEED}.")
def _grows(c: Context, m: Words) -> None:
    timesteps(c, m["t"])
    rate(c, m)
    growth(c, m["growth"])


def growth(c: Context, said: str) -> None:
    """How many-fold a gradient grows on its way."""
    found = c.between(lambda one: one.growth)
    if found is not None:
        c.number(said, *found, "the growth", slack=0.02)


@SAID(
    "<int:behind> timestep«s» lie«s» behind the last one that the loss reads, where no gradient is due.",
)
def _behind(c: Context, m: Words) -> None:
    behind(c, m["behind"])


@SAID("The loss reads the other direction alone: none of its own timesteps gets a gradient.")
@SAID(
    "The other direction alone is read« in <int:samples> samples in a row»: none of the weights of this one learns anything."
)
def _unread(c: Context, m: Words) -> None:
    _nothing_reached(c, m)


@SAID("Each backward pass was measured over one timestep of it: there is no way back through time to follow.")
def _one_timestep(c: Context, m: Words) -> None:
    c.verdict(all(one.timesteps == 1 for one in c.facts()), "they have more")


@SAID("No gradient reached its hidden states.")
def _nothing_reached(c: Context, m: Words) -> None:
    c.verdict(not any(one.fed for one in c.facts()), "gradients reach some")


@SAID("The horizon is not known: <list>.")
def _no_lags(c: Context, m: Words) -> None:
    c.verdict(c.case.inexact or not any(one.curves for one in c.facts()), "it can be followed")


@SAID("The measurement is not exact: <list>.")
def _inexact(c: Context, m: Words) -> None:
    c.verdict(c.case.inexact, "nothing stands in the way of an exact one")


# ------------------------------------------------------------------ events of a gradient on its way


@SAID("The gradient of <place> falls under 1 % after <n:h> timestep«s».")
def _vanishes(c: Context, m: Words) -> None:
    horizon(c, m["h"])
    late = of_late(c)
    c.verdict(not late or any(one.horizon[0] < 0.5 * one.timesteps for one in late), "the horizon is long")


@SAID("The sequences have <int:t>« to <int:most>».")
def _have(c: Context, m: Words) -> None:
    for said in filter(None, (m["t"], m.get("most"))):
        timesteps(c, said)


@SAID(f"Seen in <int:samples> samples in a row«, after <int:least> to <int:most>»« ({_RATE})».")
def _so_it_was(c: Context, m: Words) -> None:
    rate(c, m)
    c.number(m["samples"], 1, len(c.steps()), "the number of samples")
    found = c.between(lambda one: one.horizon)
    if "least" in m and found is not None:
        c.number(m["least"], *found, "the shortest horizon")
        c.number(m["most"], *found, "the longest horizon")


@SAID(
    "The <int:hungry> timesteps furthest from the loss get under 1 % of the largest gradient«: nothing is "
    "learned from them»."
)
def _starving(c: Context, m: Words) -> None:
    found = c.between(lambda one: one.starving)
    if found is not None:
        c.number(m["hungry"], *found, "the number of starving timesteps")


@SAID("Earlier it reached <int:before>, and the loss has risen since, to <n:loss> from <n:first>.")
def _risen(c: Context, m: Words) -> None:
    _earlier(c, m)
    c.number(m["loss"], min(c.truth.losses), max(c.truth.losses), "the loss", slack=0.05)
    c.number(m["first"], c.truth.losses[0], c.truth.losses[0], "the first loss", slack=0.05)
    c.verdict(float(m["loss"]) > float(m["first"]), "it has not")


@SAID("Earlier it reached <int:before>; if the loss is low by now, it was enough.")
def _earlier(c: Context, m: Words) -> None:
    found = c.between(lambda one: (0, min(one.horizon[1], one.timesteps - 1)))
    if found is not None:
        c.number(m["before"], *found, "the furthest horizon")


@SAID(
    "Vanishing of <place> since step <int:begin>, not over when training ended; the horizon was shortest, "
    "<n:h> timestep«s», at step <int:step> (bound <n:bound>).",
    "Vanishing of <place> since step <int:begin>, until nothing was finite any more at step <int:lost>; the horizon was "
    "shortest, <n:h> timestep«s», at step <int:step> (bound <n:bound>).",
    "Vanishing of <place> from step <int:begin> to step <int:end>; the horizon was shortest, <n:h> timestep«s», "
    "at step <int:step> (bound <n:bound>).",
)
def _episode_of_vanishing(c: Context, m: Words) -> None:
    found = c.between(lambda one: one.horizon, [int(m["step"])])
    if found is not None:
        c.number(m["h"], *found, f"the horizon at step {m['step']}")
    if "lost" in m:
        c.verdict(not c.truth.finite(int(m["lost"])), "that step is finite")


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
    "Explosion through time of <place> since step <int:begin>, not over when training ended; the growth was "
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
