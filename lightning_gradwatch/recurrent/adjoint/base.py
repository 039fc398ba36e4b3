"""What every kind of recurrence offers to the sweep: gates recomputed at once, then the
adjoint recurrence step by step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.layout import Layout
from lightning_gradwatch.recurrent.limit import Limit
from lightning_gradwatch.recurrent.shape import Shape


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of one layer and direction, in the dtype of the sweep. ``w_hr`` is
    there with ``proj_size`` only.
    """

    w_ih: axes.Float[Tensor, "gated input"]
    w_hh: axes.Float[Tensor, "gated state"]
    b_ih: axes.Float[Tensor, " gated"] | None
    b_hh: axes.Float[Tensor, " gated"] | None
    w_hr: axes.Float[Tensor, "state hidden"] | None

    @classmethod
    def unpack(cls, flat: tuple[Tensor, ...], shape: Shape, dtype: torch.dtype) -> Weights:
        """From PyTorch's flat order."""
        rest = [weight.detach().to(dtype) for weight in flat]
        w_ih, w_hh = rest[:2]
        b_ih, b_hh = rest[2:4] if shape.has_bias else (None, None)
        w_hr = rest[-1] if shape.state_size != shape.hidden_size else None
        return cls(w_ih, w_hh, b_ih, b_hh, w_hr)

    def flat(self) -> list[Tensor]:
        """PyTorch's flat order."""
        return [w for w in (self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.w_hr) if w is not None]


@dataclass(slots=True)
class Carry:
    """What flows from one timestep to the one before it: ``(stream, sequence, width)``.

    ``hidden`` is the recurrent part of ∂L/∂h, ``cell`` that of ∂L/∂c (LSTM only).
    """

    hidden: axes.Float[Tensor, "stream sequence state"]
    cell: axes.Float[Tensor, "stream sequence hidden"] | None = None

    def first(self, streams: int) -> Carry:
        """That of the first ``streams`` alone; the others have not begun."""
        return Carry(self.hidden[:streams].clone(), None if self.cell is None else self.cell[:streams].clone())

    def replace(self, part: Carry) -> None:
        """Take over what the first streams carry now."""
        self.hidden[: len(part.hidden)] = part.hidden
        if self.cell is not None and part.cell is not None:
            self.cell[: len(part.cell)] = part.cell


@dataclass(slots=True)
class Ends:
    """Where sequences end within a chunk, and what the loss sends
    straight to their final cell state.

    Args:
        at: step within the chunk → the sequences whose last valid step it is.
        cell: ``(stream, sequence, hidden)``, what ∂L/∂c_n contributes; None if nothing.
    """

    at: dict[int, axes.Int[Tensor, " ending"]] = field(default_factory=dict[int, Tensor])
    cell: axes.Float[Tensor, "stream sequence hidden"] | None = None

    @classmethod
    def within(
        cls,
        layout: Layout,
        start: int,
        stop: int,
        direct: axes.Float[Tensor, "time stream sequence state"],
        h_n: axes.Float[Tensor, "stream sequence state"] | None,
        c_n: axes.Float[Tensor, "stream sequence hidden"] | None,
    ) -> Ends:
        """Those in a chunk, own-order steps ``start`` to ``stop``.

        Args:
            direct: what the loss sends to the chunk's states ``(time, stream, sequence, state)``;
                what it sends to their final ones is added to it in place.
            h_n, c_n: ∂L/∂h_n and ∂L/∂c_n ``(stream, sequence, width)``; None if nothing.
        """
        ends = cls(cell=c_n)
        for step in torch.unique(layout.lengths - 1).tolist():
            if start <= step < stop:
                ending = torch.nonzero(layout.lengths - 1 == step).flatten().to(direct.device)
                ends.at[step - start] = ending
                if h_n is not None:
                    direct[step - start][:, ending] += h_n[:, ending]
        return ends

    def begin(self, step: int, carry: Carry) -> None:
        """Let the sequences that end at ``step`` begin: nothing
        comes back from beyond their end.
        """
        ending = self.at.get(step)
        if ending is None:
            return
        carry.hidden[:, ending] = 0
        if carry.cell is not None:
            carry.cell[:, ending] = 0 if self.cell is None else self.cell[:, ending]


F = TypeVar("F")


