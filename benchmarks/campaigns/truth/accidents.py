"""Judges of what is said of numbers that are not finite, of norms that jump, of clipping, and of what is not measured."""

# Over 300 lines: one register: a judge of each sentence about an accident.
from __future__ import annotations

import math
import statistics

from benchmarks.campaigns.truth.sentences import REMEDY, SAID, Context
from benchmarks.campaigns.truth.verdicts import Words, is_finite
from lightning_gradwatch import EventKind
from lightning_gradwatch.events import closes_episode

LONG = 0.2
"""Norms of the parameters. A step that is longer is too long."""

SPOILS_NONE = "The gradients of the weights are finite all the same, so it spoils none."


def _step(c: Context) -> int:
    return c.truth.steps - 1 if c.event is None else c.event.step


def _where(c: Context) -> None:
    """The fields of an event that names where something not finite began, held against where it was planted."""
    event = c.event
    if event is None:
        return
    for name, true in c.case.where.items():
        said = getattr(event, name, None)
        c.verdict(said is None or said == true, f"{name} is {true}")
    c.verdict(event.kind not in c.case.never, f"{event.kind} has no place here")
    alone = event.kind == EventKind.NONFINITE_HIDDEN_GRADIENT and SPOILS_NONE in event.message
    if c.truth.first_bad is not None and event.kind.startswith("NONFINITE") and not alone:
        c.number(event.step, c.truth.first_bad, c.truth.steps, "the first step that is not finite")


@SAID(SPOILS_NONE)
def _spoils_none(c: Context, m: Words) -> None:
    c.verdict(math.isfinite(c.truth.norm(_step(c))), "the gradient of a weight is not finite")
    c.verdict(not is_finite(c, _step(c)), "the gradients of the states are finite too")


@SAID("The loss is <n:value> although every recurrent input and state is finite.", "The loss is <n:value>.")
def _loss(c: Context, m: Words) -> None:
    _where(c)
    loss = c.truth.losses[_step(c)]
    c.verdict(
        not math.isfinite(loss) and m["value"] in (str(loss), "inf" if loss > 0 else "-inf"), f"the loss is {loss}"
    )
    c.verdict(c.case.cause != "bad input", "the input is not finite")


@SAID("The sum of its squares overflows float32.")
def _overflows(c: Context, m: Words) -> None:
    c.verdict(c.truth.norm(_step(c)) > 1.8e19, f"the norm is {c.truth.norm(_step(c)):.3g}")


_ENTRY = "<entry:entry> is <n:value>« (sequence <int:sequence>)»«, one of <int:count> such entries»."


@SAID(
    f"The loss is <n:value> although every recurrent input and state is finite, and the batch holds a NaN: {_ENTRY}".replace(
        "is <n:value>«", "is nan«"
    )
)
def _loss_of_batch(c: Context, m: Words) -> None:
    _loss(c, m)
    _entry(c, m)


@SAID(
    f"The batch itself holds it, or another like it: {_ENTRY}",
    f"The batch holds a number that is not finite, which may or may not enter the loss: {_ENTRY}",
)
def _entry(c: Context, m: Words) -> None:
    c.verdict(m["entry"] == c.case.entry, f"it is {c.case.entry or 'finite'}")
    if "sequence" in m and c.case.entry:
        c.verdict(f"[{m['sequence']}," in c.case.entry, "it is another sequence")


@SAID("No such number was found in the batch.")
def _no_entry(c: Context, m: Words) -> None:
    c.verdict(not c.case.entry, f"{c.case.entry} is one")


@SAID("Suspect, since it lies on the way: <list:names>.")
def _suspect(c: Context, m: Words) -> None:
    named = {one.partition(", which ")[0] for one in m["names"].split("; ")}
    c.verdict(bool(named & set(c.case.culprits)), f"it was {' or '.join(c.case.culprits) or 'none of them'}")


@SAID(
    "The gradient that arrives at <place> from outside the recurrence is <n:value>«, although the loss is "
    "finite (<n:loss>)»."
)
def _arrives(c: Context, m: Words) -> None:
    _where(c)
    c.verdict(c.case.cause == "operation outside", f"it is {c.case.cause}")
    if "loss" in m:
        loss = c.truth.losses[_step(c)]
        c.number(m["loss"], loss, loss, "the loss", slack=0.001)


