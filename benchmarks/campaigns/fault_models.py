"""The faults of the campaign, and the small models that they are planted in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn

TIME, BATCH, WIDTH, HIDDEN = 6, 4, 3, 4
VALUES = (math.nan, math.inf, -math.inf, 1e30)
MODES = ("RNN_TANH", "RNN_RELU", "LSTM", "GRU")
CELLS = {"RNN_TANH": nn.RNNCell, "RNN_RELU": nn.RNNCell, "LSTM": nn.LSTMCell, "GRU": nn.GRUCell}
PLACES = (
    "input",
    "initial state",
    "state between steps",
    "gate",
    "output gradient",
    "final state's gradient",
    "recurrent weight",
    "input weight",
    "bias",
    "loss",
    "parameter's gradient",
)
PRECISIONS = ((torch.float32, 1.0), (torch.float64, 1.0), (torch.bfloat16, 1.0), (torch.float32, 1024.0))
"""Number format and loss scale."""

WEIGHTS = {"recurrent weight": "weight_hh", "input weight": "weight_ih", "bias": "bias_hh"}


@dataclass(frozen=True)
class Fault:
    """One number planted at one place of one training step."""

    mode: str
    loop: bool
    layers: int
    bidirectional: bool
    place: str
    value: float
    dtype: torch.dtype
    scale: float
    reads: str
    layer: int
    direction: int
    timestep: int
    sequence: int
    unit: int
    state: str
    own_tensor: bool
    sampled: bool
    seed: int

    @property
    def precision(self) -> str:
        """The number format, for the table; a loss scale counts as one."""
        return str(self.dtype).removeprefix("torch.") + (", loss scaled" if self.scale != 1 else "")

    @property
    def kind(self) -> str:
        """The cell kind, for the table."""
        return f"{self.mode} cells" if self.loop else self.mode

    @property
    def parameter(self) -> str | None:
        """The parameter that it is planted in, or in whose gradient."""
        own = WEIGHTS.get(self.place) or ("weight_hh" if self.place == "parameter's gradient" else None)
        if own is None:
            return None
        if self.place == "parameter's gradient":
            own = ("weight_hh", "weight_ih", "bias_ih", "head")[self.unit]
        if own == "head":
            return "head.weight"
        return f"cells.{self.layer}.{own}" if self.loop else f"rnn.{own}_l{self.layer}" + "_reverse" * self.direction


def draw(random: Random) -> Fault:
    """A fault at random."""
    mode, loop, layers = random.choice(MODES), random.random() < 0.4, random.randint(1, 3)
    bidirectional = not loop and random.random() < 0.5
    absent = "final state's gradient" if loop else "state between steps"
    place = random.choice([place for place in PLACES if place != absent])
    dtype, scale = random.choice(PRECISIONS)
    return Fault(
        mode=mode,
        loop=loop,
        layers=layers,
        bidirectional=bidirectional,
        place=place,
        value=random.choice(VALUES),
        dtype=dtype,
        scale=scale,
        reads=random.choice(("all", "last")),
        layer=0 if place == "gate" else random.randrange(layers),
        direction=random.randrange(2) if bidirectional else 0,
        timestep=random.randrange(TIME),
        sequence=random.randrange(BATCH),
        unit=random.randrange(HIDDEN),
        state=random.choice("hc") if mode == "LSTM" else "h",
        own_tensor=random.random() < 0.5,
        sampled=random.random() < 0.5,
        seed=random.randrange(2**30),
    )


class Subject(nn.Module):
    """A recurrent part, a linear head, a squared error. It plants what lies between its input and its loss itself."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault
        options = {"nonlinearity": fault.mode[4:].lower()} if fault.mode.startswith("RNN") else {}
        if fault.loop:
            widths = [WIDTH, *[HIDDEN] * (fault.layers - 1)]
            self.cells = nn.ModuleList(CELLS[fault.mode](width, HIDDEN, **options) for width in widths)
        else:
            module = getattr(nn, fault.mode.partition("_")[0])
            self.rnn = module(
                WIDTH, HIDDEN, fault.layers, batch_first=True, bidirectional=fault.bidirectional, **options
            )
        self.head = nn.Linear(HIDDEN * (1 + fault.bidirectional), 2)

    def forward(self, x: Tensor, h0: Tensor, c0: Tensor, faulty: bool) -> Tensor:
        """The loss of a batch ``(batch, time, width)``."""
        if self.fault.loop:
            states = self.run_cells(x, h0, c0, faulty)
            return self.loss(torch.stack([h for h, _ in states[-1]], 1), None, None, faulty)
        output, state = self.rnn(x, (h0, c0) if self.fault.mode == "LSTM" else h0)
        return self.loss(output, *(state if isinstance(state, tuple) else (state, None)), faulty)

    def run_cells(
        self, x: Tensor, h0: Tensor, c0: Tensor, faulty: bool, given: dict[tuple[int, int], list[Tensor]] | None = None
    ) -> list[list[tuple[Tensor, Tensor | None]]]:
        """Each layer's ``(h, c)`` of every step, layers within steps; ``given`` is told the states that went in, by layer and step."""
        fault, lstm = self.fault, self.fault.mode == "LSTM"
        states = [(h0[k], c0[k] if lstm else None) for k in range(fault.layers)]
        made: list[list[tuple[Tensor, Tensor | None]]] = [[] for _ in states]
        for t in range(x.shape[1]):
            below = x[:, t]
            for k, cell in enumerate(self.cells):
                h, c = states[k]
                if faulty and fault.place == "state between steps" and (t, k) == (fault.timestep, fault.layer):
                    at = (fault.sequence, fault.unit)
                    h, c = (planted(h, at, fault.value), c) if fault.state == "h" else (h, planted(c, at, fault.value))
                if given is not None:
                    given[k, t] = [h, c] if lstm else [h]
                states[k] = cell(below, (h, c)) if lstm else (cell(below, h), None)
                below = states[k][0]
                made[k].append(states[k])
        return made

    def loss(self, output: Tensor, h_n: Tensor | None, c_n: Tensor | None, faulty: bool) -> Tensor:
        """What is made of ``output`` ``(batch, time, width)`` and the final states ``(layers·directions, batch, width)``."""
        fault = self.fault
        place = fault.place if faulty else None
        hook = not (place == "output gradient" and fault.own_tensor)
        seen = output * 1 if hook else output
        if place == "output gradient":
            unit = fault.direction * HIDDEN + fault.unit
            seen.register_hook(lambda g: planted(g, (fault.sequence, fault.timestep, unit), fault.value))
        values = self.head(seen)
        loss = (values if fault.reads == "all" else values[:, -1]).square().mean()
        for name, state in (("h", h_n), ("c", c_n)):
            if state is None:
                continue
            used = state * 1
            if place == "final state's gradient" and name == fault.state:
                index = fault.layer * (1 + fault.bidirectional) + fault.direction
                used.register_hook(lambda g, i=index: planted(g, (i, fault.sequence, fault.unit), fault.value))
            loss = loss + 0.1 * used.square().mean()
        if place == "loss":
            loss = loss + fault.value if fault.own_tensor else loss * fault.value
        return loss


def planted(tensor: Tensor, at: tuple[int, ...], value: float) -> Tensor:
    """A copy that holds ``value`` at one entry; a gradient flows through it."""
    mask = torch.zeros(tensor.shape, dtype=torch.bool)
    mask[at] = True
    return torch.where(mask, torch.full_like(tensor, value), tensor)


def overflowing(dtype: torch.dtype, value: float) -> tuple[float, list[float]]:
    """A finite input, the same in two channels, and the two finite weights for them, whose sum of products is ``value`` in ``dtype``."""
    large = 1e200 if dtype == torch.float64 else 1e30
    if math.isnan(value):
        return large, [large, -large]  # inf − inf
    return large, [math.copysign(large, value) if math.isinf(value) else value / large, 0.0]
