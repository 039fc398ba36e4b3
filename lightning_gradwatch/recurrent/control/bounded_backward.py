"""A fused module's backward pass with a hand on the hidden state at every timestep:
its forward stays PyTorch's own.

PyTorch's operators hand out no gradient between two timesteps, so there is nothing to hold on to.
What they made is kept, and hung into the graph again behind a backward of our own: the adjoint
recurrence in closed form, and the weights' gradients from its δ by one matrix product each. Where
nothing is bounded, it agrees with PyTorch's to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.adjoint import Adjoint, Ends, adjoint_of, computed_in
from lightning_gradwatch.recurrent.adjoint.quiet import without_warnings
from lightning_gradwatch.recurrent.adjoint.rnn import RNNAdjoint
from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.control.omega import Omega
from lightning_gradwatch.recurrent.dropout import redraw_masks
from lightning_gradwatch.recurrent.layout import FORWARD, Layout
from lightning_gradwatch.recurrent.limit import Limit


@dataclass(frozen=True)
class Rule:
    """What is done to a gradient on its way through time: bounded, and Ω's added to
    that of the recurrent weights.
    """

    limit: Limit | None = None
    omega: Omega | None = None


def reattach(call: RecurrentCall, rule: Rule) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, h_n and c_n of a call with the same values, whose gradient follows the rule.

    They are copies: a model may change them in place, and the backward needs them as they were.
    """
    output = call.output.detach()
    read = (call.input, output, call.h0, call.c0, *call.weights)
    made = [tensor.detach().clone() for tensor in (output, call.h_n, call.c_n) if tensor is not None]
    bare = replace(call, input=None, output=None, h0=None, c0=None, h_n=None, c_n=None, weights=())  # pyright: ignore
    output, h_n, *rest = _Bounded.apply(rule, bare, made, *read)  # pyright: ignore[reportGeneralTypeIssues]
    output.grad_fn.limit = rule.limit  # for a GradWatch, whose measurement follows the same rule
    return output, h_n, rest[0] if rest else None


