"""Why Spike clips a step, in words, and what a gradient comes of."""

from __future__ import annotations

from lightning_gradwatch.clip.policy import StepReading, usable

OUT_OF_THE_ORDINARY = "Its norm is out of the ordinary."
TOO_LONG = "The step would have been too long beside the parameters."
GREW_THROUGH_TIME = "It grew through time: over 30 times as much as it ordinarily does."
SHORTENED = "Steps before it exploded, and large ones are shortened for a while."


def cause_of(reading: StepReading) -> float | None:
    """What the gradient comes of: what the loss sends to the recurrent modules. Not the loss
    itself, which is as large as you please where a likelihood without a bound explodes.
    """
    return reading.direct_norm if reading.direct_norm is not None and usable(reading.direct_norm) else None
