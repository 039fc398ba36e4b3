"""One forward of a fused recurrent module, kept by reference until its gradients have arrived."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.utils.rnn import PackedSequence

if TYPE_CHECKING:
    from lightning_gradwatch.recurrent.limit import Limit
    from lightning_gradwatch.recurrent.measure.chain_lags import Trail


class WeaklyHeld:
    """What may be referred to weakly although it has slots, in Python 3.10 too.

    There PyTorch's compiler also refers so to what it meets.
    """

    __slots__ = ("__weakref__",)


@dataclass(frozen=True, slots=True)
class Shape(WeaklyHeld):
    """What kind of recurrence a module computes, and how large it is.

    Args:
        mode: PyTorch's own name: ``RNN_TANH``, ``RNN_RELU``, ``LSTM`` or ``GRU``.
        hidden_size: width of the gates, and of c.
        state_size: width of h; differs from ``hidden_size`` only with ``proj_size``.
    """

    mode: str
    num_layers: int
    num_directions: int
    hidden_size: int
    state_size: int
    has_bias: bool
    dropout: float
    batch_first: bool

    @classmethod
    def of(cls, module: nn.RNNBase) -> Shape:
        """The shape of a fused module as it is now."""
        return cls(
            mode=module.mode,
            num_layers=module.num_layers,
            num_directions=2 if module.bidirectional else 1,
            hidden_size=module.hidden_size,
            state_size=module.proj_size or module.hidden_size,
            has_bias=module.bias,
            dropout=float(module.dropout) if module.training and module.num_layers > 1 else 0.0,
            batch_first=module.batch_first,
        )

    @property
    def kind(self) -> str:
        """The kind as the run log names it: ``RNN``, ``LSTM`` or ``GRU``."""
        return "RNN" if self.mode.startswith("RNN") else self.mode

    @property
    def weights_per_direction(self) -> int:
        """How many flat weights one layer has in one direction."""
        return 2 + 2 * self.has_bias + (self.state_size != self.hidden_size)


Edge = tuple[Node, int]
"""The place in the graph where a tensor was made. It stays right when the tensor is changed in place later."""


def edge_of(tensor: Tensor | None) -> Edge | None:
    """Where a tensor was made; None of a leaf."""
    if tensor is None or tensor.grad_fn is None:
        return None
    return tensor.grad_fn, tensor.output_nr


def is_handed_over(state: Tensor | None) -> bool:
    """Whether a state is a leaf that asks for a gradient and is no parameter: somebody may hand its gradient back by hand."""
    return state is not None and state.is_leaf and state.requires_grad and not isinstance(state, nn.Parameter)


@dataclass(frozen=True, slots=True)
class Edges:
    """Where the tensors of one call hang in the graph, as they were when it ran: ``given`` h0 and c0, ``made`` output, h_n and c_n."""

    input: Edge | None
    given: tuple[Edge | None, ...]
    made: tuple[Edge | None, ...]


class GradientSlot:
    """Keeps the gradient that autograd shows it.

    It holds nothing but gradients: a hook that led back to the call would close the cycle output → hook → call →
    output, which only the garbage collector frees.
    """

    __slots__ = ("_gradients", "_view")
    _paused: ClassVar[bool] = False

    def __init__(self) -> None:
        self._gradients: list[Tensor] = []
        self._view: _View | None = None

    def __call__(self, gradient: Tensor | None) -> None:
        if gradient is not None and not GradientSlot._paused:
            self._gradients.append(gradient)

    def watch(self, tensor: Tensor) -> None:
        """Be shown what arrives at a tensor that needs a gradient.

        A hook on the operation that made it runs after all of the tensor's own: what a model's hook makes of the gradient
        (clamps it, say) is what flows on, and what is kept.
        """
        node, number = tensor.grad_fn, tensor.output_nr
        if node is None:
            tensor.register_hook(self)
        else:
            node.register_prehook(_OfResult(self, number))  # pyright: ignore[reportArgumentType]

    def watch_result(self, tensor: Tensor) -> None:
        """The same of what an operator returned and nobody has used yet.

        It may be another view of all that the operator made (transposed, without a batch). Changing such a view in place takes it
        out of the graph and leaves what it is a view of, so that this is what is watched.
        """
        base = tensor._base
        if base is None or base.grad_fn is None or base.numel() != tensor.numel():
            self.watch(tensor)
            return
        self._view = _View.of(tensor, base)
        self.watch(base)

    @classmethod
    @contextmanager
    def paused(cls) -> Generator[None]:
        """Have no slot keep anything: what runs through the graph now is no backward pass of the training."""
        cls._paused = True
        try:
            yield
        finally:
            cls._paused = False

    @classmethod
    def is_paused(cls) -> bool:
        """Whether what runs through the graph now is no backward pass of the training."""
        return GradientSlot._paused

    @property
    def arrived(self) -> bool:
        """Whether a gradient was shown."""
        return bool(self._gradients)

    def value(self) -> Tensor | None:
        """The gradient, summed where several backward passes sent one; None if none arrived."""
        if not self._gradients:
            return None
        total = self._gradients[0]
        for gradient in self._gradients[1:]:
            total = total + gradient
        return total if self._view is None else self._view.of_gradient(total)

    def clear(self) -> None:
        """Forget what was kept."""
        self._gradients.clear()


class _OfResult:
    """Shows a slot the gradient of one of the results of an operation."""

    __slots__ = ("_number", "_slot")

    def __init__(self, slot: GradientSlot, number: int) -> None:
        self._slot, self._number = slot, number

    def __call__(self, gradients: Sequence[Tensor | None]) -> None:
        self._slot(gradients[self._number])


@dataclass(frozen=True, slots=True)
class _View:
    """How a tensor lies in another one of as many elements."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    base_size: torch.Size
    base_stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, base: Tensor) -> _View:
        offset = int(tensor.storage_offset() - base.storage_offset())
        return cls(tensor.size(), tensor.stride(), offset, base.size(), base.stride())

    def of_gradient(self, gradient: Tensor) -> Tensor:
        """The view's part of the other one's gradient, which may lie in memory in another way."""
        if gradient.stride() != self.base_stride:
            laid_out = gradient.new_empty_strided(self.base_size, self.base_stride)
            gradient = laid_out.copy_(gradient)
        return gradient.as_strided(self.size, self.stride, int(gradient.storage_offset()) + self.offset)


