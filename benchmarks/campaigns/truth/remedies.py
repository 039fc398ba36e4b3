"""Judges of remedies: each sentence, and the causes that it helps against. What is conditional has to be true under its condition."""

# Over 300 lines: one register: a judge of each sentence of a remedy.
from __future__ import annotations

import math
from collections.abc import Collection

from benchmarks.campaigns.truth.sentences import REMEDY, SAID, Check, Context
from benchmarks.campaigns.truth.verdicts import Words

GROWTH = ("explosion through time", "outlier", "divergence")
OUTSIDE = ("operation outside",)
ARITHMETIC = ("cell's arithmetic",)
VANISHING = ("vanishing", "padding")
NONFINITE = (*OUTSIDE, *ARITHMETIC, "bad input", "bad target", "explosion through time", "divergence")


def helps(causes: Collection[str], *patterns: str) -> Check:
    """Sentences that fit these causes and no other."""

    def check(c: Context, m: Words) -> None:
        fits = c.case.cause in causes or _is_conditional(c) or ("vanishing" in causes and _vanishes_all_the_same(c))
        if not fits:
            c.wrong(REMEDY, f"against {c.case.cause or 'nothing'} it does not help")

    return SAID(*patterns)(check)


def _is_conditional(c: Context) -> bool:
    """Whether advice is given for the case only that equal inputs are no padding, after what helps where they are."""
    return c.case.cause == "padding" and c.event is not None and "Only if they belong to the task:" in c.event.remedy


def _vanishes_all_the_same(c: Context) -> bool:
    """Whether in a run in which nothing is wrong, or no longer, a horizon is short, as a note may say."""
    found = c.facts(steps=[c.event.step]) if c.event is not None else []
    return c.case.cause in ("", "explosion through time") and any(one.horizon[0] < 0.5 * one.timesteps for one in found)


def holds(*patterns: str) -> Check:
    """Sentences that are true whatever the cause."""

    def check(c: Context, m: Words) -> None:
        """Nothing to be held against it."""

    return SAID(*patterns)(check)


holds(
    "AdaptiveClip skips such a step.",
    "AdaptiveClip skips steps whose gradients are not finite.",
    "Weights and optimizer state are as they were.",
    "A single one is harmless; if it goes on, the events before it name the place where it began.",
    "A hidden state that the module carries from batch to batch keeps a NaN.",
)
helps(
    ("bad input",),
    "Look at this sequence of this batch in the data, and at the layers in front of the recurrent one.",
    "AdaptiveClip skips such a step, so that the weights stay finite.",
)
helps(
    ("explosion through time",),
    "The backward recurrence overflowed: use AdaptiveClip(), lower the learning rate, shorten the sequences "
    "(truncated BPTT), or "
    "initialise the recurrent weight orthogonally (Pascanu et al. 2013).",
    "Only what single timesteps send back grows so; in the sum over all of them it does not show yet.",
    "Lower the learning rate, and let AdaptiveClip() stand by (Pascanu et al. 2013).",
    "Lower the learning rate if it stays so.",
    "The recurrent weight enlarges what it passes back: begin with an orthogonal one of gain 1 or less (Henaff "
    "et al. 2016), or use a "
    "gated cell.",
    "In a gated cell it is the recurrent weights that are large: begin with smaller ones where they are so from the "
    "start; weight decay keeps them small (Pascanu et al. 2013, L2).",
)
helps(
    GROWTH,
    "Use AdaptiveClip(), which brings such a step back to its ordinary size, here about <n>; a fixed clipping "
    "level between half and ten "
    "times the average norm does too (Pascanu et al. 2013).",
    "Use AdaptiveClip(), which brings such a step back to its ordinary size; a fixed clipping level between "
    "half and ten "
    "times the average norm does too (Pascanu et al. 2013).",
    "Lower the learning rate, or let it rise more slowly, if it happens again.",
)
holds("Nothing to do: this is what clipping is for.", "If it happens at most steps, lower the learning rate.")
helps(
    VANISHING,
    "Clipping does not help; a shorter way from cause to effect (attention, skipping steps) does.",
)
helps(
    ("vanishing",),
    "A plain recurrence multiplies the gradient by the same matrix at every step, with slopes under 1: use a "
    "gated cell, nn.LSTM or nn.GRU "
    "(Hochreiter and Schmidhuber 1997; Cho et al. 2014), or begin with a recurrent weight that is orthogonal "
    "(Henaff et al. 2016) or, with "
    "relu, the identity (Le et al. 2015).",
    "Its cell state fades by the forget gate at every step, and PyTorch starts that gate half closed: begin "
    "with a forget-gate bias of 1 or "
    "more (Gers et al. 2000; Jozefowicz et al. 2015), chosen by the length to remember (Tallec and Ollivier 2018).",
    "Its state is kept by the update gate, which PyTorch starts half closed: begin with an update-gate bias "
    "(b_iz + b_hz) of 1 or more, "
    "chosen by the length to remember (Tallec and Ollivier 2018).",
    "What this cell passes on from step to step shrinks: give it an additive path through time, a gate that "
    "can stay open, as an LSTM has "
    "(Hochreiter and Schmidhuber 1997), or an orthogonal recurrent weight (Henaff et al. 2016).",
)
helps(
    ("severed",),
    "Pass the state of one step on to the next without detach() and without a new initial state.",
)
helps(
    ("unmeasured",),
    "Call the module itself rather than its .forward, let its output reach the loss, or mark the hidden states "
    "with tap().",
    'Call the module itself rather than its .forward, as torchrl does with recurrent_backend="pad", its default, '
    "or mark the hidden states with tap().",
)
helps(
    ("nothing recurrent",),
    "Take it out if the model has no recurrence.",
    "If it has one of its own, its state is not passed on from call to call, or tap() or tap_scan() has to mark it.",
    "Mark the hidden states of a recurrence with tap().",
)
helps(
    ("unmeasured", "cut loss"),
    "If it should be trained, let what it returns reach the loss; if not, there is nothing to do.",
)
helps(("unmeasured",), "Leave it unscripted while it trains, and script it afterwards: the weights are the same.")


