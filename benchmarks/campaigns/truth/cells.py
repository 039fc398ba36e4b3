"""Runs of cells and of recurrences of somebody's own, with their ways of being called."""

# Over 300 lines: one table of cells, each beside its ways of being called.
from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.campaigns.truth.case import Case, noise
from benchmarks.campaigns.truth.healthy import CELLS, Leaky, batches, fused, loop_over, remembering
from lightning_gradwatch import EventKind as K

H = 6


def _cell(kind: str, seed: int) -> nn.ModuleDict:
    torch.manual_seed(seed)
    return nn.ModuleDict({"cell": remembering(CELLS[kind](3, H)), "head": nn.Linear(H, 1)})


def _error(net: Any, h: Tensor, y: Tensor) -> Tensor:
    return (net["head"](h) - y).square().mean()


def severed_cells(random: Random) -> Case:
    """The state of a loop is detached, or zeros, at each step; each step has a loss."""
    kind, timesteps, seed = random.choice(list(CELLS)), random.randint(5, 8), random.randrange(999)
    own = random.random() < 0.4
    way = (
        "detached" if own else random.choice(("detached", "zeros"))
    )  # one's own cell that always begins anew is no recurrence
    net = _cell(kind, seed)
    if own:
        net["cell"] = Leaky(3, H)

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        h = c = zeros = batch[0].new_zeros(len(batch[0]), H)
        total = zeros.new_zeros(())
        for x in batch[0].unbind(1):
            h, c = (h.detach(), c.detach()) if way == "detached" else (zeros, zeros)
            if kind == "LSTM" and not own:
                h, c = net["cell"](x, (h, c))
            else:
                h = net["cell"](x, h)
            total = total + _error(net, h, batch[1])
        return total

    return Case(
        kind="state severed: cells",
        net=net,
        loss=loss,
        batches=batches(random, 8, 5, timesteps, 3),
        cause="severed",
        must=(K.NO_GRADIENT_THROUGH_TIME,),
        states={"cell": lambda h: [h]} if own else {},
        seed=seed,
    )


def twice_a_step(random: Random) -> Case:
    """A cell called twice with the same state in each timestep."""
    kind, timesteps, seed = random.choice(list(CELLS)), random.randint(5, 8), random.randrange(999)

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        h = c = batch[0].new_zeros(len(batch[0]), H)
        for x in batch[0].unbind(1):
            if kind == "LSTM":
                (h1, c1), (h2, _) = net["cell"](x, (h, c)), net["cell"](0.5 * x, (h, c))
                h, c = 0.5 * (h1 + h2), c1
            else:
                h = 0.5 * (net["cell"](x, h) + net["cell"](0.5 * x, h))
        return _error(net, h, batch[1])

    return Case(
        kind="cell twice a timestep",
        net=_cell(kind, seed),
        loss=loss,
        batches=batches(random, 8, 5, timesteps, 3),
        oracle=False,
        inexact=True,
        where={"timesteps": timesteps},
        seed=seed,
    )


class ConvCell(nn.Module):
    """A state that is an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.mul_(0.3)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """One timestep."""
        return 0.9 * h + 0.1 * torch.tanh(x + self.conv(h))


def conv_state(random: Random) -> Case:
    """A cell with a convolution, of which every batch entry is one sequence."""
    timesteps, seed, size = random.randint(4, 7), random.randrange(999), (2, 3, 4)
    torch.manual_seed(seed)

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        h = torch.zeros_like(batch[:, 0])
        for x in batch.unbind(1):
            h = net["cell"](x, h)
        return (h - 1).square().mean()

    return Case(
        kind="cell with a convolution",
        net=nn.ModuleDict({"cell": ConvCell(2)}),
        loss=loss,
        batches=[noise(random, 5, timesteps, *size) for _ in range(8)],
        states={"cell": lambda h: [h]},
        where={"batch_size": 5},
        seed=seed,
    )


class ThreeStates(nn.Module):
    """A cell that hands on three states."""

    def __init__(self) -> None:
        super().__init__()
        self.fed, self.back = nn.Linear(3, 3 * H), nn.Linear(H, 3 * H)

    def forward(self, x: Tensor, states: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """One timestep."""
        a, b, c = states
        p, q, r = torch.tanh(self.fed(x) + self.back(a)).chunk(3, 1)
        return 0.5 * a + 0.5 * p + 0.1 * b, 0.9 * b + 0.1 * q, 0.8 * c + 0.2 * r * a


def several_states(random: Random) -> Case:
    """A cell of one's own with three states."""
    timesteps, seed = random.randint(4, 7), random.randrange(999)
    torch.manual_seed(seed)
    read = random.randrange(3)

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        states = tuple(batch[0].new_zeros(len(batch[0]), H) for _ in range(3))
        for x in batch[0].unbind(1):
            states = net["cell"](x, states)
        return _error(net, states[read], batch[1])

    return Case(
        kind="cell with three states",
        net=nn.ModuleDict({"cell": ThreeStates(), "head": nn.Linear(H, 1)}),
        loss=loss,
        batches=batches(random, 8, 5, timesteps, 3),
        oracle=False,
        inexact=True,
        seed=seed,
    )


