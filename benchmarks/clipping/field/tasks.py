"""All problems of the comparison, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.clipping import temporal_order as order
from benchmarks.clipping.field.generated import CUES, Policy, Polyphony, Sketch, Variational
from benchmarks.clipping.field.task import Start, Task
from benchmarks.clipping.problems import Network, Problem, adding, problems, temporal_order

Make = Callable[[], Any]


def tasks(quick: bool = False) -> dict[str, Task]:
    """By name, the short ones first; quick: a few updates of each, to see that all works."""
    made = [*_generated(), *_adding(), *map(_of, problems()), *_order()]
    if quick:
        made = [replace(task, steps=4, check=2) for task in made]
    return {task.name: task for task in made}


def _started(make: Make, optimizer: str, rate: float, **options: float) -> Start:
    def start() -> tuple[Any, torch.optim.Optimizer]:
        network = make()
        trained = [p for p in network.parameters() if p.requires_grad]
        return network, getattr(torch.optim, optimizer)(trained, rate, **options)

    return start


def _generated() -> Iterator[Task]:
    """Rates: of 1 and 3 times the powers of ten the one above the best without clipping, on seed 100; for the policy the best one
    without the rare large returns. What is lost: worse than the frequency of each key; than the untrained network; than ten times a
    normal distribution's loss; than chance nearly.
    """
    loss = lambda network: network.loss(16)  # noqa: E731
    judge = lambda network: float(network.loss(256))  # noqa: E731
    yield Task("polyphony, RNN", 300, _started(Polyphony, "SGD", 1.0), loss, judge, 1.1 * 6.744)
    yield Task("sketches, LSTM", 300, _started(Sketch, "Adam", 0.03), loss, judge, 2.82)
    yield Task("VAE, GRU, rate 0.01", 100, _started(Variational, "Adam", 0.01), loss, judge, 570.0)
    yield Task("VAE, GRU, rate 0.03", 100, _started(Variational, "Adam", 0.03), loss, judge, 570.0)
    yield Task(
        "policy, GRU",
        600,
        _started(Policy, "Adam", 0.003),
        lambda network: network.loss(32),
        lambda network: network.regret(2000),
        0.7 * (1 - 1 / CUES) / 0.75,
        solved=0.02,
    )


def _adding() -> Iterator[Task]:
    """Le et al.'s (2015) length is 150 and more; at 40 an orthogonal RNN explodes as well."""

    def loss(network: Network) -> Tensor:
        return network.loss(adding(16, 40))

    def judge(network: Network) -> float:
        return float(network.loss(adding(1000, 40)))

    for radius, rate, options in ((1.1, 0.3, {}), (1.5, 0.3, {}), (1.1, 0.03, {"momentum": 0.9})):
        how = f"momentum, rate {rate:g}" if options else f"rate {rate:g}"
        start = _started(partial(Network, "adding", "RNN_tanh", 32, radius), "SGD", rate, **options)
        yield Task(f"adding, radius {radius:g}, {how}", 600, start, loss, judge, 1.0, solved=0.02)


def _of(problem: Problem) -> Task:
    """Those of ``benchmarks.clipping.compare``, under its names; their learning rates rise by themselves."""

    def start() -> tuple[Any, torch.optim.Optimizer]:
        network, optimizer = problem.start()
        if problem.warmup:
            at_first = optimizer.param_groups[0]["lr"]
            steps = iter(range(1, problem.steps + 1))

            def rise(*_: object) -> None:
                optimizer.param_groups[0]["lr"] = at_first * min(1.0, next(steps) / problem.warmup)

            optimizer.register_step_pre_hook(rise)
        return network, optimizer

    return Task(
        f"{problem.regime}: {problem.name}",
        problem.steps,
        start,
        lambda network: network.loss(problem.sample(problem.batch)),
        lambda network: float(network.loss(problem.sample(256))),
        1.1 * problem.chance,
        spikes=problem.regime == "spikes",
    )


def _order() -> Iterator[Task]:
    """Pascanu et al. (2013, §4.1) with their network and rate; solved at an error of 1 %."""

    def loss(lengths: tuple[int, int], network: nn.Module) -> Tensor:
        length = int(torch.randint(lengths[0], lengths[1] + 1, ()))
        x, y = temporal_order(order.BATCH, length)
        return nn.functional.cross_entropy(network(x), y)

    def judge(lengths: tuple[int, int], network: order.Network) -> float:
        return sum(order.error_of(network, length, 1000) for length in lengths) / 2

    for name, lengths in (("50", (50, 50)), ("100", (100, 100)), ("50 to 200", (50, 200))):
        start = _started(order.Network, "SGD", order.RATE)
        # No error is worse than chance by much: a run is lost when its weights are no numbers.
        yield Task(
            f"temporal order {name}",
            40_000,
            start,
            partial(loss, lengths),
            partial(judge, lengths),
            math.inf,
            0.01,
            500,
        )
