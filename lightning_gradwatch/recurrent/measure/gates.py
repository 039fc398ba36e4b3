"""A closer look at the gates of a recurrence: how many are saturated, and whether by the
inputs, the state or the biases.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from lightning_gradwatch.forward import Channel, Gate, Saturation
from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.adjoint import Adjoint

SIGMOID, TANH, RELU = "sigmoid", "tanh", "relu"

_EDGE = {SIGMOID: 5.9864, TANH: 2.9932, RELU: 0.0}
"""Beyond this |a| the slope is so: 4σ(a)(1−σ(a)) and 1−tanh²(a) are 0.01
there. A relu's is 0 at a ≤ 0.
"""

_GATES = {
    "LSTM": (
        ("input gate", SIGMOID, True),
        ("forget gate", SIGMOID, False),
        ("cell input", TANH, True),
        ("output gate", SIGMOID, True),
    ),
    "GRU": (("reset gate", SIGMOID, False), ("update gate", SIGMOID, True), ("new state", TANH, True)),
    "RNN_TANH": (("tanh units", TANH, True),),
    "RNN_RELU": (("relu units", RELU, True),),
}
"""By PyTorch's mode name, in its order of gates: name, nonlinearity, and whether nothing is
learned where it is saturated.
"""

_CELL_STATE = ("cell state", TANH, True)

_KEPT = 4096
"""Of |x| so many values a chunk are kept for the median."""


@dataclass(slots=True)
class GateCount:
    """Counts over the chunks of one layer and direction, and at the end says what it found."""

    adjoint: Adjoint  # pyright: ignore[reportMissingTypeArgument]
    _flat: list[Tensor] = field(default_factory=list[Tensor])
    _upper: list[Tensor] = field(default_factory=list[Tensor])
    _parts: list[Tensor] = field(default_factory=list[Tensor])
    _sizes: list[Tensor] = field(default_factory=list[Tensor])
    _moments: list[Tensor] = field(default_factory=list[Tensor])
    _largest: float = 0.0
    _count: int = 0

    @torch.no_grad()
    def add(
        self,
        x: axes.Float[Tensor, "time sequence input"],
        h_previous: axes.Float[Tensor, "time sequence state"],
        c: axes.Float[Tensor, "time sequence hidden"] | None,
        valid: axes.Bool[Tensor, "time sequence"],
    ) -> None:
        """Take in some timesteps.

        Args:
            x: ``(time, sequence, input)``; ``h_previous``: ``(time, sequence, state)``; ``c``:
                ``(time, sequence, hidden)``, LSTM only.
            valid: ``(time, sequence)``, which of them there are.
        """
        w, inside = self.adjoint.weights, valid.to(x.device)
        x, h_previous = x[inside], h_previous[inside]
        if not len(x):
            return
        gates = self.adjoint.pre_activations(x[None], h_previous[None])[0]
        if c is not None:
            gates = torch.cat([gates, c[inside][:, None]], 1)
        flat = torch.stack([_is_flat(gates[:, i], kind) for i, (_, kind, _) in enumerate(self._named())], 1)
        self._flat.append(flat.sum((0, 2)).cpu())
        self._upper.append((flat & (gates > 0)).sum((0, 2)).cpu())
        self._parts.append(self._contributions(x, h_previous))
        sizes = x.abs()
        self._largest = max(self._largest, float(sizes.max()))
        self._sizes.append(sizes.flatten()[:: max(sizes.numel() // _KEPT, 1)].cpu())
        wide = x.double() if x.device.type != "mps" else x
        pull = w.w_ih.abs().sum(0)
        self._moments.append(torch.stack([wide.sum(0), (wide**2).sum(0), (sizes.sum(0) * pull).to(wide)]).cpu())
        self._count += len(x)

    def _named(self) -> tuple[tuple[str, str, bool], ...]:
        named = _GATES[self.adjoint.shape.mode]
        return (*named, _CELL_STATE) if self.adjoint.shape.mode == "LSTM" else named

    def _contributions(
        self, x: axes.Float[Tensor, "row input"], h_previous: axes.Float[Tensor, "row state"]
    ) -> axes.Float[Tensor, " part"]:
        """Σ|W_ih x|, Σ|W_hh h| and Σ|b| ``(3,)``."""
        w = self.adjoint.weights
        bias = [b for b in (w.b_ih, w.b_hh) if b is not None]
        held = float(sum(bias).abs().sum()) * len(x) if bias else 0.0  # pyright: ignore[reportAttributeAccessIssue]
        input_part = float(functional.linear(x, w.w_ih).abs().sum())
        return torch.tensor([input_part, float(functional.linear(h_previous, w.w_hh).abs().sum()), held])

    def result(self) -> Saturation | None:
        """What was found; None if there was nothing to look at."""
        if not self._count:
            return None
        flat, upper = torch.stack(self._flat).sum(0), torch.stack(self._upper).sum(0)
        each = self._count * self.adjoint.shape.hidden_size
        gates = tuple(
            Gate(name, float(flat[i]) / each, float(upper[i]) / max(float(flat[i]), 1.0), decides)
            for i, (name, _, decides) in enumerate(self._named())
        )
        parts = torch.stack(self._parts).double().sum(0)
        shares = (parts / parts.sum().clamp_min(1e-300)).tolist()
        weight = max(float(w.abs().max()) for w in self.adjoint.weights.flat())
        return Saturation(
            gates=gates,
            parts=(shares[0], shares[1], shares[2]),
            typical=float(torch.cat(self._sizes).median()),
            largest=self._largest,
            channel=self._channel(),
            weight=weight,
            hidden=self.adjoint.shape.hidden_size,
        )

    def _channel(self) -> Channel | None:
        total, squares, pull = torch.stack(self._moments).sum(0)
        share = pull / pull.sum().clamp_min(1e-30)
        index = int(share.argmax())
        if len(share) < 2 or not float(share[index]) > 0.5:
            return None
        mean = float(total[index]) / self._count
        variance = float(squares[index]) / self._count - mean**2
        return Channel(index, mean, max(variance, 0.0) ** 0.5, float(share[index]))


def _is_flat(a: axes.Float[Tensor, "row hidden"], kind: str) -> axes.Bool[Tensor, "row hidden"]:
    return a <= 0 if kind == RELU else a.abs() > _EDGE[kind]