@SAID("On its way back from the loss, the gradient of <place> became <n:value>.")
def _on_its_way(c: Context, m: Words) -> None:
    _where(c)
    c.verdict(not c.truth.finite(_step(c)), "everything is finite")


@SAID(
    "It was <n:entered> where it came in, and overflowed on the way.",
    "It had grown from <n:entered>, where it came in, to <n:before> at timestep <int:t>, and then overflowed.",
)
def _overflowed(c: Context, m: Words) -> None:
    c.verdict(c.case.cause == "explosion through time", f"it is {c.case.cause}")
    step = [_step(c)]
    at_end = [row[-1] for one in c.facts(steps=step) for row in one.fed]
    if at_end:
        c.number(m["entered"], min(at_end), max(at_end), "what came in", slack=0.02)
    if "t" in m:
        there = [row[int(m["t"])] for one in c.facts(steps=step) for row in one.fed]
        c.number(m["before"], min(there), max(there), "what it had grown to", slack=0.02)


@SAID(
    "The gradient of <place> became <n> in the cell's own arithmetic at timestep <int:t>«, or in what else "
    "uses this state»."
)
def _in_arithmetic(c: Context, m: Words) -> None:
    _where(c)
    c.verdict(c.case.cause == "cell's arithmetic", f"it is {c.case.cause}")


@SAID("The gradient that came back to timestep <int:t> is finite and not large (<n:size>).")
def _not_large(c: Context, m: Words) -> None:
    c.verdict(c.case.cause == "cell's arithmetic", f"it is {c.case.cause}")
    c.verdict(float(m["size"]) < 1e19, "it is large")


@SAID("It began in the cell's own arithmetic.")
def _began_in_cell(c: Context, m: Words) -> None:
    c.verdict(c.case.cause == "cell's arithmetic", f"it is {c.case.cause}")


@SAID("The first such number came out of <name:module>, from a finite input.")
def _came_out(c: Context, m: Words) -> None:
    """A module of the model that made the first number that is not finite."""
    c.verdict(c.case.cause == "cell's arithmetic" and m["module"] == "net.cell", "no module did")


# ------------------------------------------------------------------ divergence


@SAID("The training has diverged: the loss is <n:loss>, and was <n:first> at the start.")
def _has_diverged(c: Context, m: Words) -> None:
    loss, first = c.truth.losses[_step(c)], c.truth.losses[0]
    c.number(m["loss"], loss, loss, "the loss", slack=0.001)
    c.number(m["first"], first, first, "the first loss", slack=0.001)
    c.verdict(loss > 3 * first, f"it rose {loss / first:.3g}-fold")


@SAID("The training had diverged: the loss rose from <n:first> at the start to <n:loss> at step <int:step>.")
def _had_diverged_fast(c: Context, m: Words) -> None:
    loss, first = c.truth.losses[int(m["step"])], c.truth.losses[0]
    c.number(m["loss"], loss, loss, "the loss", slack=0.001)
    c.number(m["first"], first, first, "the first loss", slack=0.001)
    c.verdict(loss > 100 * first, f"it rose {loss / first:.3g}-fold")


@SAID("It has been more than <n:far> times as high for <int:steps> steps.")
def _for_steps(c: Context, m: Words) -> None:
    steps = c.truth.losses[_step(c) - int(m["steps"]) + 1 : _step(c) + 1]
    c.verdict(min(steps) > float(m["far"]) * c.truth.losses[0], f"the least of them is {min(steps):.4g}")


@SAID(
    "Half of the weight matrices have grown to <n:growth> times their norm or more; the gradient norm went "
    "from <n:then> to <n:now>."
)
def _weights_grew(c: Context, m: Words) -> None:
    norm(c, m["then"], 0)
    norm(c, m["now"], _step(c))
    grown = c.truth.growth_of_weights(_step(c))
    c.number(m["growth"], 0.9 * min(grown), max(grown), "their growth", slack=0.02)


