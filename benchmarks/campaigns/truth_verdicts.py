"""Judges of the closing lines, and of what is said of a gradient on its way back through time."""

from __future__ import annotations

import math
from statistics import mean

from benchmarks.campaigns.truth_judge import SAID, VERDICT, Context, place_of
from benchmarks.campaigns.truth_oracle import Facts
from lightning_gradwatch.events import closes_episode

FEW = 0.25
"""Of a direction's timesteps. Fewer are few."""

GROWN = 100.0
"""Growth over this is an explosion, a fall under its inverse the end of the horizon."""

RISEN = 10.0
"""A loss so many times as large as any of the first ones is no healthy run's."""

Words = dict[str, str]


def _late(c: Context) -> list[Facts]:
    """What is true at the samples of the last half of the run, and at its last three."""
    steps = c.steps()
    late = [step for step in steps if step >= c.truth.steps / 2]
    return c.facts(steps=late if len(late) >= 3 else steps[-3:])


def _risen(c: Context) -> float:
    first, last = c.truth.losses[:3], c.truth.losses[-3:]
    return mean(last) / max(map(abs, first)) if all(map(math.isfinite, first + last)) and any(first) else math.nan


def _healthy(c: Context, m: Words) -> None:
    c.verdict(c.case.cause not in ("saturation", "severed"), f"it suffers from {c.case.cause}")
    c.verdict(math.isfinite(c.truth.losses[-1]), "the loss is not finite")
    c.verdict(not _risen(c) > RISEN, f"the loss rose {_risen(c):.3g}-fold")
    for one in _late(c)[-1:]:
        c.verdict(one.horizon[1] >= 0.5 * _due(one), f"the horizon is {one.horizon} of {one.timesteps}")
        c.verdict(one.growth[0] <= GROWN, f"it grows {one.growth[0]:.3g}-fold")
        c.verdict(one.reached[1] > FEW * one.timesteps or one.timesteps <= 2, f"{one.reached} of {one.timesteps} timesteps get a gradient")
        c.verdict(bool(one.fed), "no gradient reaches it")


def _due(one: Facts) -> int:
    """The timesteps at or before the last one that the loss reaches."""
    return one.reached[0] or one.timesteps


def _vanishing(c: Context, m: Words) -> None:
    late = _late(c)
    c.verdict(not late or any(one.horizon[0] < 0.5 * one.timesteps for one in late), "the horizon is long")
    c.verdict(c.case.cause not in ("severed", "short reach"), f"it is {c.case.cause}")


def _exploding(c: Context, m: Words) -> None:
    late = _late(c)
    c.verdict(not late or any(one.growth[1] > GROWN for one in late), "it does not grow so")


def _not_finite(c: Context, m: Words) -> None:
    bad = [step for step in range(c.truth.steps) if not c.truth.finite(step)]
    c.verdict(bool(bad), "everything is finite")


def _barely(c: Context, m: Words) -> None:
    late = _late(c)
    few = any(one.reached[0] <= max(1, FEW * one.timesteps) for one in late)
    c.verdict(not late or few or c.case.cause == "few sequences", "more than few are reached")


def _saturated(c: Context, m: Words) -> None:
    late = _late(c)
    c.verdict(not late or any(one.gates is None or one.gates < 0.05 for one in late), "gradient reaches the gates")
    c.verdict(c.case.cause == "saturation", "nothing is saturated")


def _diverged(c: Context, m: Words) -> None:
    c.verdict(c.case.cause in ("divergence", "outlier") and _peak(c) > 3, f"the loss rose {_peak(c):.3g}-fold at most")


def _peak(c: Context) -> float:
    losses = [abs(loss) for loss in c.truth.losses if math.isfinite(loss)]
    return max(losses) / max(losses[0], 1e-30)


def _severed(c: Context, m: Words) -> None:
    late = _late(c)
    c.verdict(all(one.severed or one.timesteps == 1 for one in late), "something flows")


def _unseen(c: Context, m: Words) -> None:
    late = _late(c)
    seen = any(one.fed and one.timesteps > 1 for one in late)
    c.verdict(c.case.cause == "unmeasured" or not seen, "it gets a gradient over more than one timestep")


def _undecided(c: Context, m: Words) -> None:
    """True of anything, if its reason is."""


