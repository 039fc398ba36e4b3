"""What is true of a run of the sick campaign: from the model unrolled with PyTorch's own cells while it trains, and from its losses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from tests.oracles import unroll

EVERY = 10
"""Steps from one look to the next."""

FIRST = 5
"""Steps at the begin that are all looked at: a learning rate that is too high does its work there."""

SEQUENCES = 3
"""Of the batch that are unrolled."""

GROWN = 100.0
"""A gradient that grows more than so many times on its way back explodes, one that falls under 1/100 vanishes."""

LASTING = 100
"""Steps for which a gradient must vanish, so that it is to be told. GradWatch judges three samples, 50 steps apart."""

DIVERGED = 3.0
"""A loss over so many times the mean of the first five has diverged."""


@dataclass
class Look:
    """One look at a layer and direction.

    Args:
        growth: the largest lagged gradient.
        short: whether the horizon is under half of the sequence.
        starving: whether the total gradient of the direction's first step is under 1 % of the largest.
    """

    growth: float
    short: bool
    starving: bool


@dataclass
class Truth(pl.Callback):
    """The looks at every layer and direction of a run, by step; and the norm of all gradients at every step."""

    looks: dict[tuple[int, int], dict[int, Look]] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)

    def __hash__(self) -> int:
        return id(self)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Unroll, every few steps, before the forward."""
        if trainer.global_step % EVERY == 0 or trainer.global_step < FIRST:
            with torch.enable_grad():
                self._look(trainer.global_step, pl_module, batch)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Note the norm, for what judges norms alone."""
        found = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack(found).norm()))

    def _look(self, step: int, model: Any, batch: tuple[Tensor, Tensor]) -> None:
        fed, asked = (part[:SEQUENCES] for part in batch)
        x = model.embedding(fed).detach()
        runs = [unroll(model.rnn, row) for row in x]
        loss = model.loss(torch.stack([torch.cat(run.output) for run in runs]), asked)
        if not bool(loss.isfinite()):
            return
        for layer in range(model.rnn.num_layers):
            for direction in range(1 + model.rnn.bidirectional):
                found = [_look(loss, run, layer, direction) for run in runs]
                if all(math.isfinite(one.growth) for one in found):
                    middle = sorted(one.growth for one in found)[len(found) // 2]
                    half = len(found) / 2
                    look = Look(middle, sum(o.short for o in found) > half, sum(o.starving for o in found) > half)
                    self.looks.setdefault((layer, direction), {})[step] = look

    def explodes(self) -> bool:
        """Whether anywhere the gradient grew over the bound in two looks in a row, or over its square in one."""
        growths = [[look.growth for _, look in sorted(looks.items())] for looks in self.looks.values()]
        return any(
            max(found, default=0) > GROWN**2 or any(min(pair) > GROWN for pair in pairwise(found)) for found in growths
        )

    def vanishes(self) -> bool:
        """Whether anywhere the horizon was short and timesteps starved from the begin of the run, for long enough to be told."""
        return any(
            {*range(0, LASTING + 1, EVERY)} <= looks.keys()
            and all(looks[step].short and looks[step].starving for step in range(0, LASTING + 1, EVERY))
            for looks in self.looks.values()
        )


def _look(loss: Tensor, run: Any, layer: int, direction: int) -> Look:
    """One sequence. The lagged gradient follows what reaches the top layer's last own step directly; lower layers see the same."""
    order = list(range(len(run.h[layer][direction])))
    own = order if direction == 0 else order[::-1]
    last = own[-1]
    top = run.h_out[-1][direction if len(run.h_out[-1]) > 1 else 0][last]
    (direct,) = torch.autograd.grad(loss, top, retain_graph=True, allow_unused=True)
    h, c = run.h[layer][direction], run.c[layer][direction]
    total = _norms(loss, None, h, [], own)
    lagged = None if direct is None else _norms(top, direct, h, c, own)
    if lagged is None or lagged[-1] == 0:
        return Look(0.0, False, False)
    curve = [value / lagged[-1] for value in reversed(lagged)]
    horizon = next((lag for lag, value in enumerate(curve) if value < 1 / GROWN), len(curve))
    largest = max(total)
    return Look(max(curve), horizon < len(curve) / 2, largest > 0 and total[0] < largest / GROWN)


def _norms(source: Tensor, sent: Tensor | None, h: list[Tensor], c: list[Tensor], own: list[int]) -> list[float]:
    """The norm of the gradient of each own step's state, h and c together."""
    tensors = [h[t] for t in own] + [c[t] for t in own if c]
    found = torch.autograd.grad(source, tensors, sent, retain_graph=True, allow_unused=True)
    sizes = [0.0 if g is None else float(g.double().norm()) for g in found]
    steps = len(own)
    return [math.hypot(*sizes[i::steps]) for i in range(steps)]


def diverges(losses: list[float]) -> bool:
    """Whether the loss stopped being finite, or rose far over where it began."""
    begin = mean(losses[:5])
    return any(not math.isfinite(loss) or loss > DIVERGED * begin for loss in losses)