@SAID("The loss went from <n:before> to <n:after> within one step, at step <int:step> (batch <int:batch>).")
def _leapt(c: Context, m: Words) -> None:
    step = int(m["step"].replace(",", ""))
    before, after = c.truth.losses[step - 1], c.truth.losses[step]
    c.number(m["before"], before, before, "the loss before", slack=0.001)
    c.number(m["after"], after, after, "the loss", slack=0.001)


@SAID("The training had diverged before, at step <int:step>.")
def _had_diverged(c: Context, m: Words) -> None:
    c.verdict(_diverged_before(c) == int(m["step"].replace(",", "")), "it had not been told then")


def _diverged_before(c: Context) -> int | None:
    found = [e.step for e in c.told.events if e.kind == EventKind.DIVERGED and not e.action and e.step <= _step(c)]
    return max(found, default=None)


@SAID(
    "Look at what stands between the recurrent output and the loss: a log or a division of 0, an overflowing "
    "exp, a target out of range."
)
def _between(c: Context, m: Words) -> None:
    fits = c.case.cause in ("operation outside", "bad target") or (
        c.case.cause == "divergence" and _diverged_before(c) is None
    )
    if not fits:
        c.wrong(REMEDY, f"against {c.case.cause or 'nothing'} it does not help")


@SAID("The loss, far above its start at step <int:begin>, has come back to <n:loss> by step <int:step>.")
def _came_back(c: Context, m: Words) -> None:
    loss = c.truth.losses[int(m["step"])]
    c.number(m["loss"], loss, loss, "the loss", slack=0.001)


@SAID("Its gradients are finite all the same, so it spoils no weight.")
def _spoils_nothing(c: Context, m: Words) -> None:
    c.verdict(all(map(math.isfinite, c.truth.norms[_step(c)].values())), "gradients are not finite")


@SAID("The input of <place> holds <n:value>.")
def _input(c: Context, m: Words) -> None:
    _where(c)
    c.verdict(c.case.cause == "bad input", "the input is finite")


@SAID("In all, <int:n> places are so.")
def _places(c: Context, m: Words) -> None:
    """How many entries of what was named; more than one."""
    c.number(m["n"], 2, math.inf, "the number of places")


@SAID(
    "The hidden state of <place> became <n> in the forward pass, from a finite input.",
    "The pre-activation of <place> became <n> in the forward pass, from a finite input.",
)
def _state(c: Context, m: Words) -> None:
    _where(c)
    c.verdict(c.case.cause not in ("operation outside", "bad input", "bad target"), f"it is {c.case.cause}")


@SAID("The cause is <weight:weight> = <n>.")
def _cause_is_a_weight(c: Context, m: Words) -> None:
    first = c.truth.first_bad
    c.verdict(first is not None and first < _step(c), "no weight can have been spoilt before")


@SAID("Flowing back through time, the gradient of <place> became <n:value>; nearer to the loss it is finite.")
def _way_back(c: Context, m: Words) -> None:
    _where(c)
    c.verdict(c.case.cause in ("explosion through time", "cell's arithmetic"), f"it is {c.case.cause}")


@SAID("It arrives there from outside the recurrence.")
def _from_outside(c: Context, m: Words) -> None:
    c.verdict(c.case.cause == "operation outside", f"it is {c.case.cause}")


@SAID(
    "The gradient of parameter <name> is <n> although the recurrent states and their gradients are finite.",
    "The gradient of parameter <name> is <n>, although the loss is finite.",
)
def _parameter(c: Context, m: Words) -> None:
    _where(c)
    c.verdict(not c.truth.finite(_step(c)), "it is finite")


# ------------------------------------------------------------------ norms


def norm(c: Context, said: str, step: int) -> None:
    """The norm of all gradients of a step, or of the recurrent modules' alone."""
    found = sorted((c.truth.norm(step), c.truth.norm(step, recurrent=True)))
    near = min(found, key=lambda value: abs(value - float(said)))
    c.number(said, near, near, "the norm", slack=0.01)