_VERDICTS = {
    "healthy": _healthy,
    "vanishing": _vanishing,
    "shortened": _vanishing,
    "exploding": _exploding,
    "not finite": _not_finite,
    "undecided": _undecided,
    "not observed": _unseen,
    "barely reached": _barely,
    "saturated": _saturated,
    "diverged": _diverged,
    "nothing flows through time": _severed,
}


@SAID("<place:place> (<name>): <any:verdict>.", "<place:place>: <any:verdict>.")
def _line(c: Context, m: Words) -> None:
    c.place = place_of(m["place"])
    c.line = m["verdict"]
    judge = _VERDICTS.get(m["verdict"])
    if judge is None:
        c.wrong(VERDICT, "no such verdict is known")
    else:
        judge(c, m)


@SAID("GradWatch: how far the gradient reaches back through time", "gradwatch <name> <path>")
def _plain(c: Context, m: Words) -> None:
    """Says nothing of the network."""


@SAID("No events.")
def _no_events(c: Context, m: Words) -> None:
    c.verdict(not _counted(c), f"there are {len(_counted(c))}")


def _counted(c: Context) -> list[str]:
    own = [e for e in c.told.events if e.kind not in ("STEP_SKIPPED", "GRADIENT_CLIPPED")]
    return [str(e.severity) for e in own if not closes_episode(e.to_record())]


_NOUNS = {"critical event": "critical", "warning": "warning", "note": "info"}


def _count(c: Context, number: str, noun: str) -> None:
    true = _counted(c).count(_NOUNS[noun.removesuffix("s")])
    c.number(number, true, true, f"the number of {noun}")


@SAID("<int:n> <any:noun>, the first at step <int:step>: <kind:kind>, <any:said>.")
def _told(c: Context, m: Words) -> None:
    _count(c, m["n"], m["noun"])
    _quoted(c, m)


@SAID("<int:n> notes.", "<int:n> note.", "Besides <int:n> note.", "Besides <int:n> notes.")
def _notes(c: Context, m: Words) -> None:
    _count(c, m["n"], "note")


@SAID("Besides <int:n> warning.", "Besides <int:n> warnings.")
def _warnings(c: Context, m: Words) -> None:
    _count(c, m["n"], "warning")


@SAID("Besides <int:n> warning«s» and <int:notes> note«s».")
def _both(c: Context, m: Words) -> None:
    _count(c, m["n"], "warning")
    _count(c, m["notes"], "note")


@SAID("First came <kind:kind> at step <int:step>: <any:said>.")
def _quoted(c: Context, m: Words) -> None:
    same = [e for e in c.told.events if e.kind == m["kind"] and e.step == int(m["step"].replace(",", ""))]
    c.verdict(any(e.message.lower().startswith(m["said"].lower()) for e in same), "no event says so")


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


@SAID("The gradient falls under 1 % after <n:h> of <int:t> timesteps (growth rate <n:rate> nats per timestep)«: what lies further back is not learned».")
@SAID("The gradient falls under 1 % after <n:h> of <int:t> timesteps«: what lies further back is not learned».")
def _falls(c: Context, m: Words) -> None:
    horizon(c, m["h"])
    timesteps(c, m["t"])
    rate(c, m)
    if "not learned" in c.sentence:
        _starve(c)


def _starve(c: Context) -> None:
    late = _late(c)
    c.verdict(not late or any(one.starving[1] > 0 for one in late), "no timestep starves")


_ENOUGH = "every timestep has a loss near enough, so it matters only if the task needs a longer memory."


@SAID(f"The gradient falls under 1 % after <n:h> of <int:t> timesteps (growth rate <n:rate> nats per timestep); {_ENOUGH}", f"The gradient falls under 1 % after <n:h> of <int:t> timesteps; {_ENOUGH}")
def _falls_as_a_note(c: Context, m: Words) -> None:
    _falls(c, m)
    enough(c, m)


@SAID("Every timestep has a loss near enough to learn from; it matters if the task needs a longer memory.")
def enough(c: Context, m: Words) -> None:
    late = _late(c)
    c.verdict(not late or any(one.starving[0] == 0 for one in late), "the first timesteps starve")


