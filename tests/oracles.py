"""The slow and obvious: a fused module unrolled with PyTorch's own cells, sequence by sequence, and ``autograd.grad``."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call


@dataclass
class Unrolled:
    """The hidden states of one sequence in the autograd graph, ``[layer][direction][timestep]``.

    ``h`` are the states themselves; ``h_out`` stand for what leaves the recurrence (to the layer above, or as h_n), so that
    their gradient is the direct one. ``c``: LSTM only. Each tensor is ``(1, width)``.
    """

    output: list[Tensor] = field(default_factory=list)
    h: list[list[list[Tensor]]] = field(default_factory=list)
    h_out: list[list[list[Tensor]]] = field(default_factory=list)
    c: list[list[list[Tensor]]] = field(default_factory=list)
    h_n: list[Tensor] = field(default_factory=list)
    c_n: list[Tensor] = field(default_factory=list)


def cell_of(module: nn.RNNBase, layer: int, direction: int):
    """A step function ``(x, h, c) → (h, c)`` from PyTorch's own cell; its gradients reach the module's weights."""
    suffix = f"l{layer}" + ("_reverse" if direction else "")
    weights = {
        name.removesuffix("_" + suffix): value
        for name, value in module.named_parameters()
        if name.endswith("_" + suffix)
    }
    width, size = weights["weight_ih"].shape[1], module.hidden_size
    options = {"bias": module.bias, "dtype": weights["weight_ih"].dtype}
    # Cells are called on a batch of one: without it they squeeze their results, and c leaves the graph of h.
    if module.mode == "LSTM" and module.proj_size:  # the projected state enters the cell as part of its input
        projection = weights.pop("weight_hr")
        weights["weight_ih"] = torch.cat([weights["weight_ih"], weights["weight_hh"]], 1)
        weights["weight_hh"] = torch.zeros(4 * size, size, dtype=projection.dtype)
        cell = nn.LSTMCell(width + module.proj_size, size, **options)

        def step(x: Tensor, h: Tensor, c: Tensor):
            m, c = functional_call(cell, weights, (torch.cat([x, h], 1), (torch.zeros_like(c), c)))
            return nn.functional.linear(m, projection), c

        return step
    if module.mode == "LSTM":
        cell = nn.LSTMCell(width, size, **options)
    elif module.mode == "GRU":
        cell = nn.GRUCell(width, size, **options)
    else:
        cell = nn.RNNCell(width, size, nonlinearity=module.mode.removeprefix("RNN_").lower(), **options)
    if module.mode == "LSTM":
        return lambda x, h, c: functional_call(cell, weights, (x, (h, c)))
    return lambda x, h, c: (functional_call(cell, weights, (x, h)), None)


def unroll(
    module: nn.RNNBase,
    x: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    masks: list[Tensor] | None = None,
) -> Unrolled:
    """Run one sequence ``(time, input)`` through ``module`` by single cells.

    Args:
        h0, c0: ``(layers·directions, width)``.
        masks: the dropout between layers, ``(time, width)`` below each layer but the first.
    """
    made = Unrolled()
    directions = 2 if module.bidirectional else 1
    state_size = getattr(module, "proj_size", 0) or module.hidden_size
    inputs = list(x[:, None])
    for layer in range(module.num_layers):
        if layer and masks:
            inputs = [value * keep for value, keep in zip(inputs, masks[layer - 1][:, None], strict=True)]
        outs = []
        made.h.append([])
        made.h_out.append([])
        made.c.append([])
        for direction in range(directions):
            step = cell_of(module, layer, direction)
            index = layer * directions + direction
            h = x.new_zeros(1, state_size) if h0 is None else h0[index][None]
            c = x.new_zeros(1, module.hidden_size) if c0 is None else c0[index][None]
            order = range(len(inputs)) if not direction else reversed(range(len(inputs)))
            h_at, out_at, c_at = {}, {}, {}
            for t in order:
                h, c = step(inputs[t], h, c)
                h.requires_grad_(True)
                h_at[t], out_at[t], c_at[t] = h, h * 1, c
            times = range(len(inputs))
            made.h[layer].append([h_at[t] for t in times])
            made.h_out[layer].append([out_at[t] for t in times])
            made.c[layer].append([c_at[t] for t in times] if module.mode == "LSTM" else [])
            last = 0 if direction else len(inputs) - 1
            made.h_n.append(out_at[last])
            made.c_n.append(c_at[last] * 1 if module.mode == "LSTM" else None)
            outs.append(made.h_out[layer][direction])
        inputs = [torch.cat(pair, 1) for pair in zip(*outs, strict=True)] if directions == 2 else outs[0]
    made.output = inputs
    return made


def gradients(loss: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """∂loss/∂tensor, zeros where the loss does not depend on it."""
    if not loss.requires_grad:
        return [torch.zeros_like(t) for t in tensors]
    found = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]


def norms(gradients: list[Tensor]) -> Tensor:
    """The L2 norm of each, in float64."""
    return torch.stack([g.double().norm() for g in gradients])


@dataclass
class Scanned:
    """A diagonal recurrence, one timestep after the other, in the graph: ``(batch, time, …)`` in the caller's order.

    Attributes:
        states: by timestep; ``stacked`` is what the loss reads, so that its gradient is the direct one.
        order: of the timesteps, as the recurrence visits them.
    """

    states: list[Tensor]
    stacked: Tensor
    order: list[int]

    def totals(self, loss: Tensor) -> Tensor:
        """‖∂L/∂h_t‖ ``(batch, time)``."""
        return torch.stack([size(g) for g in torch.autograd.grad(loss, self.states, retain_graph=True)], 1)

    def direct(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.stacked, retain_graph=True)[0]

    def lagged(self, loss: Tensor, anchor: int) -> Tensor:
        """‖∂L_τ/∂h_{τ−k}‖ / ‖∂L_τ/∂h_τ‖ ``(batch, lag)``, over the channels; NaN where nothing is sent."""
        norms = torch.stack([size(g) for g in self.channels(loss, anchor)], 1)
        return norms / norms[:, :1]

    def channels(self, loss: Tensor, anchor: int) -> list[Tensor]:
        """The gradient of the anchor's loss by lag, each ``(batch, …)``."""
        sent = self.direct(loss)[:, anchor]
        before = self.order[: self.order.index(anchor) + 1][::-1]
        return list(torch.autograd.grad(self.states[anchor], [self.states[t] for t in before], sent, retain_graph=True))


def size(gradient: Tensor) -> Tensor:
    """L2 norm over all but the batch."""
    return gradient.reshape(len(gradient), -1).abs().square().sum(1).sqrt()


def scanned(decay: Tensor, inputs: Tensor, *, reverse: bool = False) -> Scanned:
    """The states of h_t = a_t ⊙ h_{t−1} + b_t, or with ``reverse`` of h_t = a_t ⊙ h_{t+1} + b_t."""
    steps = inputs.shape[1]
    order = list(range(steps))[:: -1 if reverse else 1]
    a = decay.expand(torch.broadcast_shapes(decay.shape, inputs.shape))
    made: dict[int, Tensor] = {}
    h = torch.zeros_like(inputs[:, 0])
    for t in order:
        h = a[:, t] * h + inputs[:, t]
        made[t] = h
    states = [made[t] for t in range(steps)]
    return Scanned(states, torch.stack(states, 1), order)
