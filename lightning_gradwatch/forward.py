"""What a forward pass was like, as far as its gradient depends on it: how far its
gates are saturated, and by what.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gate:
    """One nonlinearity of a recurrence, over all units, timesteps and sequences measured.

    Args:
        name: ``input gate``, ``update gate``, ``tanh units`` …
        saturated: share of them where its slope is under 1 % of the largest it can have.
        upper: of the saturated ones, the share at the upper end (a gate at 1, a tanh at +1).
        decides: whether nothing is learned where it is saturated. A
            forget gate that is open is memory.
    """

    name: str
    saturated: float
    upper: float
    decides: bool


@dataclass(frozen=True, slots=True)
class Channel:
    """The input channel that a layer's pre-activations come from most: its mean and standard
    deviation over what was measured.
    """

    index: int
    mean: float
    std: float
    share: float
    """Of what the inputs contribute."""


@dataclass(frozen=True, slots=True)
class Saturation:
    """How far the gates of one layer and direction are saturated, and where that comes from.

    Args:
        gates: in PyTorch's order.
        parts: shares of the pre-activations, in absolute value, that come from the
            inputs, the state and the biases.
        typical, largest: median and maximum of |x|, the layer's own input.
        channel: the one channel that gives more than all others together; None if none does.
        weight: the largest weight or bias in absolute value; ``hidden``: units of the layer.
    """

    gates: tuple[Gate, ...]
    parts: tuple[float, float, float]
    typical: float
    largest: float
    channel: Channel | None
    weight: float
    hidden: int
