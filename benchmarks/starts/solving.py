"""Does a start that reaches further learn more?

    python -m benchmarks.starts.solving                          # lengths 100 and 200, three seeds
    python -m benchmarks.starts.solving --lengths 500 --seeds 7  # others

Two problems that need memory over the whole sequence. *Recall*: which of four symbols came first, under noise that
follows; the answer is due at the end. *Adding* (Hochreiter and Schmidhuber 1997): the sum of the two marked numbers, one
in each half. LSTM and GRU of 64 units, Adam at 0.002, clipped to norm 1, batches of 32 fresh sequences. Printed are, for
each start, its horizon, growth rate and the recurrent weights' gradient before training (medians over seeds; ``≥``: the
gradient outlived the sequence), how many runs solved the problem (recall: 95 % right; adding: mean squared error under
0.01, over 50 successive batches), after how many steps (median of those that did), and the error over the last 50
batches (median).
"""

from __future__ import annotations

import argparse
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from lightning_gradwatch import compare_starts, initialise_

HIDDEN, BATCH, RATE, LAST = 64, 32, 2e-3, 50
STARTS = ("pytorch", "gate_bias", "chrono", "uniform_gates", "orthogonal")


@dataclass(frozen=True)
class Problem:
    """A sequence task: ``sample`` gives inputs ``(batch, time, width)`` and targets."""

    name: str
    width: int
    outputs: int
    sample: Callable[[int], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    error: Callable[[Tensor, Tensor], Tensor]
    solved: float


def recall(timesteps: int) -> tuple[Tensor, Tensor]:
    """One of four symbols at the first timestep, noise in two more channels all the way."""
    symbol = torch.randint(4, (BATCH,))
    x = torch.zeros(BATCH, timesteps, 6)
    x[:, 0, :4] = nn.functional.one_hot(symbol, 4).float()
    x[:, :, 4:] = torch.randn(BATCH, timesteps, 2)
    return x, symbol


def adding(timesteps: int) -> tuple[Tensor, Tensor]:
    """Numbers in the first channel, marks in the second."""
    x = torch.zeros(BATCH, timesteps, 2)
    x[:, :, 0] = torch.rand(BATCH, timesteps)
    rows, half = torch.arange(BATCH), timesteps // 2
    first, second = torch.randint(half, (BATCH,)), half + torch.randint(timesteps - half, (BATCH,))
    x[rows, first, 1] = x[rows, second, 1] = 1.0
    return x, (x[rows, first, 0] + x[rows, second, 0])[:, None]


def wrong(y: Tensor, target: Tensor) -> Tensor:
    """Share of the batch."""
    return (y.argmax(1) != target).float().mean()


PROBLEMS = (
    Problem("recall", 6, 4, recall, nn.functional.cross_entropy, wrong, 0.05),
    Problem("adding", 2, 1, adding, nn.functional.mse_loss, nn.functional.mse_loss, 0.01),
)


class Network(nn.Module):
    """One recurrent layer, read at its end."""

    def __init__(self, kind: str, problem: Problem) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(problem.width, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, problem.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From ``(batch, time, width)`` to ``(batch, outputs)``."""
        return self.head(self.rnn(x)[0][:, -1])


@dataclass(frozen=True)
class Run:
    """What one training began with, and what became of it."""

    horizon: int
    censored: bool
    growth_rate: float
    weight_gradient: float
    solved_after: int | None
    error: float


def run(kind: str, problem: Problem, start: str, timesteps: int, seed: int, steps: int) -> Run:
    """Train until it is solved, ``steps`` at most."""
    torch.manual_seed(seed)
    network = Network(kind, problem)
    initialise_(network, start, timesteps=timesteps)
    before, solved_after, errors = measured(network, problem, timesteps), None, deque([1e9], maxlen=LAST)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    for step in range(1, steps + 1):
        x, target = problem.sample(timesteps)
        y = network(x)
        optimizer.zero_grad()
        problem.loss(y, target).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        errors.append(float(problem.error(y.detach(), target)))
        if len(errors) == LAST and statistics.fmean(errors) < problem.solved:
            solved_after = step
            break
    return Run(*before, solved_after, statistics.fmean(errors))


def measured(network: Network, problem: Problem, timesteps: int) -> tuple[int, bool, float, float]:
    """Horizon, whether it is censored, growth rate and the recurrent weights' gradient, on one batch."""
    (row,) = compare_starts(network, problem.sample(timesteps), [], loss=lambda n, b: problem.loss(n(b[0]), b[1]))
    return row.horizon or 0, row.censored, row.growth_rate or 0.0, row.weight_gradient or 0.0


def line(problem: str, kind: str, timesteps: int, start: str, found: Sequence[Run]) -> str:
    """A line of the table."""
    horizon = statistics.median(one.horizon for one in found)
    censored = sum(one.censored for one in found) * 2 > len(found)
    after = [one.solved_after for one in found if one.solved_after is not None]
    return (
        f"| {problem} | {kind} | {timesteps} | {start} | {'≥ ' * censored}{horizon:g} "
        f"| {statistics.median(one.growth_rate for one in found):+.3f} "
        f"| {statistics.median(one.weight_gradient for one in found):.2g} | {len(after)} of {len(found)} "
        f"| {f'{statistics.median(after):g}' if after else '–'} | {statistics.median(one.error for one in found):.2g} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=[one.name for one in PROBLEMS])
    parser.add_argument("--kinds", nargs="+", default=["LSTM", "GRU"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[100, 200])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| problem | cell | timesteps | start | horizon | growth rate | ∂L/∂W_hh | solved | after | error |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    chosen = [problem for problem in PROBLEMS if problem.name in options.problems]
    for problem, timesteps, kind, start in product(chosen, options.lengths, options.kinds, STARTS):
        found = [run(kind, problem, start, timesteps, seed, options.steps) for seed in options.seeds]
        print(line(problem.name, kind, timesteps, start, found), flush=True)


if __name__ == "__main__":
    main()
