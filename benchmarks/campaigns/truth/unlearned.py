"""Judges of what is said where the loss leads nowhere, the first steps are too long, or a recurrence is not measured."""

from __future__ import annotations

import math
from statistics import median

import torch

from benchmarks.campaigns.truth.remedies import helps
from benchmarks.campaigns.truth.sentences import SAID, Context, place_of
from benchmarks.campaigns.truth.verdicts import Words


def _step(c: Context) -> int:
    return c.truth.steps - 1 if c.event is None else c.event.step


# ------------------------------------------------------------------ a loss that leads nowhere


@SAID("The gradient of every parameter of the model is exactly 0: nothing is learned.")
def _zero(c: Context, m: Words) -> None:
    norms = c.truth.norms[_step(c)]
    c.verdict(bool(norms) and not any(norms.values()), "some gradient is not 0, or there is none")


@SAID("The loss was sent back, and no parameter of the model got a gradient: nothing is learned.")
def _none(c: Context, m: Words) -> None:
    c.verdict(not c.truth.norms[_step(c)], "some parameter got a gradient")


@SAID("It was so <int:often> times in a row, although the loss is <n:loss>.")
def _often(c: Context, m: Words) -> None:
    step = _step(c)
    still = range(step + 1 - int(m["often"]), step + 1)
    c.verdict(all(not any(c.truth.norms[one].values()) for one in still), "it was not")
    c.number(m["loss"], c.truth.losses[step], c.truth.losses[step], "the loss", slack=0.001)


helps(
    ("flat loss",),
    "Look at what the loss is made of, from its end: a factor or a mask of 0, a clamp or a relu on its flat side, a round or an argmax.",
    "Under float16 it may be gradients too small for it: use a loss scale, or bfloat16.",
)
helps(
    ("saturation", "dead relu"),
    "The loss sends a gradient to the hidden states, and none passes from there to a weight: look at the recurrent module and what it is "
    "given.",
    "Gates that are saturated, or relus that are dead, have no slope: standardise the inputs, or begin with smaller weights and a lower "
    "learning rate.",
)
helps(
    ("cut loss",),
    "Look at where the loss lost its graph: a detach(), .item(), .data or numpy() on the way, a new torch.tensor(…) made of its value, "
    "or an output that was computed under no_grad().",
)


# ------------------------------------------------------------------ weights that stay as they are


@SAID("None of the weights of <place:place> changes, although they get a gradient.")
def _unchanged(c: Context, m: Words) -> None:
    c.verdict(not c.truth.moved(m["place"]), "they do")
    if c.case.kind == "cell in a plain list":  # whose weights the model does not know
        return
    norms = c.truth.norms[_step(c)]
    c.verdict(any(norm for name, norm in norms.items() if name.startswith(m["place"])), "they get no gradient")


@SAID("So it was in <int:samples> samples in a row, from step <int:first> on.")
def _unchanged_since(c: Context, m: Words) -> None:
    sampled = [step for step in c.told.sampled if int(m["first"]) <= step <= _step(c)]
    c.number(m["samples"], len(sampled), len(sampled), "samples", slack=0.0)


@SAID(
    "None of them is in an optimizer.",
    "If it is meant to stay as it is, module.requires_grad_(False) says so.",
    "It is not among the model's modules, as what lies in a plain list or dict is not: self.parameters() leaves it out, and neither .to() "
    "nor a checkpoint knows it.",
    "Hold it as an attribute of its own, or in an nn.ModuleList or nn.ModuleDict.",
)
def _outside(c: Context, m: Words) -> None:
    held = c.case.cause != "not in the optimizer" and c.case.kind != "cell in a plain list"
    c.verdict(not held, "the optimizer holds them")


helps(
    ("not in the optimizer",),
    "Give them to the optimizer: those of the whole model, self.parameters(), and not those of a part of it, or of a copy.",
)
helps(
    ("not in the optimizer",),
    "If the module is meant to stay as it is, module.requires_grad_(False) says so, and saves its part of the backward pass.",
)


# ------------------------------------------------------------------ steps that were too long


