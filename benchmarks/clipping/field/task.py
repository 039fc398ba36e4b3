"""What one problem is, and one training on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.clipping.compare import norm_of, plant
from benchmarks.clipping.methods import Act, Method, close

Start = Callable[[], tuple[Any, torch.optim.Optimizer]]


@dataclass(frozen=True)
class Task:
    """One problem.

    Args:
        start: a fresh network with its optimizer.
        loss: of a fresh batch.
        judge: the figure at the end, on fresh data, the less the better.
        lost: a run whose figure ends over this is lost.
        solved: a run has solved it when its figure is at most this; None where there is no such thing.
        check: updates between two looks at the figure.
        spikes: whether gradients are made longer at one step in forty.
    """

    name: str
    steps: int
    start: Start
    loss: Callable[[Any], Tensor]
    judge: Callable[[Any], float]
    lost: float
    solved: float | None = None
    check: int = 50
    spikes: bool = False


@dataclass(frozen=True)
class Run:
    """What became of one training.

    Args:
        loss: the figure at the end.
        solved: updates until it was solved; None where it was not.
        clipped: the share of its steps.
    """

    loss: float
    lost: bool
    solved: int | None
    clipped: float


def train(task: Task, method: Method, seed: int) -> Run:
    """One run. Weights, data and spikes depend on the seed alone."""
    torch.manual_seed(seed)
    network, optimizer = task.start()
    act = method.make(network, optimizer)
    try:
        return _train(task, network, optimizer, act, seed)
    finally:
        close(act)


def _train(task: Task, network: nn.Module, optimizer: torch.optim.Optimizer, act: Act, seed: int) -> Run:
    chaos = torch.Generator().manual_seed(seed + 1000)
    clipped = taken = 0
    solved = None
    for step in range(1, task.steps + 1):
        optimizer.zero_grad()
        loss = task.loss(network)
        loss.backward()
        if task.spikes:
            plant(network, chaos)
        before = norm_of(network)
        act(loss)
        clipped += norm_of(network) < before * (1 - 1e-5)
        optimizer.step()
        taken = step
        if not all(bool(p.isfinite().all()) for p in network.parameters()):
            return Run(math.inf, True, None, clipped / taken)
        if task.solved is not None and step % task.check == 0 and _judged(task, network, seed) <= task.solved:
            solved = step
            break
    final = _judged(task, network, seed)
    return Run(final, not final <= task.lost, solved, clipped / taken)


def _judged(task: Task, network: nn.Module, seed: int) -> float:
    """On data that are the same at each look, without moving the generator that trains."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(10_000 + seed)
        return task.judge(network)