@SAID("The gradient norm of <any> jumped to <n:norm>; an ordinary step stays under <n:bound>.")
def _jump(c: Context, m: Words) -> None:
    _where(c)
    norm(c, m["norm"], _step(c))
    found = [[c.truth.norm(step, recurrent) for step in range(_step(c))] for recurrent in (False, True)]
    c.verdict(any(before and float(m["norm"]) > max(before[-16:]) for before in found), "norms were as large before")


@SAID(
    "The gradient norm of <any> jumped to <n:norm> and the loss to <n:loss>; the largest of the <int:steps> steps before "
    "were <n:than> and <n:was>.",
    "The gradient norm of <any> rose to <n:norm> and the loss to <n:loss>; at the first <int:steps> steps they were at most "
    "<n:than> and <n:was>.",
    "The gradient norm of <any> jumped to <n:norm>; the largest of the <int:steps> steps before was <n:than>.",
)
def _leap(c: Context, m: Words) -> None:
    """The loss is only said where it leaps, too."""
    _where(c)
    norm(c, m["norm"], _step(c))
    if "loss" in m:
        loss = c.truth.losses[_step(c)]
        c.number(m["loss"], loss, loss, "the loss", slack=0.001)
        c.verdict(loss > 20 * float(m["was"]), "the loss does not stand out")
    c.verdict(float(m["norm"]) > 2 * float(m["than"]), "the norm does not stand out")


@SAID("The gradients grew as the loss did: it seems to be the loss itself that is larger.")
def _multiplied(c: Context, m: Words) -> None:
    losses = c.truth.losses[: _step(c) + 1]
    c.verdict(losses[-1] > 5 * losses[-2], "the loss is as it was")


@SAID(
    "That of <name:parameter> grew most: to <n:norm> from <n:before> at the step before.",
    "That of <name:parameter> grew most: to <n:norm> from <n:before> <int:back> steps before.",
)
def _grew_most(c: Context, m: Words) -> None:
    now, then = c.truth.norms[_step(c)], c.truth.norms[_step(c) - int(m.get("back", 1))]
    c.verdict(float(m["norm"]) > float(m["before"]), "it has not grown")
    name = m["parameter"]
    c.verdict(name in now, "there is no such parameter")
    if name in now:
        c.number(m["norm"], now[name], now[name], "its norm", slack=0.01)
        c.number(m["before"], then[name], then[name], "its norm before", slack=0.01)


@SAID("It is that of all parameters of the recurrent modules.", "It is that of all parameters of the model.")
def _whose(c: Context, m: Words) -> None:
    value = math.nan if c.event is None or c.event.value is None else c.event.value
    true = c.truth.norm(_step(c), recurrent="recurrent" in c.sentence)
    c.number(value, true, true, "that norm", slack=0.01)


@SAID(
    "Jump of the gradient norm of <any> since step <int:begin>, not over when training ended; it was largest, "
    "<n:norm>, at step <int:step> (bound <n:bound>).",
    "Jump of the gradient norm of <any> from step <int:begin> to step <int:end>«: it came and went <int:times> times, so it is "
    "part of this run, and is told no more»; it was largest, <n:norm>, at step <int:step> (bound <n:bound>).",
)
def _episode(c: Context, m: Words) -> None:
    norm(c, m["norm"], int(m["step"]))


# ------------------------------------------------------------------ AdaptiveClip


@SAID(
    "AdaptiveClip: <int:clipped> of <int:steps> steps clipped, <int:skipped> skipped. Run log: <path>",
    "AdaptiveClip: <int:clipped> of <int:steps> steps clipped, <int:skipped> skipped.",
)
def _counts(c: Context, m: Words) -> None:
    skipped = sum(event.kind == EventKind.STEP_SKIPPED for event in c.told.events)
    bad = sum(not math.isfinite(c.truth.norm(step)) for step in range(c.truth.steps))
    c.number(m["skipped"], skipped, skipped, "the number skipped")
    c.number(m["skipped"], bad, bad, "the number of steps that are not finite")


@SAID(
    "Clipping: none.",
    "Clipping: never acted.",
    "Clipping: step limiter.",
    "Clipping: undecided.",
    "Clipping: safety net.",
)
def _clipping(c: Context, m: Words) -> None:
    """What follows says why."""


