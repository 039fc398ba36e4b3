"""Judges of what is said of timesteps and sequences without a gradient, of saturated gates, of padding, of severed states."""

from __future__ import annotations

from benchmarks.campaigns.truth.curves import nothing_flows, padding, timesteps
from benchmarks.campaigns.truth.sentences import SAID, Context, place_of
from benchmarks.campaigns.truth.verdicts import Words, barely, of_late, saturated

# ------------------------------------------------------------------ how many timesteps the loss reaches


def reached(c: Context, said: str) -> None:
    """Of a direction's own timesteps."""
    found = c.between(lambda one: one.reached if one.fed else None)
    if found is not None:
        c.number(said, *found, "the number of timesteps reached")


@SAID("The loss reaches <place> at <int:n> of its timesteps only.")
def _reaches(c: Context, m: Words) -> None:
    barely(c, m)
    reached(c, m["n"])


@SAID(
    "It does so at its own first step; the other <int:rest> of <int:t> get no gradient at all« in "
    "<int:samples> samples in a row».",
    "It does so at its own first <int:n> steps; the other <int:rest> of <int:t> get no gradient at all« in "
    "<int:samples> samples in a row».",
)
def _does_so(c: Context, m: Words) -> None:
    reached(c, m.get("n", "1"))
    timesteps(c, m["t"])
    c.number(m["rest"], *(2 * [int(m["t"].replace(",", "")) - int(m.get("n", "1"))]), "the rest")


@SAID("This direction begins at the sequence's end, and the loss reads it where it has just begun.")
def _just_begun(c: Context, m: Words) -> None:
    c.verdict(c.place is not None and c.place[2] == "reverse", "it is the forward direction")
    barely(c, m)


@SAID(
    "The loss reaches it at its own first step only; the other <int:rest> of <int:t> timesteps get no gradient.",
    "The loss reaches it at its own first <int:n> steps only; the other <int:rest> of <int:t> timesteps get no "
    "gradient.",
)
def _reaches_it(c: Context, m: Words) -> None:
    _does_so(c, m)


@SAID("Hardly any of its states gets a gradient.")
def _hardly_any(c: Context, m: Words) -> None:
    late = of_late(c)
    c.verdict(not late or any(len(one.fed) * 4 <= len(one.total) for one in late), "many sequences get one")


@SAID(
    "Of the <int:batch> sequences of a batch <int:n> get a gradient.",
    "Of the <int:batch> sequences of a batch <int:n> gets a gradient.",
)
def _with_gradient(c: Context, m: Words) -> None:
    found = c.between(lambda one: (len(one.fed), len(one.fed)))
    batch = c.between(lambda one: (len(one.total), len(one.total)))
    if found is not None and batch is not None:
        c.number(m["n"], *found, "the number of sequences with a gradient")
        c.number(m["batch"], *batch, "the number of sequences")


@SAID(
    "The loss reaches <int:n> of the <int:batch> sequences of <place> only.",
    "It is the first one« in <int:samples> samples in a row».",
    "It is the last one« in <int:samples> samples in a row».",
    "It is number <int:index>« in <int:samples> samples in a row».",
)
def _one_sequence(c: Context, m: Words) -> None:
    """Always the same one."""
    c.verdict(c.case.cause == "few sequences", "more than one is reached")
    if "n" in m:
        _with_gradient(c, m)


@SAID(
    "The module has batch_first=<name:batch_first> and took its input for <int:t> timesteps of <int:batch> sequences."
)
def _took(c: Context, m: Words) -> None:
    c.verdict(c.case.cause == "few sequences", "more than one is reached")


@SAID(
    "The module has batch_first=False and took its input for <int:t> timesteps of <int:batch> sequences: if "
    "<int:perhaps> is the number of timesteps, batch_first=True was forgotten.",
    "The module has batch_first=True and took its input for <int:t> timesteps of <int:batch> sequences: if "
    "<int:perhaps> is the number of timesteps, its input has time first.",
    "The module has batch_first=False and took its input for <int:t> timesteps of <int:batch> sequences: if it is the "
    "other way round, batch_first=True was forgotten.",
    "The module has batch_first=True and took its input for <int:t> timesteps of <int:batch> sequences: if it is the "
    "other way round, its input has time first.",
)
def _batch_first(c: Context, m: Words) -> None:
    timesteps(c, m["t"])
    c.number(m.get("perhaps", m["batch"]), *(2 * [int(m["batch"])]), "what it took for sequences")


# ------------------------------------------------------------------ saturation


def gates(c: Context, said: str) -> None:
    """The share of the gradient that the loss sends which reaches the gates."""
    found = c.between(lambda one: None if one.gates is None else (one.gates, one.gates))
    if found is not None:
        c.number(said, found[0] - 1e-6, found[1] + 1e-6, "the share", slack=0.05)