@SAID("The gradient falls under 1 % after <n:h> of <int:t> timesteps (growth rate <n:rate> nats per timestep); at step <int:step> it reached <int:before>, as learning may leave it.")
@SAID("The gradient falls under 1 % after <n:h> of <int:t> timesteps; at step <int:step> it reached <int:before>, as learning may leave it.")
def _shortened(c: Context, m: Words) -> None:
    _falls(c, m)
    _reached_at(c, m["before"], int(m["step"]))


def _reached_at(c: Context, said: str, step: int) -> None:
    found = c.between(lambda one: (min(one.horizon[0], one.timesteps - 1), min(one.horizon[1], one.timesteps - 1)), [step])
    if found is not None:
        c.number(said, *found, f"the horizon at step {step}")


@SAID("The gradient falls under 1 % after <n:h> of <int:t> timesteps (growth rate <n:rate> nats per timestep), but <int:samples> sample«s» cannot tell whether it stays so.")
def _too_few(c: Context, m: Words) -> None:
    _falls(c, m)


@SAID("The gradient stays above 1 % for all of the <int:t> timesteps (growth rate <n:rate> nats per timestep).", "The gradient stays above 1 % for all of the <int:t> timesteps.")
def _outlives(c: Context, m: Words) -> None:
    late = _late(c)
    c.verdict(not late or any(math.isinf(one.horizon[1]) for one in late), "it falls under 1 %")
    c.verdict(not late or any(one.reached[1] == one.timesteps for one in late), "not all timesteps get a gradient")
    timesteps(c, m["t"])
    rate(c, m)


@SAID("The gradient stays above 1 % for all of the <int:seen> timesteps over which it could be followed, of <int:t> (growth rate <n:rate> nats per timestep).", "The gradient stays above 1 % for all of the <int:seen> timesteps over which it could be followed, of <int:t>.")
def _outlives_what_is_seen(c: Context, m: Words) -> None:
    timesteps(c, m["t"])
    rate(c, m)
    found = c.between(lambda one: one.reached)
    if found is not None:
        c.number(m["seen"], 1, found[1], "how far it can be followed")


@SAID("The gradient grows <n:growth>-fold within <int:t> timesteps (growth rate <n:rate> nats per timestep).", "The gradient grows <n:growth>-fold within <int:t> timesteps.")
def _grows(c: Context, m: Words) -> None:
    timesteps(c, m["t"])
    rate(c, m)
    growth(c, m["growth"])


def growth(c: Context, said: str) -> None:
    """How many-fold a gradient grows on its way."""
    found = c.between(lambda one: one.growth)
    if found is not None:
        c.number(said, *found, "the growth", slack=0.02)


@SAID("From step <int:step> on the gradient is not finite.", "In the last sample, of step <int:step>, the gradient is not finite.")
def _lost(c: Context, m: Words) -> None:
    c.verdict(not c.truth.finite(int(m["step"])), "it is finite there")


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
    late = _late(c)
    c.verdict(not late or any(one.horizon[0] < 0.5 * one.timesteps for one in late), "the horizon is long")


@SAID("The sequences have <int:t>; so it was in <int:samples> samples in a row, growth rate <n:rate> nats per timestep.", "The sequences have <int:t>; so it was in <int:samples> samples in a row.")
def _so_it_was(c: Context, m: Words) -> None:
    timesteps(c, m["t"])
    rate(c, m)
    c.number(m["samples"], 1, len(c.steps()), "the number of samples")


@SAID("The <int:hungry> timesteps furthest from the loss get under 1 % of the largest gradient: nothing is learned from them.")
def _starving(c: Context, m: Words) -> None:
    found = c.between(lambda one: one.starving)
    if found is not None:
        c.number(m["hungry"], *found, "the number of starving timesteps")


@SAID("Earlier it reached <int:before>; if the loss is low by now, it was enough.")
def _earlier(c: Context, m: Words) -> None:
    found = c.between(lambda one: (0, min(one.horizon[1], one.timesteps - 1)))
    if found is not None:
        c.number(m["before"], *found, "the furthest horizon")


@SAID("Vanishing of <place> since step <int:begin>, still so when training ended; the horizon was shortest, <n:h> timesteps, at step <int:step> (bound <n:bound>).", "Vanishing of <place> from step <int:begin> to step <int:end>; the horizon was shortest, <n:h> timesteps, at step <int:step> (bound <n:bound>).")
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


