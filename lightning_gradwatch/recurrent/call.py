"""One forward of a fused recurrent module, kept by reference until its gradients have arrived."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from lightning_gradwatch.recurrent.gradient_slot import GradientSlot
from lightning_gradwatch.recurrent.graph.edges import Edge, edge_of
from lightning_gradwatch.recurrent.limit import Limit
from lightning_gradwatch.recurrent.shape import Shape
from lightning_gradwatch.recurrent.trail import Trail
from lightning_gradwatch.recurrent.weakly_held import WeaklyHeld


@dataclass(frozen=True, slots=True)
class Edges(WeaklyHeld):
    """Where the tensors of one call hang in the graph, as they were when it ran: ``given`` h0 and
    c0, ``made`` output, h_n and c_n.
    """

    input: Edge | None
    given: tuple[Edge | None, ...]
    made: tuple[Edge | None, ...]


@dataclass(slots=True)
class RecurrentCall(WeaklyHeld):
    """References to everything that one forward of a fused module read
    and made. No tensor is copied.

    Shapes are the module's own: ``input`` and ``output`` are time-major, batch-first, unbatched, or
    packed data with ``batch_sizes``; ``h0``, ``c0``, ``h_n``, ``c_n`` are
    ``(layers·directions, batch, width)`` in the caller's batch order, without ``batch`` if
    unbatched.

    Args:
        mask: whether a sequence goes on, in the first two axes of ``input``; past its end its
            states stay as they are. None where all have all timesteps, or are packed.
        by_operator: PyTorch's operator made output and final states, so that what one is a view of
            is nothing that another was made of.
    """

    module: str
    index: int
    shape: Shape
    weights: tuple[Tensor, ...]
    input: Tensor
    h0: Tensor | None
    c0: Tensor | None
    output: Tensor
    h_n: Tensor
    c_n: Tensor | None
    batch_sizes: Tensor | None = None
    sorted_indices: Tensor | None = None
    unsorted_indices: Tensor | None = None
    mask: Tensor | None = None
    by_operator: bool = True
    rng_state: Tensor | None = None
    output_gradient: GradientSlot = field(default_factory=GradientSlot)
    h_n_gradient: GradientSlot = field(default_factory=GradientSlot)
    c_n_gradient: GradientSlot = field(default_factory=GradientSlot)
    parts: tuple[RecurrentCall, ...] = ()
    """The calls that this one was joined from, in time; none if it is one forward."""
    versions: tuple[int, ...] = ()
    doubt: str | None = None
    """Why output and final states may not be what the operator made."""
    limit: Limit | None = None
    """What bounds its gradient as it flows back, if anything does."""
    step: int = 0
    """Optimizer steps done when the forward ran."""
    edges: Edges = field(init=False)
    trail: Trail | None = None
    """What the chain that it is part of sends back, once that is to be followed."""
    unjoined: str | None = None
    """Why it is measured by itself although its state comes from an earlier
    call, or goes on into a later one.
    """

    _final_versions: tuple[int, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        self.versions = self._versions()
        self._final_versions = tuple(state._version for state in self._finals())
        self.edges = Edges(
            edge_of(self.input),
            (edge_of(self.h0), edge_of(self.c0)),
            (edge_of(self.output), edge_of(self.h_n), edge_of(self.c_n)),
        )

    def slots(self) -> tuple[GradientSlot, GradientSlot, GradientSlot]:
        """Of output, h_n and c_n."""
        return self.output_gradient, self.h_n_gradient, self.c_n_gradient

    def time_dim(self) -> int:
        """Which dimension of input and output is time, where they are not packed."""
        return 1 if self.shape.batch_first and self.input.dim() == 3 else 0

    def timesteps(self) -> int:
        """How many the longest sequence has."""
        return self.input.shape[self.time_dim()] if self.batch_sizes is None else len(self.batch_sizes)

    def has_lengths(self) -> bool:
        """Whether its sequences may end at different timesteps."""
        return self.batch_sizes is not None or self.mask is not None

    def batch_size(self) -> int:
        """How many sequences it has; 1 without a batch dimension."""
        return self.h_n.shape[1] if self.h_n.dim() == 3 else 1

    def _finals(self) -> list[Tensor]:
        return [state for state in (self.h_n, self.c_n) if state is not None]

    def finals_changed(self) -> bool:
        """Whether h_n or c_n was changed in place since the forward: a measurement that does not
        read them is right all the same.
        """
        if self.parts:
            return any(part.finals_changed() for part in self.parts)
        return tuple(state._version for state in self._finals()) != self._final_versions

    def _tensors(self) -> list[tuple[str, Tensor]]:
        named = [("input", self.input), ("initial state", self.h0), ("initial state", self.c0), ("output", self.output)]
        return [(name, t) for name, t in named if t is not None] + [("weight", w) for w in self.weights]

    def _versions(self) -> tuple[int, ...]:
        return tuple(tensor._version for _, tensor in self._tensors())

    def changed(self) -> str | None:
        """The first of input, initial state, output and weights that was changed in place since
        the forward; None if none was.
        """
        for part in self.parts:
            changed = part.changed()
            if changed is not None:
                return changed
        for (name, tensor), version in zip(self._tensors(), self.versions, strict=True):
            if tensor._version != version:
                return name
        return None

    def weights_changed(self) -> bool:
        """Whether a weight was changed in place since the forward."""
        weights = self.weights
        return tuple(weight._version for weight in weights) != self.versions[len(self.versions) - len(weights) :]

    def has_gradient(self) -> bool:
        """Whether the loss reached this call at all."""
        return any(slot.arrived for slot in self.slots())

    def release(self) -> None:
        """Let go of the gradients, which the tensors' own hooks hold too."""
        for slot in self.slots():
            slot.clear()
        if self.trail is not None:
            self.trail.forget()
            self.trail = None
        for part in self.parts:
            part.release()

    def flat_weights(self, layer: int, direction: int) -> tuple[Tensor, ...]:
        """``w_ih, w_hh[, b_ih, b_hh][, w_hr]`` of one layer and direction."""
        count = self.shape.weights_per_direction
        start = (layer * self.shape.num_directions + direction) * count
        return self.weights[start : start + count]

    def watch_gradients(self) -> None:
        """Have autograd show this call's slots the gradients that reach output, h_n and c_n."""
        pairs = (
            (self.output, self.output_gradient),
            (self.h_n, self.h_n_gradient),
            (self.c_n, self.c_n_gradient),
        )
        for tensor, slot in pairs:
            if tensor is not None and tensor.requires_grad:
                slot.watch_result(tensor) if self.by_operator else slot.watch(tensor)