_GATE_WORDS = "Little gradient reaches the weights of <place>: <n:share> times what the loss sends to its hidden states (bound <n:bound>)."


@SAID(_GATE_WORDS)
def _gates_saturated(c: Context, m: Words) -> None:
    saturated(c, m)
    gates(c, m["share"])


@SAID(
    "Saturation of <place> since step <int:begin>, not over when training ended; the share that reached the "
    "gates was smallest, <n:share>, at step <int:step> (bound <n:bound>).",
    "Saturation of <place> from step <int:begin> to step <int:end>; the share that reached the gates was "
    "smallest, <n:share>, at step <int:step> (bound <n:bound>).",
)
def _episode_of_saturation(c: Context, m: Words) -> None:
    gates(c, m["share"])


@SAID("Little gradient reaches its weights: <any>.")
def _hardly_any_gradient(c: Context, m: Words) -> None:
    saturated(c, m)


@SAID("Saturated: <list:gates>.")
def _which_gates(c: Context, m: Words) -> None:
    saturated(c, m)


@SAID(
    "The inputs are large: |x| has the median <n:typical> and the maximum <n:largest>, and <int:share> % of "
    "what enters the gates comes from them."
)
def _inputs_are_large(c: Context, m: Words) -> None:
    c.verdict(c.case.cause == "saturation", "they are not")
    sizes = c.truth.input_sizes()
    c.number(m["largest"], min(s[1] for s in sizes), max(s[1] for s in sizes), "the largest input", slack=0.01)
    c.number(m["typical"], 0.5 * min(s[0] for s in sizes), 2 * max(s[0] for s in sizes), "the median input")


@SAID("Most of it is channel <int:channel>: mean <n:mean>, standard deviation <n:std>.")
def _one_channel(c: Context, m: Words) -> None:
    c.verdict(c.case.cause == "saturation", "it is not")


@SAID(
    "In the only sample <n:share> times what the loss sends to its hidden states reaches its weights; one cannot "
    "tell whether it stays so."
)
def _one_sample(c: Context, m: Words) -> None:
    gates(c, m["share"])


# ------------------------------------------------------------------ padding


@SAID(
    "In most sequences the last <int:padded> timesteps (median) have equal inputs, as padding has, and the "
    "loss sits behind them: the gradient has to cross them before it reaches any other input."
)
def _crossed(c: Context, m: Words) -> None:
    padding(c, m)


@SAID("Only <int:real> of them count here: at the others the inputs are equal, as in padding, and nothing is lost.")
def _real(c: Context, m: Words) -> None:
    found = c.truth.padding()
    t = c.between(lambda one: (one.timesteps, one.timesteps))
    c.verdict(bool(found), "no inputs are equal")
    if found and t:
        c.number(m["real"], t[0] - max(found), t[1] - min(found), "what is left")


# ------------------------------------------------------------------ states that are severed


@SAID("No gradient flows through time in <place>.")
def _nothing_flows_in(c: Context, m: Words) -> None:
    c.place = place_of(m["place"]) if m.get("place") else c.place
    nothing_flows(c, m)


@SAID(
    "In each of its <int:n> calls the state that comes in is that of <any> call« before», but detached.",
    "Each of its <int:n> calls takes one timestep and begins anew, <list>.",
)
def _how_severed(c: Context, m: Words) -> None:
    found = c.between(lambda one: (one.timesteps, one.timesteps))
    if found is not None:
        c.number(m["n"], *found, "the number of calls")
    c.verdict(c.case.cause == "severed", "the state is passed on")


@SAID("On <int:share> % of units and timesteps the relu's input is negative: it is dead there.")
def _dead(c: Context, m: Words) -> None:
    c.verdict(c.case.cause in ("dead relu", "divergence", "outlier"), "no relu is dead")


@SAID("The biases hold them there: <int:share> % of what enters the gates comes from them.")
def _biases(c: Context, m: Words) -> None:
    c.verdict(c.case.cause in ("dead relu", "divergence", "outlier"), f"it is {c.case.cause or 'nothing'}")


@SAID(
    "The weights hold them there: the largest is <n:largest>, where PyTorch starts with at most <n:start> (1/√hidden)."
)
def _weights(c: Context, m: Words) -> None:
    c.verdict(c.case.cause in ("divergence", "outlier"), f"it is {c.case.cause or 'nothing'}")
    found = [largest for step in c.steps() for largest in c.truth.largest_weights(step)]
    c.number(m["largest"], min(found), max(found), "the largest weight", slack=0.01)