@SAID("It outgrows the bound <int:over> timesteps back from the loss and is largest <int:at> back, in sequences of <int:t> (<n:rate> nats per timestep).", "It outgrows the bound <int:over> timesteps back from the loss and is largest <int:at> back, in sequences of <int:t>.")
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


@SAID("Explosion through time of <place> since step <int:begin>, still so when training ended; the growth was largest, <n:growth>-fold, at step <int:step> (bound <n:bound>).", "Explosion through time of <place> from step <int:begin> to step <int:end>; the growth was largest, <n:growth>-fold, at step <int:step> (bound <n:bound>).")
def _episode_of_growth(c: Context, m: Words) -> None:
    found = c.between(lambda one: one.growth, [int(m["step"])])
    if found is not None:
        c.number(m["growth"], *found, f"the growth at step {m['step']}", slack=0.02)


@SAID("No gradient flows through time in <place>: its state is reset or detached at every step.")
def _nothing_flows(c: Context, m: Words) -> None:
    c.verdict(all(one.severed for one in c.facts()), "something flows")
    c.verdict(c.case.cause == "severed", "the state is passed on")


# ------------------------------------------------------------------ how many timesteps the loss reaches


def reached(c: Context, said: str) -> None:
    """Of a direction's own timesteps."""
    found = c.between(lambda one: one.reached if one.fed else None)
    if found is not None:
        c.number(said, *found, "the number of timesteps reached")


@SAID("The loss reaches <place> at <int:n> of its timesteps only.")
def _reaches(c: Context, m: Words) -> None:
    _barely(c, m)
    reached(c, m["n"])


@SAID("It does so at its own first step; the other <int:rest> of <int:t> get no gradient at all« in <int:samples> samples in a row».", "It does so at its own first <int:n> steps; the other <int:rest> of <int:t> get no gradient at all« in <int:samples> samples in a row».")
def _does_so(c: Context, m: Words) -> None:
    reached(c, m.get("n", "1"))
    timesteps(c, m["t"])
    c.number(m["rest"], *(2 * [int(m["t"].replace(",", "")) - int(m.get("n", "1"))]), "the rest")


@SAID("This direction begins at the sequence's end, and the loss reads it where it has just begun.")
def _just_begun(c: Context, m: Words) -> None:
    c.verdict(c.place is not None and c.place[2] == "reverse", "it is the forward direction")
    _barely(c, m)


@SAID("The loss reaches it at its own first step only; the other <int:rest> of <int:t> timesteps get no gradient.", "The loss reaches it at its own first <int:n> steps only; the other <int:rest> of <int:t> timesteps get no gradient.")
def _reaches_it(c: Context, m: Words) -> None:
    _does_so(c, m)


@SAID("Hardly any of its states gets a gradient.")
def _hardly_any(c: Context, m: Words) -> None:
    late = _late(c)
    c.verdict(not late or any(len(one.fed) * 4 <= len(one.total) for one in late), "many sequences get one")


@SAID("Of the <int:batch> sequences of a batch <int:n> get a gradient.", "Of the <int:batch> sequences of a batch <int:n> gets a gradient.")
def _with_gradient(c: Context, m: Words) -> None:
    found = c.between(lambda one: (len(one.fed), len(one.fed)))
    batch = c.between(lambda one: (len(one.total), len(one.total)))
    if found is not None and batch is not None:
        c.number(m["n"], *found, "the number of sequences with a gradient")
        c.number(m["batch"], *batch, "the number of sequences")


@SAID("The module has batch_first=False and took its input for <int:t> timesteps of <int:batch> sequences: if <int:perhaps> is the number of timesteps, batch_first=True was forgotten.")
def _batch_first(c: Context, m: Words) -> None:
    timesteps(c, m["t"])
    c.number(m["perhaps"], *(2 * [int(m["batch"])]), "what it took for sequences")


# ------------------------------------------------------------------ saturation


def gates(c: Context, said: str) -> None:
    """The share of the gradient that the loss sends which reaches the gates."""
    found = c.between(lambda one: None if one.gates is None else (one.gates, one.gates))
    if found is not None:
        c.number(said, found[0], found[1], "the share", slack=0.5)


_GATE_WORDS = "Hardly any gradient reaches the weights of <place>: <n:share> of what the loss sends to its hidden states (bound <n:bound>)."


