"""All layers and directions of one call during a sweep, and the order in which they are visited."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.adjoint import adjoint_of, computed_in
from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.dropout import redraw_masks
from lightning_gradwatch.recurrent.layout import FORWARD, Layout
from lightning_gradwatch.recurrent.measure.anchors import Anchors, norm
from lightning_gradwatch.recurrent.measure.at_once import AtOnce
from lightning_gradwatch.recurrent.measure.boundary import Boundary
from lightning_gradwatch.recurrent.measure.direction import DirectionSweep
from lightning_gradwatch.recurrent.measure.replay import ByTimestep
from lightning_gradwatch.recurrent.measure.undisturbed import undisturbed


class Stack:
    """All layers and directions of one call, with the order in which they are visited."""

    def __init__(
        self,
        call: RecurrentCall,
        layout: Layout,
        anchors: Anchors,
        *,
        chunk: int,
        gates: bool,
        saturation: bool,
        inputs: bool,
        at_once: bool = False,
    ) -> None:
        self._at_once = at_once
        self.call, self.layout, self.anchors = call, layout, anchors
        shape = call.shape
        self.dtype = computed_in(call)
        self.chunk, self._gates, self._saturation = chunk, gates, saturation
        self.chunks = self._chunks(chunk)
        size = layout.timesteps, 1 + len(anchors), len(layout.sequences)
        self.inputs = torch.zeros(size, dtype=torch.float64) if inputs else None
        self.masks = redraw_masks(call, layout)
        self.output_gradient = call.output_gradient.value()
        self.h_n_gradient, self.c_n_gradient = call.h_n_gradient.value(), call.c_n_gradient.value()
        as_made = not call.finals_changed()
        self.h_n, self.c_n = (call.h_n, call.c_n) if as_made else (None, None)
        self.directions = [
            [self._direction(layer, direction) for direction in range(shape.num_directions)]
            for layer in range(shape.num_layers)
        ]

    def _direction(self, layer: int, direction: int) -> DirectionSweep:
        call, layout = self.call, self.layout
        index = layer * call.shape.num_directions + direction
        boundary = Boundary(
            h0=self._cast(layout.read_state(call.h0, index)),
            c0=self._cast(layout.read_state(call.c0, index)),
            h_n_gradient=self._cast(layout.read_state(self.h_n_gradient, index)),
            c_n_gradient=self._cast(layout.read_state(self.c_n_gradient, index)),
            h_n=self._cast(layout.read_state(self.h_n, index)),
            c_n=self._cast(layout.read_state(self.c_n, index)),
        )
        adjoint = adjoint_of(call, layer, direction)
        replay = AtOnce(adjoint) if self._at_once else ByTimestep(adjoint, call.limit)
        keep = layout.timesteps <= self.chunk
        return DirectionSweep(replay, layout, direction, self.anchors, boundary, keep, self._gates, self._saturation)

    def _chunks(self, chunk: int) -> list[tuple[int, int]]:
        """At most ``chunk`` steps each. Timestep by timestep a new one begins behind each
        anchor, so that no stream is carried before it begins; at once, fewer chunks are cheaper.
        """
        steps = self.layout.timesteps
        edges = {*range(0, steps, chunk), steps}
        if self.call.shape.num_directions == 1 and not self._at_once:
            edges |= {step + 1 for step in self.anchors.beginnings()}
        ordered = sorted(edges)
        return list(pairwise(ordered))

    def _streams(self, start: int) -> int:
        """How many streams carry a gradient at ``start`` or later; all of them where
        a direction runs the other way.
        """
        return 1 + (self.anchors.begun(start) if self.call.shape.num_directions == 1 else len(self.anchors))

    def _cast(self, tensor: axes.Float[Tensor, "sequence width"] | None) -> axes.Float[Tensor, "sequence width"] | None:
        return None if tensor is None else tensor.detach().to(self.dtype)

    def _input(self, direction: int, start: int, stop: int) -> axes.Float[Tensor, "time sequence input"]:
        return self.layout.read(self.call.input.detach(), direction, start, stop).to(self.dtype).contiguous()

    def _recorded(self, direction: int, start: int, stop: int) -> axes.Float[Tensor, "time sequence state"]:
        """What the forward gave out for a direction of the top layer."""
        width = self.call.shape.state_size
        columns = self.call.output.detach()[..., direction * width : (direction + 1) * width]
        return self.layout.read(columns, direction, start, stop).to(self.dtype)

    def _mask(self, layer: int, start: int, stop: int) -> axes.Float[Tensor, "time sequence input"] | None:
        """The dropout below ``layer``, forwards."""
        if not layer or not self.masks:
            return None
        return self.layout.read_dropout(self.masks[layer - 1], start, stop).to(self.dtype)

    def _from_output(self, direction: int, start: int, stop: int) -> axes.Float[Tensor, "time stream sequence state"]:
        """What the loss sends to a direction of the top layer, for every stream."""
        width = self.call.shape.state_size
        streams = self._streams(start)
        direct = self.call.weights[0].new_zeros(
            stop - start, streams, len(self.layout.sequences), width, dtype=self.dtype
        )
        if self.output_gradient is None:
            return direct
        columns = self.output_gradient[..., direction * width : (direction + 1) * width]
        whole = self.layout.read(columns, direction, start, stop).to(self.dtype)
        direct[:, 0] = whole * self.anchors.lift
        times = self.layout.times(direction, start, stop)
        here = (times[:, None] == self.anchors.timestep[: streams - 1]) & self.layout.valid(start, stop)[:, None]
        t, a, s = torch.nonzero(here, as_tuple=True)
        scale = self.anchors.scale[a, s].to(direct)
        direct[t, a + 1, s] = whole[t, s] * scale[:, None]
        return direct

    def sweep(self) -> None:
        """Run it. Nothing of it is a backward pass of the training."""
        with undisturbed(self.call.output.device.type):
            if self.call.shape.num_directions == 1:
                self._sweep_unidirectional()
            else:
                self._sweep_bidirectional()

    def _sweep_unidirectional(self) -> None:
        """Chunk by chunk through the whole stack: up it forwards, to know the states between
        chunks; then down it, backwards.
        """
        for chunk in range(len(self.chunks)):
            self._climb(chunk)
        for chunk in range(len(self.chunks) - 1, -1, -1):
            start, stop = self.chunks[chunk]
            self._climb(chunk)
            gradient = self._from_output(FORWARD, start, stop)
            for layer in range(len(self.directions) - 1, -1, -1):
                below = self.directions[layer][0].back(chunk, start, stop, gradient, with_input=self._goes_below(layer))
                if not layer:
                    self._note_inputs(start, stop, below)
                mask = self._mask(layer, start, stop)
                gradient = below if mask is None or below is None else below * mask[:, None]
                if gradient is None:
                    break

    def _climb(self, chunk: int) -> None:
        if all(sweep.is_climbed(chunk) for (sweep,) in self.directions):
            return
        start, stop = self.chunks[chunk]
        x = self._input(FORWARD, start, stop)
        for layer, (sweep,) in enumerate(self.directions):
            top = layer == len(self.directions) - 1
            mask = self._mask(layer, start, stop)
            x = x if mask is None else x * mask
            x = sweep.climb(chunk, start, stop, x, self._recorded(FORWARD, start, stop) if top else None)

    def _sweep_bidirectional(self) -> None:
        """Layer by layer: a layer's two directions run against each other, so each needs
        all of what its neighbour gives.
        """
        inputs: list[Callable[[int, int, int], Tensor]] = [self._input]
        for layer, pair in enumerate(self.directions[:-1]):
            states = self._run_layer(pair, inputs[layer])
            mask = self._mask(layer + 1, 0, self.layout.timesteps)
            states = states if mask is None else states * mask
            inputs.append(lambda d, start, stop, states=states: self.layout.read_padded(states, d, start, stop))
        gradient: Callable[[int, int, int], Tensor] = self._from_output
        for layer in range(len(self.directions) - 1, -1, -1):
            below = self._back_layer(layer, inputs[layer], gradient)
            if below is None or not layer:
                self._note_inputs(0, self.layout.timesteps, below)
                break
            mask = self._mask(layer, 0, self.layout.timesteps)
            below = below if mask is None else below * mask[:, None]
            gradient = self._halves(below)

    def _run_layer(
        self, pair: list[DirectionSweep], source: Callable[[int, int, int], Tensor]
    ) -> axes.Float[Tensor, "time sequence input"]:
        """Both directions of a lower layer, in the caller's time: ``(time, sequence, 2·state)``."""
        parts: list[Tensor] = []
        for direction, sweep in enumerate(pair):
            chunks = [sweep.climb(k, s, e, source(direction, s, e), None) for k, (s, e) in enumerate(self.chunks)]
            parts.append(self.layout.read_padded(torch.cat(chunks), direction, 0, self.layout.timesteps))
        return torch.cat(parts, -1)

    def _back_layer(
        self, layer: int, source: Callable[[int, int, int], Tensor], gradient: Callable[[int, int, int], Tensor]
    ) -> axes.Float[Tensor, "time stream sequence input"] | None:
        """Both directions of a layer; ∂L/∂x in the caller's time
        ``(time, stream, sequence, input)``, None at the bottom.
        """
        top = layer == len(self.directions) - 1
        total: Tensor | None = None
        for direction, sweep in enumerate(self.directions[layer]):
            parts: list[Tensor] = []
            if top:
                for k, (start, stop) in enumerate(self.chunks):
                    recorded = self._recorded(direction, start, stop)
                    sweep.climb(k, start, stop, source(direction, start, stop), recorded)
            for k in range(len(self.chunks) - 1, -1, -1):
                start, stop = self.chunks[k]
                recorded = self._recorded(direction, start, stop) if top else None
                sweep.climb(k, start, stop, source(direction, start, stop), recorded)
                part = sweep.back(k, start, stop, gradient(direction, start, stop), with_input=self._goes_below(layer))
                if part is not None:
                    parts.insert(0, part)
            if parts:
                natural = self._flip_streams(torch.cat(parts), direction)
                total = natural if total is None else total + natural
        return total

    def _flip_streams(
        self, gradient: axes.Float[Tensor, "time stream sequence width"], direction: int
    ) -> axes.Float[Tensor, "time stream sequence width"]:
        """``(time, stream, sequence, width)`` from a direction's own order to the caller's time,
        or back: it is its own inverse.
        """
        streams = gradient.unbind(1)
        return torch.stack([self.layout.read_padded(s, direction, 0, self.layout.timesteps) for s in streams], 1)

    def _halves(self, below: axes.Float[Tensor, "time stream sequence width"]) -> Callable[[int, int, int], Tensor]:
        width = self.call.shape.state_size
        halves = [self._flip_streams(below[..., d * width : (d + 1) * width], d) for d in range(2)]
        return lambda direction, start, stop: halves[direction][start:stop]

    def _goes_below(self, layer: int) -> bool:
        """Whether anybody wants to know what a layer sends to its input."""
        return layer > 0 or self.inputs is not None

    def _note_inputs(
        self, start: int, stop: int, gradients: axes.Float[Tensor, "time stream sequence input"] | None
    ) -> None:
        """Norms of what the lowest layer sends to its input."""
        if self.inputs is not None and gradients is not None:
            into = self.inputs[start:stop, : gradients.shape[1]]
            into.copy_(norm(gradients))
            into[:, 0] /= self.anchors.lift

    def is_finite(self) -> bool:
        """Whether all of the whole loss's gradients are."""
        return all(bool(sweep.total[:, 0].isfinite().all()) for pair in self.directions for sweep in pair)