class Adjoint(ABC, Generic[F]):
    """One layer in one direction. All tensors are time-major, in the
    direction's own order, without graph.
    """

    def __init__(self, weights: Weights, shape: Shape) -> None:
        self.weights = weights
        self.shape = shape

    def run(
        self,
        x: axes.Float[Tensor, "time sequence input"],
        h: axes.Float[Tensor, "sequence state"],
        c: axes.Float[Tensor, "sequence hidden"] | None,
    ) -> tuple[
        axes.Float[Tensor, "time sequence state"],
        axes.Float[Tensor, "sequence state"],
        axes.Float[Tensor, "sequence hidden"] | None,
    ]:
        """The fused forward of this layer over a chunk: ``(h of every step, last h, last c)``."""
        result = self.operate(x, [h[None]] if c is None else [h[None], c[None]], self.weights.flat())
        return result[0], result[1][0], result[2][0] if c is not None else None

    def operate(
        self,
        x: axes.Float[Tensor, "... input"],
        starts: Sequence[Tensor],
        weights: list[Tensor],
        batch_sizes: Tensor | None = None,
        *,
        train: bool = False,
    ) -> tuple[Tensor, ...]:
        """The operator behind nn.RNN, nn.LSTM and nn.GRU: the states of all steps, then the last h
        and the last c.

        Args:
            x: time-major, or packed data with its ``batch_sizes``.
            starts: h, and for an LSTM c, before the first step ``(1, sequence, width)``.
            train: whether a backward pass is to come, which cuDNN asks for.
        """
        function = getattr(torch._VF, self.shape.mode.lower())  # type: ignore[attr-defined]
        state = tuple(starts) if len(starts) > 1 else starts[0]
        options = self.shape.has_bias, 1, 0.0, train, False
        if batch_sizes is None:
            return function(x, state, weights, *options, False)
        return function(x, batch_sizes, state, weights, *options)

    @staticmethod
    def differentiate(results: list[Tensor], given: list[Tensor], sent: list[Tensor]) -> tuple[Tensor, ...]:
        """The gradients of what was ``given`` to the operator; ``sent``: of its results."""
        return torch.autograd.grad(results, given, sent)

    def initial_states(
        self,
        h0: axes.Float[Tensor, "sequence state"] | None,
        c0: axes.Float[Tensor, "sequence hidden"] | None,
        sequences: int,
    ) -> tuple[axes.Float[Tensor, "sequence state"], axes.Float[Tensor, "sequence hidden"] | None]:
        """The states ``(sequence, width)`` before the first step, zeros where none are given; of c
        for an LSTM only.
        """
        nothing = self.new_carry(1, sequences)
        h = nothing.hidden[0] if h0 is None else h0
        if nothing.cell is None:
            return h, None
        return h, nothing.cell[0] if c0 is None else c0

    def new_carry(self, streams: int, sequences: int) -> Carry:
        """Nothing comes back from beyond the end."""
        like = self.weights.w_hh
        hidden = like.new_zeros(streams, sequences, self.shape.state_size)
        cell = like.new_zeros(streams, sequences, self.shape.hidden_size) if self.shape.mode == "LSTM" else None
        return Carry(hidden, cell)

    def pre_activations(
        self, x: axes.Float[Tensor, "time sequence input"], h_previous: axes.Float[Tensor, "time sequence state"]
    ) -> axes.Float[Tensor, "time sequence gate hidden"]:
        """What enters the gates' nonlinearities:
        ``(time, sequence, gate, hidden)``, in PyTorch's order of gates.
        """
        return self.summed(x, h_previous).unflatten(-1, (-1, self.shape.hidden_size))

    def summed(
        self, x: axes.Float[Tensor, "time sequence input"], h_previous: axes.Float[Tensor, "time sequence state"]
    ) -> axes.Float[Tensor, "time sequence gated"]:
        """W_ih x_t + b_ih + W_hh h_{t−1} + b_hh of all steps, in memory of its own."""
        w = self.weights
        made = functional.linear(x, w.w_ih, None if w.b_ih is None or w.b_hh is None else w.b_ih + w.b_hh)
        made.flatten(0, 1).addmm_(h_previous.flatten(0, 1), w.w_hh.T)
        return made

    @abstractmethod
    def prepare(
        self,
        x: axes.Float[Tensor, "time sequence input"],
        h_previous: axes.Float[Tensor, "time sequence state"],
        c_start: axes.Float[Tensor, "sequence hidden"] | None,
    ) -> F:
        """Recompute the gates of all steps of a chunk at once, and from them the
        factors of the adjoint recurrence.

        Args:
            x: ``(time, sequence, input)``.
            h_previous: ``(time, sequence, state)``, the state that entered each step.
            c_start: ``(sequence, hidden)``, the cell state that entered the first step (LSTM only).
        """

    @abstractmethod
    def recomputed(
        self, factors: F
    ) -> tuple[axes.Float[Tensor, "time sequence state"], axes.Float[Tensor, "time sequence hidden"] | None]:
        """``(h of every step, c of every step)`` as the recomputed gates give them."""

    @abstractmethod
    def sweep(
        self,
        factors: F,
        direct: axes.Float[Tensor, "time stream sequence state"],
        carry: Carry,
        ends: Ends,
        limit: Limit | None = None,
    ) -> tuple[
        axes.Float[Tensor, "time stream sequence state"], axes.Float[Tensor, "time stream sequence hidden"] | None
    ]:
        """Run the adjoint recurrence from the chunk's last step to its first;
        ``carry`` is updated in place.

        Args:
            direct: ``(time, stream, sequence, state)``; it becomes ∂L/∂h, in place.
            limit: bounds ∂L/∂h_t and ∂L/∂c_t of the first stream at
                every step, before they flow on.

        Returns:
            ∂L/∂h ``(time, stream, sequence, state)`` and ∂L/∂c
            ``(time, stream, sequence, hidden)``, both total.
        """

    @abstractmethod
    def input_delta(
        self,
        factors: F,
        hidden: axes.Float[Tensor, "time stream sequence state"],
        cell: axes.Float[Tensor, "time stream sequence hidden"] | None,
    ) -> axes.Float[Tensor, "time stream sequence gated"]:
        """δ, the gradient of W_ih x_t + b_ih, of every step:
        ``(time, stream, sequence, gates·hidden)``.
        """

    def recurrent_delta(
        self,
        factors: F,
        hidden: axes.Float[Tensor, "time stream sequence state"],
        input_delta: axes.Float[Tensor, "time stream sequence gated"],
    ) -> axes.Float[Tensor, "time stream sequence gated"]:
        """The gradient of W_hh h_{t−1} + b_hh: the same but in a GRU."""
        return input_delta

    def projection_gradient(
        self, factors: F, hidden: axes.Float[Tensor, "time stream sequence state"]
    ) -> list[axes.Float[Tensor, "state hidden"]]:
        """∂L/∂W_hr, if there is one, of a single stream."""
        return []