@SAID(
    "On the <int:looked> steps looked at, of <int:steps>, the optimizer got the gradient as the backward pass had left it.",
    "On the one step looked at, of <int:steps>, the optimizer got the gradient as the backward pass had left it.",
    "AdaptiveClip (<name>) clipped none of <int:steps> steps.",
    "AdaptiveClip (<name>) made the gradient smaller on <int:looked> of <int:steps> steps, to <n> of itself in the median: it, "
    "not the gradient, sets the length of the steps.",
)
def _looked_at(c: Context, m: Words) -> None:
    c.number(m["steps"], 1, c.truth.steps, "the number of steps")
    c.number(m.get("looked", "1"), 1, int(m["steps"].replace(",", "")), "the number of steps looked at")


@SAID(
    "The gradient norm« of the <int:looked> step«s» looked at»: median <n:norm>, largest <n:largest>.",
    "The gradient norm was <n:norm>.",
)
def _norms_looked_at(c: Context, m: Words) -> None:
    norms = [norm for step in range(c.truth.steps) if math.isfinite(norm := math.hypot(*c.truth.held_norms(step)))]
    if "looked" in m:
        c.number(m["looked"], 1, len(norms), "the number of steps looked at")
    for name in m.keys() - {"looked"} if norms else ():
        c.number(m[name], min(norms), max(norms), "the norm", slack=0.01)


@SAID("No optimizer step could be looked at: none of the parameters that it was given had a gradient.")
def _no_gradient(c: Context, m: Words) -> None:
    c.verdict(not any(c.truth.held_norms(step) for step in range(c.truth.steps)), "some parameter had one")


@SAID("No optimizer step could be looked at: no step was taken with a finite gradient.")
def _nothing_looked_at(c: Context, m: Words) -> None:
    c.verdict(
        any(not (c.truth.norms[step] and c.truth.finite(step)) for step in range(c.truth.steps)),
        "every gradient is finite",
    )


@SAID(
    "Clipping acts on most of the steps.",
    "Nothing to do if that is meant, as with a percentile or a fixed norm.",
    "Else use AdaptiveClip(), whose default acts on explosions alone, and lower the learning rate if it then acts at most steps too.",
)
def _limits(c: Context, m: Words) -> None:
    c.verdict(c.case.cause in ("divergence", "outlier"), "it acts on few")


@SAID(
    "Explosions through time go on in this run (told from step <int:begun> on), so limiting its steps may be what it needs.",
    "Explosions through time go on in this run (told <int:times> times since step <int:begun>), so limiting its steps may be "
    "what it needs.",
)
def _explosions_go_on(c: Context, m: Words) -> None:
    begins = [
        event.step
        for event in c.told.events
        if event.kind == EventKind.EXPLODING_HIDDEN_GRADIENT and not closes_episode(event.to_record())
    ]
    c.number(m["begun"], min(begins, default=-1), min(begins, default=-1), "the step of the first")
    c.number(m.get("times", "1"), len(begins), len(begins), "the number of explosions told")


@SAID(
    "The alternative is AdaptiveClip(policy=Norm(max_norm=<n:bound>)): that is the 10th percentile of the norms which the "
    "optimizer got on the <int:looked> steps looked at."
)
@SAID("Leave the bound where it is, and lower the learning rate if the loss jumps.")
@SAID("Lower the learning rate if the loss jumps.")
def _norm_instead(c: Context, m: Words) -> None:
    norms = sorted(n for step in range(c.truth.steps) if math.isfinite(n := math.hypot(*c.truth.held_norms(step))))
    if "bound" in m and int(m["looked"]) == len(norms):  # what it got is at most what there was
        c.number(
            m["bound"], 0.0, statistics.quantiles(norms, n=10, method="inclusive")[0], "the 10th percentile", slack=0.06
        )


@SAID("The gradient norm <n:norm> was clipped to <n:to>.")
def _clipped(c: Context, m: Words) -> None:
    c.number(m["norm"], c.truth.norm(_step(c)), c.truth.norm(_step(c)), "the norm", slack=0.001)
    c.verdict(float(m["to"]) < float(m["norm"]), "that is no less")


