"""Runs in which the loss leads nowhere, the first steps are too long, or a recurrence is one that nobody measures."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.campaigns.truth.case import Case
from benchmarks.campaigns.truth.healthy import FUSED, batches, fused, last_output, remembering
from lightning_gradwatch import EventKind as K
from lightning_gradwatch import tap_scan

H = 6


def _net(random: Random, kind: str, seed: int) -> nn.ModuleDict:
    torch.manual_seed(seed)
    return nn.ModuleDict({"rnn": remembering(fused(kind, 3, H)), "head": nn.Linear(H, 1)})


def flat_loss(random: Random) -> Case:
    """A loss whose slope is 0, or that lost its graph."""
    kind, seed = random.choice(FUSED), random.randrange(999)
    ways = {
        "factor": lambda loss: 3 + 0.0 * loss,
        "clamp": lambda loss: (1e6 * loss).clamp(max=0.5),
        "round": lambda loss: (loss * 10).round() + 1,
        "detached": lambda loss: (1 + loss).detach().requires_grad_(),
        "made anew": lambda loss: torch.tensor(1 + loss.item(), requires_grad=True),
    }
    way = random.choice(list(ways))
    cut = way in ("detached", "made anew")
    return Case(
        kind="no gradient: the loss lost its graph" if cut else "no gradient: a flat loss",
        net=_net(random, kind, seed),
        loss=lambda net, batch, i: ways[way](last_output(net, batch, i)),
        batches=batches(random, 8, 5, random.randint(5, 8), 3),
        cause="cut loss" if cut else "flat loss",
        must=(K.ZERO_GRADIENT,),
        unmeasured=("net.rnn",) if cut else (),
        oracle=False,
        seed=seed,
    )


def too_long_steps(random: Random) -> Case:
    """A learning rate with which nothing is finite after a step or two."""
    relu, seed = random.random() < 0.5, random.randrange(999)
    kind = "RNN_RELU" if relu else random.choice(("RNN_TANH", "LSTM", "GRU"))
    return Case(
        kind="divergence within two steps",
        net=_net(random, kind, seed),
        loss=lambda net, batch, i: (net["head"](net["rnn"](batch[0])[0]) - 1).square().mean(),
        batches=batches(random, 8, 5, random.randint(12, 20), 3),
        cause="divergence",
        must=(K.NONFINITE_LOSS, K.NONFINITE_STATE),
        lr=1e6 if relu else 1e30,
        nonfinite=1,
        seed=seed,
    )


class Gated(nn.Module):
    """A minGRU whose states a loop makes."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.n = nn.Linear(3, H), nn.Linear(3, H)

    def forward(self, x: Tensor) -> Tensor:
        z, n = torch.sigmoid(self.z(x)), self.n(x)
        h = torch.zeros_like(n[:, 0])
        for t in range(x.shape[1]):
            h = (1 - z[:, t]) * h + z[:, t] * n[:, t]
        return h


