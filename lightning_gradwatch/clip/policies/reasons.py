"""Why Spike clips a step, in words."""

from __future__ import annotations

OUT_OF_THE_ORDINARY = "Its norm is out of the ordinary."
LOSS_TOO = "Its norm is out of the ordinary, and so is its loss."
TOO_LONG = "The step would have been too long beside the parameters."
GREW_THROUGH_TIME = "It grew through time: many times as much as it ordinarily does."
SHORTENED = "Steps before it exploded, and large ones are shortened for a while."