class Scripted(torch.jit.ScriptModule):
    """A loop that TorchScript holds."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(H, H), nn.Linear(3, H)

    @torch.jit.script_method
    def forward(self, x: Tensor):
        h = torch.zeros(x.size(0), 6, dtype=x.dtype)
        for t in range(x.size(1)):
            h = 0.8 * h + 0.2 * torch.tanh(self.u(x[:, t]) + self.w(h))
        return h


def called_otherwise(random: Random) -> Case:
    """A cell by its ``.forward``, its state stacked and taken apart, in a plain list, or scripted; alone or beside an nn.LSTM."""
    way, beside = random.choice(("forward", "stacked", "plain list", "scripted")), random.random() < 0.6
    timesteps, seed = random.randint(4, 7), random.randrange(999)
    torch.manual_seed(seed)
    hidden = [Leaky(3, H)]
    net = nn.ModuleDict({"head": nn.Linear(H, 1)})
    if way in ("forward", "stacked"):
        net["cell"] = Leaky(3, H)
    elif way == "scripted":
        net["cell"] = Scripted()
    if beside:
        net["rnn"] = remembering(fused("LSTM", 3, H))

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        x, h = batch[0], batch[0].new_zeros(len(batch[0]), H)
        if way == "scripted":
            h = net["cell"](x)
        for step in x.unbind(1) if way != "scripted" else ():
            if way == "forward":
                h = net["cell"].forward(step, h)
            elif way == "stacked":
                h = torch.stack([net["cell"](step, h), h])[0]
            else:
                h = hidden[0].to(step.dtype)(step, h)
        if beside:
            h = h + net["rnn"](x)[0][:, -1]
        return _error(net, h, batch[1])

    return Case(
        kind=f"cell {({'forward': 'by .forward', 'plain list': 'in a plain list'}).get(way, way)}",
        net=net,
        loss=loss,
        batches=batches(random, 8, 5, timesteps, 3),
        states={"cell": lambda h: [h]} if way == "stacked" else {},
        oracle=way != "forward",
        unmeasured=() if way == "plain list" else ("net.cell",),
        cause="unmeasured",
        seed=seed,
    )


class Normed(nn.Module):
    """A cell that divides by the norm of what its state gives: 0/0 where that is 0."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.fed, self.w, self.way = nn.Linear(3, H), nn.Linear(H, H, bias=False), way

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """One timestep."""
        a = self.w(h)
        if self.way == "division":
            a = a / a.norm(dim=1, keepdim=True)
        elif self.way == "root":
            a = a * a.square().sum(1, keepdim=True).sqrt()
        else:
            a = a + (a.abs().sum(1, keepdim=True)).log()
        return torch.tanh(self.fed(x) + a)


def nan_in_cell(random: Random) -> Case:
    """A cell whose own arithmetic is not finite, or has no finite slope, at the zeros that it begins with."""
    timesteps, seed, way = random.randint(4, 7), random.randrange(999), random.choice(("division", "root", "logarithm"))
    torch.manual_seed(seed)
    trained = torch.zeros(H, requires_grad=True) if way == "root" else None
    net = nn.ModuleDict({"cell": Normed(way), "head": nn.Linear(H, 1)})
    if trained is not None:
        net["start"] = nn.ParameterList([trained])

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        h = batch[0].new_zeros(len(batch[0]), H)
        if way == "root":
            h = h + net["start"][0]
        for x in batch[0].unbind(1):
            h = net["cell"](x, h)
        return _error(net, h, batch[1])

    return Case(
        kind="NaN from a cell's arithmetic",
        net=net,
        loss=loss,
        batches=batches(random, 4, 5, timesteps, 3),
        cause="cell's arithmetic",
        must=(K.NONFINITE_STATE, K.NONFINITE_HIDDEN_GRADIENT, K.NONFINITE_GRADIENT),
        never=(K.EXPLODING_HIDDEN_GRADIENT, K.EXPLODING_GRADIENT, K.NONFINITE_INPUT),
        steps=4,
        oracle=False,
        nonfinite=0,
        where={"step": 0},
        culprits={"division": ("a division",), "root": ("sqrt",), "logarithm": ("log",)}[way],
        seed=seed,
    )


