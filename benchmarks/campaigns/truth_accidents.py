"""Judges of what is said of numbers that are not finite, of norms that jump, of clipping, and of what is not measured."""

from __future__ import annotations

import math

from benchmarks.campaigns.truth_judge import SAID, Context
from benchmarks.campaigns.truth_verdicts import Words
from lightning_gradwatch import EventKind


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
    if c.truth.first_bad is not None:
        c.number(event.step, c.truth.first_bad, c.truth.steps, "the first step that is not finite")


@SAID("The loss is <n:value> although every recurrent input and state is finite.")
def _loss(c: Context, m: Words) -> None:
    _where(c)
    loss = c.truth.losses[_step(c)]
    c.verdict(not math.isfinite(loss) and m["value"] in (str(loss), "inf" if loss > 0 else "-inf"), f"the loss is {loss}")
    c.verdict(c.case.cause != "bad input", "the input is not finite")


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


@SAID("The hidden state of <place> became <n> in the forward pass, from a finite input.", "The pre-activation of <place> became <n> in the forward pass, from a finite input.")
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


@SAID("The gradient of parameter <name> is <n> although the recurrent states and their gradients are finite.")
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
    before = [c.truth.norm(step) for step in range(_step(c))]
    c.verdict(bool(before) and float(m["norm"]) > max(before[-16:]), "norms were as large before")


@SAID("It is that of all parameters of the recurrent modules.", "It is that of all parameters of the model.")
def _whose(c: Context, m: Words) -> None:
    value = math.nan if c.event is None or c.event.value is None else c.event.value
    true = c.truth.norm(_step(c), recurrent="recurrent" in c.sentence)
    c.number(value, true, true, "that norm", slack=0.01)


@SAID("Explosion of <any> since step <int:begin>, still so when training ended; the gradient norm was largest, <n:norm>, at step <int:step> (bound <n:bound>).", "Explosion of <any> from step <int:begin> to step <int:end>; the gradient norm was largest, <n:norm>, at step <int:step> (bound <n:bound>).")
def _episode(c: Context, m: Words) -> None:
    norm(c, m["norm"], int(m["step"]))


# ------------------------------------------------------------------ AdaptiveClip


@SAID("AdaptiveClip: <int:clipped> of <int:steps> steps clipped, <int:skipped> skipped. Run log: <path>", "AdaptiveClip: <int:clipped> of <int:steps> steps clipped, <int:skipped> skipped.")
def _counts(c: Context, m: Words) -> None:
    skipped = sum(event.kind == EventKind.STEP_SKIPPED for event in c.told.events)
    bad = sum(not math.isfinite(c.truth.norm(step)) for step in range(c.truth.steps))
    c.number(m["skipped"], skipped, skipped, "the number skipped")
    c.number(m["skipped"], bad, bad, "the number of steps that are not finite")


@SAID("The gradient norm <n:norm> was clipped to <n:to>.")
def _clipped(c: Context, m: Words) -> None:
    c.number(m["norm"], c.truth.norm(_step(c)), c.truth.norm(_step(c)), "the norm", slack=0.001)
    c.verdict(float(m["to"]) < float(m["norm"]), "that is no less")


@SAID("An ordinary step stays under <n:bound>.")
def _ordinary(c: Context, m: Words) -> None:
    c.verdict(_step(c) > 0, "there was no step before it")


@SAID("The optimizer step was skipped: the gradient norm is <n:norm>.")
def _skipped(c: Context, m: Words) -> None:
    c.verdict(not math.isfinite(c.truth.norm(_step(c))), "it is finite")


# ------------------------------------------------------------------ what is not measured


@SAID("<name:module> was not observed.")
def _not_observed(c: Context, m: Words) -> None:
    c.verdict(m["module"] in c.case.unmeasured, "it can be measured, or there is no such module")


@SAID("No loss reached its output.", "Its forward was not called in a training step, or no loss reached its output.")
def _no_loss(c: Context, m: Words) -> None:
    c.verdict(c.case.kind == "not in the loss", "a loss reaches it")


@SAID("Its weights have gradients but no hook fired: .forward was called around it, or it was compiled before.")
def _around(c: Context, m: Words) -> None:
    c.verdict(c.case.kind == "cell by .forward", "it was called as it should be")


@SAID("TorchScript holds it (<name>), which takes no hooks.")
def _scripted(c: Context, m: Words) -> None:
    c.verdict(c.case.kind == "cell scripted", "it is not scripted")


@SAID(
    "GradWatch found no recurrent module (nn.RNN, nn.LSTM, nn.GRU, their cells, one of your own, or a tap) in the model and watches nothing."
)
def _nothing_found(c: Context, m: Words) -> None:
    c.verdict(not c.facts(), "there is one")
    own = any(name.startswith("net.cell") or name.startswith("net.rnn") for norms in c.truth.norms for name in norms)
    c.verdict(c.case.cause == "nothing recurrent" or not own, "there is a recurrence")