@SAID(
    "The gradient as a whole has outgrown its ordinary size (at its largest <n:largest>, nearest to the loss "
    "<n:near>): AdaptiveClip() brings such steps back to it (Pascanu et al. 2013)."
)
def _in_total(c: Context, m: Words) -> None:
    for one in c.facts(steps=[c.event.step] if c.event else None):
        by_step = [sorted(row[t] for row in one.fed) for t in range(one.timesteps)] if one.fed else []
        if not by_step:
            continue
        c.number(
            m["largest"],
            max(v[0] for v in by_step),
            max(v[-1] for v in by_step),
            "the largest total gradient",
            slack=0.1,
        )
        c.number(m["near"], by_step[-1][0], by_step[-1][-1], "the total gradient nearest to the loss", slack=0.1)


@SAID("Truncating backpropagation after <int:lag> timesteps would keep the growth under 10 (Williams and Peng 1990).")
@SAID("Truncating backpropagation after <int:lag> timestep would keep the growth under 10 (Williams and Peng 1990).")
def _truncate(c: Context, m: Words) -> None:
    if c.case.cause != "explosion through time":
        c.wrong(REMEDY, f"against {c.case.cause or 'nothing'} it does not help")
    for one in c.facts(steps=[c.event.step] if c.event else None):
        low, high = one.bounds()
        if low == high and len(high) > int(m["lag"]):
            grown = max(high[: int(m["lag"]) + 1], default=math.nan)
            c.number(m["lag"], *(2 * (int(m["lag"]),) if grown < 10.5 else (0, 0)), "where it grows 10-fold")


helps(
    ("few sequences",),
    "If <int:t> is the number of timesteps, batch_first=True was forgotten: make the module with it, or transpose "
    "its input, x.transpose(0, 1).",
    "If <int:t> is the number of timesteps, the input has time first: transpose it, x.transpose(0, 1), or leave out "
    "batch_first=True.",
    "If the input has the batch first, batch_first=True was forgotten: make the module with it, or transpose its input, "
    "x.transpose(0, 1).",
    "If the input has time first, transpose it, x.transpose(0, 1), or leave out batch_first=True.",
    "If not, <any> reads the first sequence; the first timestep is <any>.",
    "If not, <any> reads the last sequence; the last timestep is <any>.",
    "See which axis of the input is time, and which one the loss reads.",
    "If one sequence alone is meant to be learned from, there is nothing to do.",
)

helps(
    ("outlier", "bad target", "divergence"),
    "Leave it out, or take a loss that an outlier moves less (huber_loss instead of mse_loss).",
    "A fixed clipping level bounds what such a step does to the weights: AdaptiveClip(policy=Norm(<n>)).",
)

helps(
    ("divergence", "outlier"),
    "Begin anew with a learning rate ten times lower, or let it rise slowly (warm-up): within a few steps the run has "
    "left where it began.",
    "AdaptiveClip() clips single steps, and does not shorten those of Adam and its like.",
)