@SAID(
    "Half of the weight matrices have grown to <n:growth> times their norm or more by the first step: it was too long.",
    "Half of the weight matrices have grown to <n:growth> times their norm or more within <int:steps> steps: these, or one of them, "
    "were too long.",
    "Half of the weight matrices have grown so far that their norm overflows by the first step: it was too long.",
    "Half of the weight matrices have grown so far that their norm overflows within <int:steps> steps: these, or one of them, were too "
    "long.",
)
def _too_long(c: Context, m: Words) -> None:
    step = _step(c)
    c.number(m.get("steps", 1), step, step, "the number of steps before it")
    grown = [one if math.isfinite(one) else math.inf for one in c.truth.growth_of_weights(step)]
    c.verdict(median(grown) > 3, "the weights are near where they began")
    least = float(m.get("growth", 1e15))
    c.verdict(sum(one >= 0.3 * least for one in grown) >= len(grown) / 2, f"fewer have grown so: {sorted(grown)}")


# ------------------------------------------------------------------ recurrences that are not measured


@SAID("a loop behind <name:module>: not observed.", "a loop behind <name:module> was not observed.")
def _behind(c: Context, m: Words) -> None:
    c.verdict(m["module"] in c.case.unmeasured, "there is no such loop")


@SAID(
    "In one step this parameter is used <int:count> times in a row, each time on what hangs on the use before it.",
    "In one step what is made with this parameter joins a chain of operations <int:count> times, each time on top of the time before.",
    "In one step <int:count> slices of a tensor that was made with <name:leaf> join a chain of operations one by one, each on top of "
    "those before.",
)
def _in_a_row(c: Context, m: Words) -> None:
    timesteps = c.truth.before(0)[1][0].shape[1]
    c.verdict(c.case.cause == "unmarked", "there is no loop in tensor operations")
    c.number(m["count"], timesteps - 1, timesteps, "the number of timesteps")


@SAID("In one step it is used <int:count> times, each time on what was made with the use before, but detached.")
def _severed_uses(c: Context, m: Words) -> None:
    timesteps = c.truth.before(0)[1][0].shape[1]
    c.verdict(c.case.cause == "severed", "nothing is detached")
    c.number(m["count"], timesteps, timesteps, "the number of timesteps")


@SAID('If that is a loop over time, mark its state with tap(h, name="…") and it is measured.')
def _if_a_loop(c: Context, m: Words) -> None:
    c.verdict(c.case.cause == "unmarked", "there is no loop in tensor operations")


helps(
    ("unmarked",),
    'Once in each timestep of the loop: h = tap(h, name="…"), with tap from lightning_gradwatch.',
    "If it is a layer that is repeated in depth, or the like, there is nothing to do.",
)


@SAID("Nothing was measured: no recurrent module, cell or tap was found to run.")
def _nothing(c: Context, m: Words) -> None:
    c.verdict(c.case.cause == "nothing recurrent", "there is a recurrence")


# ------------------------------------------------------------------ scans that are marked wrongly


@SAID(
    "From <place:place> on, the states differ from a·h + b of the state before and the inputs that were named, by <n:share> of their "
    "size (rounding explains <n:bound>)."
)
def _mismatch(c: Context, m: Words) -> None:
    net, batch = c.truth.before(_step(c))
    c.verdict(c.case.cause == "scan mismatch" and place_of(m["place"]) is not None, "it is marked rightly")
    with torch.no_grad():
        shares = net["ssm"].mismatch(batch[0])
    c.number(m["share"], float(shares.min()), float(shares.max()), "the share", slack=0.02)
    c.verdict(bool((shares.max(1).values > float(m["bound"])).all()), "some sequence fits")
    c.verdict("timestep 1," in m["place"], "it begins earlier or later")


@SAID("The horizon is not known: the states are not what the marked decay and inputs make.")
def _not_known(c: Context, m: Words) -> None:
    c.verdict(c.case.cause == "scan mismatch", "it is marked rightly")


helps(
    ("scan mismatch",),
    "Compare the parallel form with a loop over the timesteps on one batch, in float64.",
    "If it is right, what was named as decay and inputs is not what the scan is given: a decay of another timestep (off by one), before "
    "its exp or sigmoid, or inputs without their factor (1 − a, Δ).",
)


# ------------------------------------------------------------------ steps that were skipped


@SAID("AdaptiveClip (<name>) skipped <int:skipped> of <int:steps> steps, and clipped none.")
def _skipped(c: Context, m: Words) -> None:
    bad = sum(not math.isfinite(c.truth.norm(step)) for step in range(c.truth.steps))
    c.number(m["skipped"], bad, bad, "the number of steps that are not finite")
    c.number(m["steps"], c.truth.steps, c.truth.steps, "the number of steps")
