"""Why Spike clips a step, in words, and what a gradient comes of."""

from __future__ import annotations

from lightning_gradwatch.clip.policy import StepReading, usable

OUT_OF_THE_ORDINARY = "Its norm is out of the ordinary."
TOO_LONG = "The step would have been too long beside the parameters."
GREW_THROUGH_TIME = "It grew through time: over 30 times as much as it ordinarily does."
SHORTENED = "Steps before it exploded, and large ones are shortened for a while."


def cause_of(reading: StepReading) -> float | None:
    """What the gradient comes of: what the loss sends to the recurrent modules, else the loss."""
    if reading.direct_norm is not None and usable(reading.direct_norm):
        return reading.direct_norm
    return abs(reading.loss) if reading.loss is not None and usable(abs(reading.loss)) else None