@SAID(
    "AdaptiveClip has clipped <int:clipped> of <int:steps> gradients: clipping has become the rule, and the run "
    "does not come to rest between "
    "explosions."
)
def _habit(c: Context, m: Words) -> None:
    c.number(m["steps"], 50, _step(c) + 1, "the number of steps")  # said as soon as it has become the rule
    c.verdict(int(m["steps"]) >= int(m["clipped"]) >= 0.8 * int(m["steps"]), "it is not the rule")


@SAID(
    "It is the first step: <n:bound> is a bound that follows from this step alone: the parameters' size and the loss."
)
def _first_step(c: Context, m: Words) -> None:
    c.verdict(_step(c) == 0, "there were steps before it")


@SAID("An ordinary step stays under <n:bound>.")
def _ordinary(c: Context, m: Words) -> None:
    c.verdict(_step(c) > 0, "there was no step before it")


@SAID("The step would have been too long beside the parameters.")
def _too_long(c: Context, m: Words) -> None:
    """Whatever the norms before it were: where every step explodes, they are no smaller."""
    length = c.truth.step_length(_step(c))
    c.verdict(length > 0.9 * LONG, f"its length is {length:.3g} of the parameters' norm")
    c.verdict(c.case.optimizer == "SGD", "the length of its steps does not follow from the gradient's norm")


@SAID("Its norm is out of the ordinary.")
@SAID("Steps before it exploded, and large ones are shortened for a while.")
@SAID("It grew through time: many times as much as it ordinarily does.")
def _why_clipped(c: Context, m: Words) -> None:
    usual = sorted(c.truth.norm(step) for step in range(_step(c)))
    c.verdict(not usual or c.truth.norm(_step(c)) > usual[len(usual) // 2], "its norm is an ordinary one")


@SAID("Its norm is out of the ordinary, and so is its loss.")
def _why_clipped_with_its_loss(c: Context, m: Words) -> None:
    _why_clipped(c, m)
    usual = sorted(abs(loss) for loss in c.truth.losses[: _step(c)])
    c.verdict(bool(usual) and abs(c.truth.losses[_step(c)]) > usual[len(usual) // 2], "its loss is an ordinary one")


@SAID("The optimizer step was skipped: the gradient norm is <n:norm>.")
def _skipped(c: Context, m: Words) -> None:
    c.verdict(not math.isfinite(c.truth.norm(_step(c))), "it is finite")


# ------------------------------------------------------------------ what is not measured


@SAID("<name:module> was not observed.")
def _not_observed(c: Context, m: Words) -> None:
    c.verdict(m["module"] in c.case.unmeasured, "it can be measured, or there is no such module")


@SAID(
    "It was called only where gradients are switched off, by no_grad() or inference_mode().",
    "If it should be trained, call it outside of no_grad(); if not, there is nothing to do.",
)
def _without_grad(c: Context, m: Words) -> None:
    c.verdict(c.case.culprits == ("no_grad",), "gradients are on")


@SAID("No loss reached its output.", "Its forward was not called in a training step, or no loss reached its output.")
def _no_loss(c: Context, m: Words) -> None:
    c.verdict(c.case.kind == "not in the loss" or c.case.cause == "cut loss", "a loss reaches it")


@SAID(
    "Its weights have gradients but no hook fired: other code computed with them, .forward was called around it, "
    "or it was compiled before."
)
def _around(c: Context, m: Words) -> None:
    c.verdict(c.case.kind == "cell by .forward", "it was called as it should be")


@SAID("TorchScript holds it (<name>), and takes no hooks.")
def _scripted(c: Context, m: Words) -> None:
    c.verdict(c.case.kind == "cell scripted", "it is not scripted")


@SAID(
    "GradWatch found no recurrent module (nn.RNN, nn.LSTM, nn.GRU, their cells, one of your own, or a tap) in "
    "the model: it only looks for "
    "NaN and inf from now on."
)
def _nothing_found(c: Context, m: Words) -> None:
    c.verdict(not c.facts(), "there is one")
    own = any(name.startswith(("net.cell", "net.rnn")) for norms in c.truth.norms for name in norms)
    c.verdict(c.case.cause == "nothing recurrent" or not own, "there is a recurrence")
