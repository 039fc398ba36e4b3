"""What each constant of Spike buys: half, double and without it, on problems that are quick to train.

    python -m benchmarks.clipping.ablation             # about two minutes of CPU time
    python -m benchmarks.clipping.ablation --runs 4    # more runs of each problem

Each cell has the value and three figures. How many steps of healthy runs are clipped: of an MLP and an RNN, by Adam and SGD, whose losses
are weighted (rare classes, heavy tails, tasks by turns, another scale); they are recorded once without clipping, and each setting judges
the record, which has no direct norm in it. The median of the final losses of runs that explode: the adding problem by SGD, with momentum
and without, and an RNN with orthogonal recurrent weights of gain 1.5. The same by Adam with gain 1, where at each 20th step one target is
1e6 times too large. An exclamation mark stands for each run that ends over a loss of 1, that is, is lost. Explosions are chaotic: a single
run says little.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import nn

from benchmarks.clipping.problems import adding
from lightning_gradwatch import clip_adaptively
from lightning_gradwatch.clip import Spike, StepReading
from lightning_gradwatch.clip.policies import spike, step_length

STEPS, LENGTH, BATCH = 200, 30, 16


@dataclass(frozen=True)
class Constant:
    """Its values: as it is, half, double, and without it; None is where there is no such value."""

    name: str
    half: float | None
    double: float | None
    without: float | None
    where: ModuleType | None = None

    @contextmanager
    def at(self, value: float) -> Iterator[Callable[[], Spike]]:
        """How a policy is made while the constant has that value."""
        if self.where is None:
            yield lambda: Spike(**{self.name: value})  # pyright: ignore[reportArgumentType]
            return
        before = getattr(self.where, self.name)
        setattr(self.where, self.name, value)
        try:
            yield Spike
        finally:
            setattr(self.where, self.name, before)


CONSTANTS = [
    Constant("factor", 5.0, 20.0, 1e30),
    Constant("memory", 500, 2000, 20),
    Constant("window", None, 40, 1000),
    Constant("longest_step", 0.15, 0.6, math.inf),
    Constant("RANK", 1, 6, 10**9, spike),
    Constant("MOST_EXPLAINED", 15.0, 60.0, 1.0, spike),
    Constant("LARGE", 1.5, 6.0, 1.0, spike),
    Constant("LEFT_OVER", 0.05, 0.2, 1.0, spike),
    Constant("STEEPEST", 50.0, 200.0, math.inf, spike),
    Constant("SHORTEST", 1 / 256, 1 / 64, 1.0, step_length),
]


def weights(kind: str, steps: int) -> list[float]:
    """What the loss of each step is multiplied by."""
    draw = torch.Generator().manual_seed(5)
    noise = torch.randn(steps, generator=draw).tolist()
    return {
        "plain": [1.0] * steps,
        "a sum": [1e4] * steps,
        "rare": [200.0 if step % 100 == 99 else 1.0 for step in range(steps)],
        "by turns": [30.0 if step % 2 else 0.03 for step in range(steps)],
        "heavy tails": [math.exp(1.5 * value) for value in noise],
        "switched": [1e3 if step >= steps // 2 else 1.0 for step in range(steps)],
    }[kind]


def record(kind: str, cell: bool, adam: bool) -> list[StepReading]:
    """A healthy run's readings."""
    torch.manual_seed(0)
    body = nn.RNN(4, 24, batch_first=True) if cell else nn.Sequential(nn.Linear(10, 24), nn.Tanh())
    network = nn.ModuleList([body, nn.Linear(24, 3)])
    scales = weights(kind, 500)
    rate = 2e-3 if adam else 0.1 / max(1.0, statistics.median(scales), max(scales) / 20)
    optimizer = (torch.optim.Adam if adam else torch.optim.SGD)(network.parameters(), rate)
    teacher, readings = torch.randn(4 if cell else 10, 3), []
    for scale in scales:
        x = torch.randn(16, 12, 4) if cell else torch.randn(16, 10)
        out, seen = (body(x)[0][:, -1], x[:, -4:].mean(1)) if cell else (body(x), x)
        loss = scale * nn.functional.cross_entropy(network[1](out), (seen @ teacher).argmax(1))
        optimizer.zero_grad()
        loss.backward()
        norm = float(nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]))
        size = float(nn.utils.get_total_norm([p.detach() for p in network.parameters()]))
        readings.append(
            StepReading(norm, parameter_norm=size, step_size=None if adam else rate, loss=float(loss.detach()))
        )
        optimizer.step()
    return readings


