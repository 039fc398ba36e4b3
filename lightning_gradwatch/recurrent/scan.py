"""A diagonal recurrence h_t = a_t ⊙ h_{t−1} + b_t, computed for all timesteps at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.autograd.graph import Node

from lightning_gradwatch.recurrent.gradient_slot import GradientSlot
from lightning_gradwatch.recurrent.scan_shape import ScanShape
from lightning_gradwatch.recurrent.weakly_held import WeaklyHeld

KIND = "scan"
"""As the run log names it."""


@dataclass(slots=True, eq=False)
class Scan(WeaklyHeld):
    """References to what was marked with ``tap_scan``. No tensor is copied.

    The states come out as one tensor, so its slot is shown the *direct* gradient, for every
    timestep; the decay says how it flows back from each to the one before.

    Args:
        module: under which it is reported; ``index``: which scan of that name within the step.
        state: all states, or what is read out of them.
        decay: a, which broadcasts against the states.
        inputs: b, if known; ``readout``: C, where ``state`` is what is read out.
        reverse: h_t = a_t ⊙ h_{t+1} + b_t instead.
        lengths: of each sequence ``(batch,)``, padded at the end; None where all are as long.
        step: optimizer steps done when it ran.
    """

    module: str
    index: int
    shape: ScanShape
    state: Tensor
    decay: Tensor
    inputs: Tensor | None = None
    readout: Tensor | None = None
    reverse: bool = False
    lengths: Tensor | Sequence[int] | None = None
    step: int = 0
    slot: GradientSlot = field(default_factory=GradientSlot)
    node: Node | None = field(init=False)
    _versions: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.node = self.state.grad_fn
        self._versions = tuple(tensor._version for _, tensor in self._named())

    def watch_gradient(self) -> None:
        """Have autograd show the slot what the loss sends to the states."""
        self.slot.watch(self.state)

    def slots(self) -> tuple[GradientSlot]:
        """Of its states."""
        return (self.slot,)

    def has_gradient(self) -> bool:
        """Whether the loss reached it at all."""
        return self.slot.arrived

    def release(self) -> None:
        """Let go of the gradient, which the tensor's own hook holds too."""
        self.slot.clear()

    def changed(self) -> list[str]:
        """What was changed in place since it was marked."""
        pairs = zip(self._named(), self._versions, strict=True)
        return [name for (name, tensor), version in pairs if tensor._version != version]

    def lost(self) -> bool:
        """Whether its place in the graph is no longer that of what was used."""
        return self.state._is_view() and self.changed()[:1] == ["state"]

    def _named(self) -> list[tuple[str, Tensor]]:
        named = [("state", self.state), ("decay", self.decay), ("inputs", self.inputs), ("readout", self.readout)]
        return [(name, tensor) for name, tensor in named if tensor is not None]