class _Bounded(torch.autograd.Function):
    """Autograd's side of it. Arguments: input, output, h0, c0, then the flat weights."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, call: RecurrentCall, made: list[Tensor], *read: Tensor | None) -> Any:
        ctx.rule, ctx.call = rule, call
        ctx.save_for_backward(*read)
        ctx.set_materialize_grads(False)
        return tuple(made)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor | None
    ) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "A gradient that was clipped through time cannot be differentiated again (`create_graph=True`). "
                "Leave out AdaptiveClip(clip_through_time=…, omega=…) where the loss holds a gradient."
            )
        source, output, h0, c0, *weights = ctx.saved_tensors
        call = replace(ctx.call, input=source, output=output, h0=h0, c0=c0, weights=tuple(weights))
        wanted = ctx.needs_input_grad[3]
        with without_warnings(), torch.autocast(source.device.type, enabled=False):
            back = _Back(call, ctx.rule, *gradients)
            back.run(with_input=wanted)
        back_gradients = [back.source if wanted else None, None, back.h0, back.c0, *back.weights]
        read = (source, output, h0, c0, *weights)
        return (
            None,
            None,
            None,
            *(_like(gradient, tensor) for gradient, tensor in zip(back_gradients, read, strict=True)),
        )


class _Back:
    """One backward pass of one call. All tensors between are
    ``(time, sequence, width)`` of all sequences.

    Attributes:
        source, h0, c0, weights: the gradients found, in the module's own layout.
    """

    def __init__(
        self,
        call: RecurrentCall,
        rule: Rule,
        output: Tensor | None,
        h_n: Tensor | None = None,
        c_n: Tensor | None = None,
    ) -> None:
        self.call, self.rule = call, rule
        self.from_output, self.from_h_n, self.from_c_n = output, h_n, c_n
        self.layout = Layout(call)
        self.dtype = computed_in(call)
        self.masks = [
            self.layout.read_dropout(mask, 0, self.layout.timesteps) for mask in redraw_masks(call, self.layout)
        ]
        self.valid = None if self.layout.uniform else self.layout.valid(0, self.layout.timesteps)[..., None]
        self.source: Tensor | None = None
        self.h0 = None if call.h0 is None else torch.zeros_like(call.h0, dtype=self.dtype)
        self.c0 = None if call.c0 is None else torch.zeros_like(call.c0, dtype=self.dtype)
        self.weights: list[Tensor | None] = [None] * len(call.weights)

    def run(self, *, with_input: bool) -> None:
        """Up through the lower layers' states, which nobody recorded; then down."""
        call, layout, steps = self.call, self.layout, self.layout.timesteps
        inputs = [layout.read(call.input, FORWARD, 0, steps).to(self.dtype)]
        states = [self._lower_states(layer, inputs) for layer in range(call.shape.num_layers - 1)]
        width = call.shape.state_size
        top = layout.read(call.output, FORWARD, 0, steps).to(self.dtype)
        states.append(
            [self._in_own_order(top[..., d * width : (d + 1) * width], d) for d in range(call.shape.num_directions)]
        )
        if self.from_output is None:
            gradient: Tensor | None = torch.zeros_like(top)
        else:
            gradient = layout.read(self.from_output, FORWARD, 0, steps).to(self.dtype)
        for layer in range(call.shape.num_layers - 1, -1, -1):
            assert gradient is not None
            gradient = self._back_layer(layer, inputs[layer], states[layer], gradient, layer > 0 or with_input)
            if layer and self.masks and gradient is not None:
                gradient = gradient * self.masks[layer - 1]
        self.source = None if gradient is None else layout.write(gradient)

    def _in_own_order(
        self, natural: axes.Float[Tensor, "time sequence width"], direction: int
    ) -> axes.Float[Tensor, "time sequence width"]:
        """From the caller's time to a direction's own order, or back."""
        return self.layout.read_padded(natural, direction, 0, self.layout.timesteps)

    def _start(
        self, adjoint: Adjoint[Any], index: int
    ) -> tuple[axes.Float[Tensor, "sequence state"], axes.Float[Tensor, "sequence hidden"] | None]:
        h0, c0 = (self._state(given, index) for given in (self.call.h0, self.call.c0))
        return adjoint.initial_states(h0, c0, len(self.layout.sequences))

    def _state(
        self, tensor: axes.Float[Tensor, "cascade ... width"] | None, index: int
    ) -> axes.Float[Tensor, "sequence width"] | None:
        """An initial or final state, or its gradient, of one layer and direction."""
        state = self.layout.read_state(tensor, index)
        return None if state is None else state.to(self.dtype)

    def _lower_states(self, layer: int, inputs: list[Tensor]) -> list[axes.Float[Tensor, "time sequence state"]]:
        """Both directions' states, in their own order; what the next
        layer reads is added to ``inputs``.
        """
        by_direction: list[Tensor] = []
        for direction in range(self.call.shape.num_directions):
            adjoint = adjoint_of(self.call, layer, direction)
            start = self._start(adjoint, layer * self.call.shape.num_directions + direction)
            states, _, _ = adjoint.run(self._in_own_order(inputs[layer], direction), *start)
            # Past a sequence's end it runs on over zeros, and might overflow.
            by_direction.append(
                states if self.valid is None else states.masked_fill(~self.valid.to(states.device), 0.0)
            )
        natural = torch.cat(
            [self._in_own_order(states, direction) for direction, states in enumerate(by_direction)], -1
        )
        inputs.append(natural * self.masks[layer] if self.masks else natural)
        return by_direction

    def _back_layer(
        self,
        layer: int,
        inputs: axes.Float[Tensor, "time sequence input"],
        states: Sequence[axes.Float[Tensor, "time sequence state"]],
        gradient: axes.Float[Tensor, "time sequence width"],
        with_input: bool,
    ) -> axes.Float[Tensor, "time sequence input"] | None:
        """∂L/∂x of a layer from ∂L/∂h of its output, both in the caller's time; weights
        and initial states on the way.
        """
        width, directions = self.call.shape.state_size, self.call.shape.num_directions
        below: Tensor | None = None
        for direction in range(directions):
            index = layer * directions + direction
            adjoint = adjoint_of(self.call, layer, direction)
            arriving = self._in_own_order(gradient[..., direction * width : (direction + 1) * width], direction)
            delta = self._back_direction(
                adjoint, index, self._in_own_order(inputs, direction), states[direction], arriving
            )
            if with_input:
                part = self._in_own_order(delta.matmul(adjoint.weights.w_ih), direction)
                below = part if below is None else below + part
        return below

    def _back_direction(
        self,
        adjoint: Adjoint[Any],
        index: int,
        x: axes.Float[Tensor, "time sequence input"],
        h: axes.Float[Tensor, "time sequence state"],
        direct: axes.Float[Tensor, "time sequence state"],
    ) -> axes.Float[Tensor, "time sequence gated"]:
        """δ of a direction in its own order, with one stream."""
        h_start, c_start = self._start(adjoint, index)
        h_previous = torch.cat([h_start[None], h[:-1]])
        # For an RNN the recorded states say all; a ReLU computed again might
        # fall to the other side of zero.
        factors = adjoint.of_states(h) if isinstance(adjoint, RNNAdjoint) else adjoint.prepare(x, h_previous, c_start)
        direct = direct[:, None].clone()
        h_n, c_n = (self._state(gradient, index) for gradient in (self.from_h_n, self.from_c_n))
        h_n, c_n = (None if final is None else final[None] for final in (h_n, c_n))
        ends = Ends.within(self.layout, 0, self.layout.timesteps, direct, h_n, c_n)
        carry = adjoint.new_carry(1, len(self.layout.sequences))
        hidden, cell = adjoint.sweep(factors, direct, carry, ends, self.rule.limit)
        delta = adjoint.input_delta(factors, hidden, cell)
        recurrent = adjoint.recurrent_delta(factors, hidden, delta)
        gradients = _weight_gradients(adjoint, factors, x, h_previous, hidden, delta, recurrent)
        if self.rule.omega is not None and isinstance(adjoint, RNNAdjoint):
            gradients[1] = gradients[1] + self.rule.omega.gradient(factors.slope, delta[:, 0], adjoint.weights.w_hh)
        count = self.call.shape.weights_per_direction
        self.weights[index * count : (index + 1) * count] = gradients
        for whole, part in ((self.h0, carry.hidden), (self.c0, carry.cell)):
            if whole is not None and part is not None:
                whole[index] = part[0].view_as(whole[index])
        return delta[:, 0]


def _weight_gradients(
    adjoint: Adjoint[Any],
    factors: Any,
    x: axes.Float[Tensor, "time sequence input"],
    h_previous: axes.Float[Tensor, "time sequence state"],
    hidden: axes.Float[Tensor, "time stream sequence state"],
    delta: axes.Float[Tensor, "time stream sequence gated"],
    recurrent: axes.Float[Tensor, "time stream sequence gated"],
) -> list[Tensor]:
    """In PyTorch's flat order, each summed over all timesteps and sequences at once."""
    rows, recurrent_rows = delta.flatten(0, 2), recurrent.flatten(0, 2)
    gradients = [rows.T.matmul(x.flatten(0, 1)), recurrent_rows.T.matmul(h_previous.flatten(0, 1))]
    if adjoint.shape.has_bias:
        gradients += [rows.sum(0), recurrent_rows.sum(0)]
    return gradients + adjoint.projection_gradient(factors, hidden)


def _like(gradient: Tensor | None, tensor: Tensor | None) -> Tensor | None:
    return None if gradient is None or tensor is None else gradient.to(tensor.dtype)