class Plain(nn.Module):
    """Elman's, in tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Parameter(0.3 * torch.randn(3, H)), nn.Parameter(0.3 * torch.randn(H, H))

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), H)
        for t in range(x.shape[1]):
            h = torch.tanh(x[:, t] @ self.w + h @ self.u)
        return h


def in_tensor_operations(random: Random) -> Case:
    """A loop over time that calls no module, alone or on top of a module that is measured."""
    seed, gated = random.randrange(999), random.random() < 0.5
    torch.manual_seed(seed)
    net = nn.ModuleDict({"loop": Gated() if gated else Plain(), "head": nn.Linear(H, 1)})
    return Case(
        kind="in tensor operations: slices" if gated else "in tensor operations: a weight",
        net=net,
        loss=lambda net, batch, i: (net["head"](net["loop"](batch[0])) - batch[1]).square().mean(),
        batches=batches(random, 8, 5, random.randint(6, 10), 3),
        cause="unmarked",
        must=(K.NOT_OBSERVED,),
        unmeasured=("net.loop.z" if gated else "net.loop.u",),
        oracle=False,
        seed=seed,
    )


class Severed(nn.Module):
    """A recurrence in tensor operations, its state detached at every step. It returns all states."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.x, self.h, self.both = nn.Linear(3, 4 * H), nn.Linear(H, 4 * H), nn.Linear(3 + H, H)

    def forward(self, x: Tensor) -> list[Tensor]:
        h = c = x.new_zeros(len(x), H)
        states: list[Tensor] = []
        for x_t in x.unbind(1):
            h, c = self.step(x_t, h.detach(), c.detach())
            states.append(h)
        return states

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One timestep: an Elman cell, one whose input and state are joined, a GRU or an LSTM."""
        if self.form == "joined":
            return torch.tanh(self.both(torch.cat([x, h], 1))), c
        a, b = self.x(x).chunk(4, 1), self.h(h).chunk(4, 1)
        if self.form == "Elman":
            return torch.tanh(a[0] + b[0]), c
        if self.form == "GRU":
            z = torch.sigmoid(a[0] + b[0])
            return z * h + (1 - z) * torch.tanh(a[1] + torch.sigmoid(a[2] + b[2]) * b[1]), c
        c = torch.sigmoid(a[0] + b[0]) * c + torch.sigmoid(a[1] + b[1]) * torch.tanh(a[2] + b[2])
        return torch.sigmoid(a[3] + b[3]) * torch.tanh(c), c


def severed_in_tensor_operations(random: Random) -> Case:
    """Each step has a loss, and nothing flows from one to the one before."""
    seed = random.randrange(999)
    torch.manual_seed(seed)
    net = nn.ModuleDict({"loop": Severed(random.choice(("Elman", "joined", "GRU", "LSTM"))), "head": nn.Linear(H, 1)})
    return Case(
        kind="state severed: in tensor operations",
        net=net,
        loss=lambda net, batch, i: torch.stack(
            [(net["head"](h) - batch[1]).square().mean() for h in net["loop"](batch[0])]
        ).sum(),
        batches=batches(random, 8, 5, random.randint(4, 9), 3),
        cause="severed",
        must=(K.NO_GRADIENT_THROUGH_TIME,),
        oracle=False,
        seed=seed,
    )


class Scanned(nn.Module):
    """A diagonal recurrence whose states are marked; ``wrong`` says in what the mark is."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.a, self.b, self.wrong = nn.Linear(3, H), nn.Linear(3, H), wrong

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The states, and what they are marked with as decay and inputs."""
        logits = self.a(x) + 2
        a, b = torch.sigmoid(logits), self.b(x)
        states, h = [], torch.zeros_like(b[:, 0])
        for t in range(x.shape[1]):
            h = a[:, t] * h + (1 - a[:, t]) * b[:, t]
            states.append(h)
        marked = {"off by one": a.roll(1, 1), "before the sigmoid": logits, "inputs": a}[self.wrong]
        return torch.stack(states, 1), marked, b if self.wrong == "inputs" else (1 - a) * b

    def forward(self, x: Tensor) -> Tensor:
        h, decay, inputs = self.parts(x)
        return tap_scan(h, decay=decay, inputs=inputs, name="scan")

    def mismatch(self, x: Tensor) -> Tensor:
        """How far each state is from what the mark makes of the one before, as a share ``(batch, time - 1)``."""
        h, a, b = self.parts(x)
        then, now, new = a[:, 1:] * h[:, :-1], h[:, 1:], b[:, 1:]
        return (now - then - new).norm(dim=-1) / (now.norm(dim=-1) + then.norm(dim=-1) + new.norm(dim=-1))


def wrong_mark(random: Random) -> Case:
    """A scan that is marked with what it does not compute."""
    seed, wrong = random.randrange(999), random.choice(("off by one", "before the sigmoid", "inputs"))
    torch.manual_seed(seed)
    return Case(
        kind="a scan marked wrongly",
        net=nn.ModuleDict({"ssm": Scanned(wrong), "head": nn.Linear(H, 1)}),
        loss=lambda net, batch, i: (net["head"](net["ssm"](batch[0])[:, -1]) - batch[1]).square().mean(),
        batches=batches(random, 8, 5, random.randint(6, 10), 3),
        cause="scan mismatch",
        must=(K.SCAN_MISMATCH,),
        oracle=False,
        inexact=True,
        seed=seed,
    )


def one_sequence(random: Random) -> Case:
    """The loss reads one sequence of each batch, always the same."""
    kind, seed, chosen = random.choice(FUSED), random.randrange(999), random.randrange(1, 6)

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        return (net["head"](net["rnn"](batch[0])[0][chosen, -1]) - batch[1][chosen]).square().mean()

    return Case(
        kind="one sequence has gradient",
        net=_net(random, kind, seed),
        loss=loss,
        batches=batches(random, 12, 6, random.randint(5, 8), 3),
        cause="few sequences",
        must=(K.ONE_SEQUENCE_REACHED,),
        steps=12,
        seed=seed,
    )


def skipped_steps(random: Random) -> Case:
    """A batch or two without finite numbers beside AdaptiveClip, which skips those steps."""
    kind, seed, bad = random.choice(FUSED), random.randrange(999), random.randint(2, 6)
    made = batches(random, 10, 5, random.randint(5, 8), 3)
    entry = (random.randrange(5), random.randrange(5), random.randrange(3))
    made[bad][0][entry] = float("nan")
    return Case(
        kind="steps skipped by AdaptiveClip",
        net=_net(random, kind, seed),
        loss=last_output,
        batches=made,
        cause="bad input",
        must=(K.NONFINITE_INPUT,),
        steps=10,
        clip=True,
        nonfinite=bad,
        entry=f"batch[0][{', '.join(map(str, entry))}]",
        seed=seed,
    )


def weights_left_out(random: Random) -> Case:
    """An optimizer that was not given the recurrent module's weights."""
    seed = random.randrange(999)
    ways = {"head": lambda net: net["head"].parameters(), "a copy": lambda net: copy.deepcopy(net).parameters()}
    way = random.choice(list(ways))
    return Case(
        kind="weights that stay as they are",
        net=_net(random, random.choice(FUSED), seed),
        loss=last_output,
        batches=batches(random, 8, 5, random.randint(5, 8), 3),
        optimizer=random.choice(("SGD", "Adam")),
        held=ways[way],
        cause="not in the optimizer",
        must=(K.WEIGHTS_UNCHANGED,),
        seed=seed,
    )


KINDS = (
    weights_left_out,
    flat_loss,
    too_long_steps,
    in_tensor_operations,
    severed_in_tensor_operations,
    wrong_mark,
    one_sequence,
    skipped_steps,
)