helps(
    ("short reach", "padding, rightly read"),
    "The output at the last timestep holds the reverse direction's first step, which has seen that timestep alone.",
    "The output at the last timestep (output[:, -1]) holds the reverse direction's first step, which has seen "
    "that timestep alone.",
    "The output at the last timestep (output[-1]) holds the reverse direction's first step, which has seen "
    "that timestep alone.",
    "Read each direction where it ends: torch.cat([h_n[-2], h_n[-1]], -1), the top layer's two final states, "
    "or the output at all timesteps.",
    "The reverse direction reads the sequence from its end, and the loss reads it at late timesteps alone.",
    "Where the whole sequence matters, read its final state, h_n[-1], which has seen all of it; otherwise one "
    "direction is enough.",
    "The loss reads the first timestep alone, where the state has seen nothing but that timestep.",
    "The loss reads the first timestep alone (output[:, 0]), where the state has seen nothing but that timestep.",
    "The loss reads the first timestep alone (output[0]), where the state has seen nothing but that timestep.",
    "Read h_n[-1] (of a bidirectional module h_n[-2] and h_n[-1]) or the output at all timesteps.",
    "Read the last state or the output at all timesteps.",
    "What comes after the last timestep with a loss gets no gradient, and none is due if nothing there belongs "
    "to the answer: then cut the "
    "sequences there, which saves time.",
    "If it does, look at which timesteps the loss reads or leaves out, or read the last state, which has seen "
    "all of them.",
)


# ------------------------------------------------------------------ operations with no finite slope


def mends(culprits: Collection[str], *patterns: str) -> Check:
    """Sentences that help where one of these operations did it."""

    def check(c: Context, m: Words) -> None:
        if not set(culprits) & set(c.case.culprits):
            c.wrong(REMEDY, f"it was {' or '.join(c.case.culprits) or 'no operation'}")

    return SAID(*patterns)(check)


mends(("sqrt",), "Add a small number under the root: (x + 1e-12).sqrt().")
mends(("log",), "Keep its argument away from 0: clamp_min(1e-12), or log_softmax, logsigmoid, log1p where they fit.")
mends(("a division",), "Keep the divisor away from 0: add a small number to it, or clamp_min(1e-12).")
mends(
    ("softmax",),
    "See to it that every row of the softmax has an entry that is not masked, or mask with a large negative "
    "number instead of -inf.",
)
mends(
    ("where", "nan_to_num"),
    "What where(), masked_fill() or nan_to_num() hides in the forward comes back in the backward pass: make "
    "the argument safe before the "
    "operation, where(ok, x, 1).sqrt() instead of where(ok, x.sqrt(), 0).",
)
helps(
    (*OUTSIDE, *ARITHMETIC),
    "Clipping cannot mend it; AdaptiveClip() only skips such a step.",
)
helps(
    OUTSIDE,
    "Look at what stands between this state and the loss for an operation whose slope is infinite or undefined "
    "at what it was given (a root, "
    "a logarithm or a division at 0, a softmax over nothing but -inf, what where() hides), and for a hook on "
    "the tensor.",
    "Look at the operation that this parameter enters.",
)
helps(
    ARITHMETIC,
    "Look at the cell's forward for an operation whose value or slope is infinite or undefined at what it was "
    "given: a root, a logarithm, a "
    "norm in a divisor, a surrogate's formula.",
)
helps(
    ("explosion through time",),
    "The gradient was huge where it came in: scale the loss or its targets down.",
    "AdaptiveClip() skips such a step.",
)
helps(
    ("bad target",),
    "Look at this entry of the data: fill it in, leave it out, or mask it before the arithmetic of the loss, "
    "since NaN times 0 is NaN.",
    "If that entry of the batch enters the loss, it is the cause: leave it out, or mask it before the arithmetic.",
)
helps(
    ("divergence", "outlier"),
    "Begin anew with a learning rate ten times lower, or let it rise slowly (warm-up).",
    "Look at batch <int> of epoch <int> for an outlier.",
)
holds("Clipping alone does not shorten the steps of Adam and its like, which rescale the gradient.")
helps(
    ("cell's arithmetic", "bad input", "bad target", "operation outside", "divergence"),
    "The weight was spoilt before this step, by an optimizer step with a gradient, a learning rate or a state "
    "that was not finite, or by a "
    "bad checkpoint: go back to a checkpoint from before it.",
)


# ------------------------------------------------------------------ saturation, padding, severed states


helps(
    ("saturation",),
    "Standardise the inputs: subtract each channel's mean over the training set and divide by its standard "
    "deviation, or put an "
    "nn.BatchNorm1d over the channels in front of this layer.",
    "Subtract before anything becomes float32, which cannot tell numbers of this size apart.",
    "Channel <int> hardly varies: leave it out, or keep only how far it is from its mean or from the sequence's begin.",
)
_LINES = "`gradwatch explain VANISHING_HIDDEN_GRADIENT` prints the lines that do it."
_PLAIN = (
    "A plain recurrence multiplies the gradient by the same matrix at every step, with slopes under 1: use a "
    "gated cell, nn.LSTM or nn.GRU "
    "(Hochreiter and Schmidhuber 1997; Cho et al. 2014), or begin with a recurrent weight that is orthogonal "
    "(Henaff et al. 2016) or, with "
    f"relu, the identity (Le et al. 2015); {_LINES}"
)