@dataclass(slots=True)
class RecurrentCall(WeaklyHeld):
    """References to everything that one forward of a fused module read and made. No tensor is copied.

    Shapes are the module's own: ``input`` and ``output`` are time-major, batch-first, unbatched, or packed data with
    ``batch_sizes``; ``h0``, ``c0``, ``h_n``, ``c_n`` are ``(layers·directions, batch, width)`` in the caller's batch order,
    without ``batch`` if unbatched.
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
    apart: str | None = None
    """Why it is measured by itself although its state comes from an earlier call, or goes on into a later one."""

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

    def batch_size(self) -> int:
        """How many sequences it has; 1 without a batch dimension."""
        return self.h_n.shape[1] if self.h_n.dim() == 3 else 1

    def _finals(self) -> list[Tensor]:
        return [state for state in (self.h_n, self.c_n) if state is not None]

    def finals_changed(self) -> bool:
        """Whether h_n or c_n was changed in place since the forward: a measurement that does not read them is right all the same."""
        if self.parts:
            return any(part.finals_changed() for part in self.parts)
        return tuple(state._version for state in self._finals()) != self._final_versions

    def _tensors(self) -> list[tuple[str, Tensor]]:
        named = [("input", self.input), ("initial state", self.h0), ("initial state", self.c0), ("output", self.output)]
        return [(name, t) for name, t in named if t is not None] + [("weight", w) for w in self.weights]

    def _versions(self) -> tuple[int, ...]:
        return tuple(tensor._version for _, tensor in self._tensors())

    def changed(self) -> str | None:
        """The first of input, initial state, output and weights that was changed in place since the forward; None if none was."""
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
                slot.watch_result(tensor)


def read_call(
    name: str,
    index: int,
    module: nn.RNNBase,
    inputs: tuple[object, ...],
    outputs: object,
    rng_state: Tensor | None,
    doubt: str | None = None,
) -> RecurrentCall:
    """A call from what a forward hook is shown.

    Raises:
        TypeError: the module's forward takes or returns something other than PyTorch's own does.
    """
    source, hx = inputs[0], inputs[1] if len(inputs) > 1 else None
    if not isinstance(outputs, tuple) or len(outputs) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise TypeError(f"its forward returned {type(outputs).__name__}, not (output, state)")
    result, state = outputs  # pyright: ignore[reportUnknownVariableType]
    h_n, c_n = state if isinstance(state, tuple) else (state, None)  # pyright: ignore[reportUnknownVariableType]
    h0, c0 = hx if isinstance(hx, tuple | list) else (hx, None)  # pyright: ignore[reportUnknownVariableType]
    packed = source if isinstance(source, PackedSequence) else None
    given = packed.data if packed is not None else source
    made = result.data if isinstance(result, PackedSequence) else result  # pyright: ignore[reportUnknownVariableType]
    if not (isinstance(given, Tensor) and isinstance(made, Tensor) and isinstance(h_n, Tensor)):
        raise TypeError("its forward takes or returns something other than tensors and packed sequences")
    if isinstance(result, PackedSequence) != (packed is not None):
        raise TypeError("its forward packs the sequences itself")
    return RecurrentCall(
        module=name,
        index=index,
        shape=Shape.of(module),
        weights=tuple(module._flat_weights),  # pyright: ignore[reportPrivateUsage, reportArgumentType]
        input=given,
        h0=h0 if isinstance(h0, Tensor) else None,
        c0=c0 if isinstance(c0, Tensor) else None,
        output=made,
        h_n=h_n,
        c_n=c_n if isinstance(c_n, Tensor) else None,
        batch_sizes=packed.batch_sizes if packed is not None else None,
        sorted_indices=packed.sorted_indices if packed is not None else None,
        unsorted_indices=packed.unsorted_indices if packed is not None else None,
        rng_state=rng_state,
        doubt=doubt,
        limit=getattr(made.grad_fn, "limit", None),
    )