@SAID(_GATE_WORDS)
def _gates_saturated(c: Context, m: Words) -> None:
    _saturated(c, m)
    gates(c, m["share"])


@SAID("Saturation of <place> since step <int:begin>, still so when training ended; the share that reached the gates was smallest, <n:share>, at step <int:step> (bound <n:bound>).", "Saturation of <place> from step <int:begin> to step <int:end>; the share that reached the gates was smallest, <n:share>, at step <int:step> (bound <n:bound>).")
def _episode_of_saturation(c: Context, m: Words) -> None:
    gates(c, m["share"])


@SAID("Hardly any gradient reaches its weights: <any>.")
def _hardly_any_gradient(c: Context, m: Words) -> None:
    _saturated(c, m)


@SAID("Saturated: <list:gates>.")
def _which_gates(c: Context, m: Words) -> None:
    _saturated(c, m)


@SAID("The inputs are large: |x| has the median <n:typical> and the maximum <n:largest>, and <int:share> % of what enters the gates comes from them.")
def _inputs_are_large(c: Context, m: Words) -> None:
    c.verdict(c.case.cause == "saturation", "they are not")
    sizes = c.truth.input_sizes()
    c.number(m["largest"], min(s[1] for s in sizes), max(s[1] for s in sizes), "the largest input", slack=0.01)
    c.number(m["typical"], 0.5 * min(s[0] for s in sizes), 2 * max(s[0] for s in sizes), "the median input")


@SAID("Most of it is channel <int:channel>: mean <n:mean>, standard deviation <n:std>.")
def _one_channel(c: Context, m: Words) -> None:
    c.verdict(c.case.cause == "saturation", "it is not")


@SAID("In the only sample <n:share> of what the loss sends to its hidden states reaches its weights; one cannot tell whether it stays so.")
def _one_sample(c: Context, m: Words) -> None:
    gates(c, m["share"])


# ------------------------------------------------------------------ padding


_PADDED = "the <int:padded> timesteps before the loss have equal inputs, as padding has, and have to be crossed first."


@SAID(f"The gradient falls under 1 % after <n:h> of <int:t> timesteps« (growth rate <n:rate> nats per timestep)»: {_PADDED}")
def _falls_in_padding(c: Context, m: Words) -> None:
    _falls(c, m)
    _padding(c, m)


def _padding(c: Context, m: Words) -> None:
    c.verdict(c.case.cause == "padding", "there is none in the way")
    found = [length for length in c.truth.padding()]
    if found:
        c.number(m["padded"], min(found), max(found), "the padding")


@SAID("In most sequences the last <int:padded> timesteps (median) have equal inputs, as padding has, and the loss sits behind them: the gradient has to cross them before it reaches any other input.")
def _crossed(c: Context, m: Words) -> None:
    _padding(c, m)


@SAID("Only <int:real> of them count here: at the others the inputs are equal, as in padding, and nothing is lost.")
def _real(c: Context, m: Words) -> None:
    found = c.truth.padding()
    t = c.between(lambda one: (one.timesteps, one.timesteps))
    c.verdict(bool(found), "no inputs are equal")
    if found and t:
        c.number(m["real"], t[0] - max(found), t[1] - min(found), "what is left")


@SAID("The loss is down to <n:loss> from <n:first>: what the task needs may well be within reach.")
def _low(c: Context, m: Words) -> None:
    loss, first = c.truth.losses[c.steps()[-1]], c.truth.losses[0]
    c.number(m["loss"], min(c.truth.losses), max(c.truth.losses), "the loss", slack=0.05)
    c.number(m["first"], first, first, "the first loss", slack=0.05)
    c.verdict(loss < 0.2 * first, "it is not low")


# ------------------------------------------------------------------ states that are severed


@SAID("No gradient flows through time in <place>.")
def _nothing_flows_in(c: Context, m: Words) -> None:
    c.place = place_of(m["place"]) if m.get("place") else c.place
    _nothing_flows(c, m)


@SAID("In each of its <int:n> calls the state that comes in is that of an earlier call, but detached.", "Each of its <int:n> calls takes one timestep and begins anew, <list>.")
def _how_severed(c: Context, m: Words) -> None:
    found = c.between(lambda one: (one.timesteps, one.timesteps))
    if found is not None:
        c.number(m["n"], *found, "the number of calls")
    c.verdict(c.case.cause == "severed", "the state is passed on")