def touched(records: list[list[StepReading]], make: Callable[[], Spike]) -> str:
    """Steps of healthy runs that a setting would clip."""
    count = 0
    for readings in records:
        policy = make()
        count += sum(policy.decide(reading).coefficient < 1.0 for reading in readings)
    return str(count)


class Adder(nn.Module):
    """An RNN that begins with orthogonal recurrent weights of some gain."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(2, 32), nn.Linear(32, 1)
        nn.init.orthogonal_(self.rnn.weight_hh_l0, gain=gain)  # pyright: ignore[reportArgumentType]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of (time, batch, 2) the sums (batch,)."""
        return self.head(self.rnn(x)[0][-1])[:, 0]


def train(make: Callable[[], Spike], seed: int, *, rate: float, momentum: float | None) -> float:
    """The final loss on fresh data; momentum None is Adam, with targets that are corrupted."""
    torch.manual_seed(seed)
    network = Adder(1.0 if momentum is None else 1.5)
    given = network.parameters()
    optimizer = torch.optim.Adam(given, rate) if momentum is None else torch.optim.SGD(given, rate, momentum=momentum)
    with clip_adaptively(optimizer, make(), model=network, max_successive_skips=None):
        for step in range(STEPS):
            x, y = adding(BATCH, LENGTH)
            if momentum is None and step % 20 == 19:
                y[0] *= 1e6
            optimizer.zero_grad()
            nn.functional.mse_loss(network(x), y).backward()
            optimizer.step()
    with torch.no_grad():
        x, y = adding(500, LENGTH)
        return float(nn.functional.mse_loss(network(x), y))


def told(losses: list[float]) -> str:
    """Their median, and a mark for each that is lost."""
    return f"{statistics.median(losses):.2g}" + "!" * sum(not loss <= 1.0 for loss in losses)


def figures(records: list[list[StepReading]], make: Callable[[], Spike], runs: int) -> str:
    """The three figures of one setting."""
    seeds = range(200, 200 + runs)
    kinds = ((0.3, 0.0), (0.06, 0.9))
    exploding = [train(make, seed, rate=rate, momentum=momentum) for seed in seeds for rate, momentum in kinds]
    corrupted = [train(make, seed, rate=0.003, momentum=None) for seed in seeds]
    return f"{touched(records, make)}; {told(exploding)}; {told(corrupted)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    kinds = ("plain", "a sum", "rare", "by turns", "heavy tails", "switched")
    records = [
        record(kind, cell, adam)
        for kind in kinds
        for cell in (False, True)
        for adam in (False, True)
        if adam or kind != "switched"  # by SGD a loss a thousand times as large does explode
    ]
    print(f"As it is, of {sum(map(len, records))} healthy steps: {figures(records, Spike, arguments.runs)}\n")
    print("| constant | half | double | without |\n|---|---|---|---|", flush=True)
    for constant in CONSTANTS:
        cells: list[str] = []
        for value in (constant.half, constant.double, constant.without):
            if value is None:
                cells.append("")
                continue
            with constant.at(value) as make:
                cells.append(f"{value:.3g}: {figures(records, make, arguments.runs)}")
        print(f"| `{constant.name}` |", " | ".join(cells), "|", flush=True)
    print(f"\n# {time.process_time() - started:.0f} s of CPU time")


if __name__ == "__main__":
    main()
