"""What is said of saturated gates: which, by what, and what helps against it."""

from __future__ import annotations

from enum import Enum, auto

from lightning_gradwatch.forward import Channel, Gate, Saturation

LARGE = 10.0
"""Inputs, or weights beside PyTorch's own start of ±1/√hidden, that are more than so many
times as large as usual are large.
"""

_WORTH_NAMING = 0.5
_ONE_SIDED = 0.95
_CONSTANT = 1e-3
"""A channel whose standard deviation is under this share of its mean hardly varies."""

_EXACT = 2.0**24
"""Up to here float32 holds every whole number."""


class Cause(Enum):
    """What holds the gates where they are."""

    INPUTS = auto()
    WEIGHTS = auto()
    BIASES = auto()


def cause_of(saturation: Saturation) -> Cause:
    """What most of the pre-activations come from. Of inputs and their weights,
    whichever is larger beside the usual.
    """
    from_input, from_state, from_bias = saturation.parts
    if from_bias >= max(from_input, from_state):
        return Cause.BIASES
    grown = saturation.weight * saturation.hidden**0.5
    large = saturation.largest > LARGE and saturation.largest > grown
    return Cause.INPUTS if from_input >= from_state and large else Cause.WEIGHTS


def details(saturation: Saturation | None) -> str:
    """Which gates, on what share of units and timesteps, and by what."""
    if saturation is None:
        return "What they enter is saturated or multiplied by 0; the gates themselves could not be looked at."
    return f"{_gates(saturation)} {_reason(saturation)}"


def remedy(saturation: Saturation | None, *, at_first: bool) -> str:
    """What helps.

    Args:
        at_first: whether it was so from the first sample on, before any training.
    """
    if saturation is None:
        return (
            "Look at the size of what enters its nonlinearities: standardise inputs that are far from 1, and begin with smaller weights "
            "or a lower learning rate if they have grown."
        )
    cause = cause_of(saturation)
    if cause is Cause.INPUTS:
        return _standardise(saturation)
    what = "biases" if cause is Cause.BIASES else "weights"
    tail = (
        " Where a relu is dead no gradient can revive it; tanh has slopes on both sides."
        if _is_dead(saturation)
        else ""
    )
    usual = f"PyTorch draws them within ±{saturation.hidden**-0.5:.2g}"
    if at_first:
        return f"Begin with smaller {what}: {usual} (1/√hidden).{tail}"
    return (
        f"Begin anew, or go back to a checkpoint from before, with a lower learning rate: the {what} have grown ({usual} at the start), "
        f"and where gates are saturated hardly any gradient is left to bring them back.{tail}"
    )


def _gates(saturation: Saturation) -> str:
    if _is_dead(saturation):
        return f"On {_percent(saturation.gates[0].saturated)} of units and timesteps the relu's input is negative: it is dead there."
    named = [gate for gate in saturation.gates if gate.saturated >= _WORTH_NAMING]
    first, *rest = [f"the {gate.name} on {{}}{_side(gate)}".format(_percent(gate.saturated)) for gate in named]
    listed = ", ".join([first.replace(" %", " % of units and timesteps"), *rest])
    return f"Saturated: {listed}."


def _side(gate: Gate) -> str:
    """Where all of it is on one side."""
    lower = "0" if gate.name.endswith("gate") else "−1"
    if gate.upper >= _ONE_SIDED:
        return " (at 1)"
    return f" (at {lower})" if gate.upper <= 1 - _ONE_SIDED else ""


def _reason(saturation: Saturation) -> str:
    cause = cause_of(saturation)
    if cause is Cause.BIASES:
        return f"The biases hold them there: {_percent(saturation.parts[2])} of what enters the gates comes from them."
    if cause is Cause.WEIGHTS:
        start = saturation.hidden**-0.5
        return (
            f"The weights hold them there: the largest is {saturation.weight:.3g}, where PyTorch starts with at most "
            f"{start:.2g} (1/√hidden)."
        )
    return (
        f"The inputs are large: |x| has the median {saturation.typical:.3g} and the maximum {saturation.largest:.3g}, and "
        f"{_percent(saturation.parts[0])} of what enters the gates comes from them.{_one_channel(saturation.channel)}"
    )


def _one_channel(channel: Channel | None) -> str:
    if channel is None:
        return ""
    return f" Most of it is channel {channel.index}: mean {channel.mean:.3g}, standard deviation {channel.std:.3g}."


def _standardise(saturation: Saturation) -> str:
    parts = [
        "Standardise the inputs: subtract each channel's mean over the training set and divide by its standard deviation, or put an "
        "nn.BatchNorm1d over the channels in front of this layer.",
    ]
    channel = saturation.channel
    if channel is not None and channel.std < _CONSTANT * abs(channel.mean):
        parts.append(
            f"Channel {channel.index} hardly varies: leave it out, or keep only how far it is from its mean or from the sequence's begin."
        )
    if saturation.largest > _EXACT:
        parts.append("Subtract before anything becomes float32, which cannot tell numbers of this size apart.")
    return " ".join(parts)


def _is_dead(saturation: Saturation) -> bool:
    return len(saturation.gates) == 1 and saturation.gates[0].name == "relu units"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