def forgetful(random: Random) -> Case:
    """A loop over a cell that forgets, or that enlarges what it passes back."""
    kind, seed, grows = random.choice(list(CELLS)), random.randrange(999), random.random() < 0.5
    timesteps = random.randint(18, 26)
    net = _cell("RNN" if grows else kind, seed)
    with torch.no_grad():
        cell = net["cell"]
        if grows:
            cell.weight_hh.copy_(torch.linalg.qr(cell.weight_hh)[0] * random.uniform(1.6, 1.9))
            cell.bias_ih.zero_()
            cell.bias_hh.zero_()
        else:
            cell.weight_hh.mul_(0.4)
            cell.bias_ih[H : 2 * H] -= 7.0 * (kind != "RNN")  # which begun with 4 more

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        return _error(net, loop_over(net["cell"], batch[0], H)[-1], 1.0 if grows else batch[1])

    made = batches(random, 12, 5, timesteps, 3)
    return Case(
        kind="explosion: cells" if grows else "vanishing: cells",
        net=net,
        loss=loss,
        batches=[[1e-9 * x, y] for x, y in made] if grows else made,
        cause="explosion through time" if grows else "vanishing",
        must=(K.EXPLODING_HIDDEN_GRADIENT,) if grows else (K.VANISHING_HIDDEN_GRADIENT,),
        steps=12,
        lr=1e-9 if grows else 1e-3,
        seed=seed,
    )


def one_timestep(random: Random) -> Case:
    """Sequences of one timestep: a cell or a fused module called once a step."""
    kind, seed, cell = random.choice(list(CELLS)), random.randrange(999), random.random() < 0.5
    net = _cell(kind, seed)
    if not cell:
        net["rnn"] = fused("RNN_TANH" if kind == "RNN" else kind, 3, H)
        del net["cell"]

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        h = loop_over(net["cell"], batch[0], H)[-1] if cell else net["rnn"](batch[0])[0][:, -1]
        return _error(net, h, batch[0].mean((1, 2))[:, None])

    return Case(
        kind="one timestep",
        net=net,
        loss=loss,
        batches=[[noise(random, 5, 1, 3)] for _ in range(8)],
        cause="unmeasured",
        seed=seed,
    )


def not_in_the_loss(random: Random) -> Case:
    """A recurrent module whose output the loss does not use, or uses without gradient."""
    kind, seed = random.choice(("RNN_TANH", "LSTM", "GRU")), random.randrange(999)
    torch.manual_seed(seed)
    net = nn.ModuleDict({"rnn": fused(kind, 3, H), "head": nn.Linear(H, 1), "other": nn.Linear(3, H)})
    way = random.choice(("unused", "no_grad", "not called"))

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        h = net["other"](batch[0][:, -1])
        if way == "no_grad":
            with torch.no_grad():
                h = h + net["rnn"](batch[0])[0][:, -1]
        elif way == "unused":
            net["rnn"](batch[0])
        return _error(net, h, batch[1])

    return Case(
        kind="not in the loss",
        net=net,
        loss=loss,
        batches=batches(random, 8, 5, random.randint(5, 8), 3),
        cause="unmeasured",
        must=(K.NOT_OBSERVED,),
        culprits=("no_grad",) if way == "no_grad" else (),
        unmeasured=("net.rnn",),
        seed=seed,
    )


def no_recurrence(random: Random) -> Case:
    """A network with nothing recurrent in it."""
    seed = random.randrange(999)
    torch.manual_seed(seed)
    return Case(
        kind="nothing recurrent",
        net=nn.ModuleDict({"head": nn.Linear(3, 1)}),
        loss=lambda net, batch, i: _error(net, batch[0][:, -1], batch[1]),
        batches=batches(random, 6, 5, 4, 3),
        cause="nothing recurrent",
        steps=6,
        seed=seed,
    )


KINDS = (
    severed_cells,
    forgetful,
    twice_a_step,
    conv_state,
    several_states,
    called_otherwise,
    nan_in_cell,
    one_timestep,
    not_in_the_loss,
    no_recurrence,
)