def _with_its_length(c: Context, m: Words) -> None:
    """A bias of ln T, for the T of these sequences."""
    if c.case.cause != "vanishing" and not _is_conditional(c) and not _vanishes_all_the_same(c):
        c.wrong(REMEDY, f"against {c.case.cause or 'nothing'} it does not help")
    if "t" in m:
        length = int(m["t"])
        c.number(m["bias"], math.log(length) - 0.051, math.log(length) + 0.051, f"ln {length}")
        c.number(m["again"], length, length, "the length")


SAID(_PLAIN)(_with_its_length)
SAID(
    "Its cell state fades by the forget gate at every step, and PyTorch starts that gate half closed: begin "
    "with a forget-gate bias of "
    "ln <int:t> = <n:bias>, with which a third of the state outlasts <int:again> timesteps (Jozefowicz et al. "
    "2015; Tallec and Ollivier "
    "2018).",
    "Its state is kept by the update gate, which PyTorch starts half closed (h = (1−z)·n + z·h): begin with an "
    "update-gate bias of +ln "
    "<int:t> = <n:bias>, with which a third of the state outlasts <int:again> timesteps (Tallec and Ollivier 2018).",
)(_with_its_length)
holds(
    "It is the second quarter of bias_ih, and PyTorch adds bias_hh to it: set that one's to 0, in every layer "
    f"and direction; {_LINES}",
    "It is the second third of bias_ih, and PyTorch adds bias_hh to it: set that one's to 0, in every layer "
    f"and direction; {_LINES}",
    "Only if they belong to the task:",
    "If the task needs a longer memory:",
)
helps(
    ("padding",),
    "If the equal inputs are padding, pack the sequences (torch.nn.utils.rnn.pack_padded_sequence(x, lengths, "
    "enforce_sorted=False), with "
    "batch_first as in the module), so that h_n is the state after each one's last real step; or read the "
    "output there.",
    "If they are padding, pack the sequences, or read each one's last real step.",
)
helps(
    ("severed",),
    "If that is meant, there is nothing to do.",
    "If that is meant, leave the module out with GradWatch(modules=[…]).",
)
helps(("dead relu",), "Begin with smaller biases: PyTorch draws them within ±<n> (1/√hidden).")
helps(
    ("dead relu", "divergence", "outlier"),
    "Where a relu is dead no gradient can revive it; tanh has slopes on both sides.",
)


@SAID(
    "Begin anew, or go back to a checkpoint from before, with a lower learning rate: the <name:what> have "
    "grown (PyTorch draws them within "
    "±<n> at the start), and where gates are saturated hardly any gradient is left to bring them back."
)
def _have_grown(c: Context, m: Words) -> None:
    if c.case.cause not in ("divergence", "outlier"):
        c.wrong(REMEDY, f"against {c.case.cause or 'nothing'} it does not help")
    step = 0 if c.event is None else c.event.step
    grown = max(c.truth.largest_weights(step)) / max(c.truth.largest_weights(0))
    c.verdict(grown > 1.2, f"they have grown {grown:.3g}-fold")


helps(
    ("divergence", "outlier"),
    "Go back to a checkpoint from before, or begin anew, with a lower learning rate: the weights have left "
    "where the gradient reached "
    "further.",
)


@SAID(
    "It began after the gradient's jump at step <int:step> (batch <int:batch>): look at that batch first, and "
    "begin anew with "
    "AdaptiveClip(), which holds such a step."
)
def _after_the_jump(c: Context, m: Words) -> None:
    if c.case.cause not in ("divergence", "outlier"):
        c.wrong(REMEDY, f"against {c.case.cause or 'nothing'} it does not help")
    step = int(m["step"].replace(",", ""))
    before = [c.truth.norm(earlier) for earlier in range(step)]
    c.verdict(bool(before) and c.truth.norm(step) > max(before), "the norm did not jump there")


helps(("divergence", "outlier"), "If the batch is in order, lower the learning rate.")
helps(
    ("divergence", "outlier"),
    "That batch may have begun it, or the step before it was too long.",
    "Look at the batch first; if it is out of the ordinary, begin anew without it, or with AdaptiveClip().",
    "Else begin anew with a learning rate ten times lower, or let it rise slowly (warm-up).",
)
helps(
    ("divergence",),
    "Lower the learning rate, by ten times at first.",
    "Else clip to a fixed norm: AdaptiveClip(policy=Norm(<n>)) brings every step down to what this one was brought to.",
)
