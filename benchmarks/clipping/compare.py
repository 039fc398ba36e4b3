"""Which way of clipping holds a run, and what it costs a healthy one.

    python -m benchmarks.clipping.compare                      # all problems, methods and seeds: about 15 minutes on one core
    python -m benchmarks.clipping.compare --seeds 100 101 102  # others
    python -m benchmarks.clipping.compare --numbers 12         # one problem

Healthy problems; the same with spikes at one step in forty (the gradient 30 to 30,000 times as long, or noise of that length added);
problems that are unstable by themselves. Printed are, for each problem, the share of runs that diverged, the final loss (median over
seeds, on fresh data; a run that diverged counts as chance at best) and the share of steps that were clipped, of each family's best setting
for that problem, chosen with the same seeds; and of AdaptiveClip's policies with their defaults.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.clipping.methods import Act, Method, close, methods
from benchmarks.clipping.problems import Network, Problem, problems

SPIKES = 1 / 40
"""Share of the steps whose gradient is multiplied, in the regime ``spikes``."""


@dataclass(frozen=True)
class Run:
    """What became of one training."""

    loss: float
    diverged: bool
    clipped: float


def norm_of(module: nn.Module) -> float:
    """In float64: the norm of what explodes overflows float32."""
    found = [p.grad.double().norm() for p in module.parameters() if p.grad is not None]
    return float(torch.stack(found).norm()) if found else 0.0


def plant(network: nn.Module, chaos: torch.Generator) -> None:
    """At one step in forty: by turns the gradient 30 to 30,000 times as long, or noise of that length added to it."""
    hit, size, kind = torch.rand(3, generator=chaos).tolist()
    if hit >= SPIKES:
        return
    factor, norm = 10 ** (1.5 + 3 * size), norm_of(network)
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    if kind < 0.5:
        torch._foreach_mul_(gradients, factor)
        return
    noise = [torch.randn(g.shape, generator=chaos) for g in gradients]
    length = float(torch.stack([n.norm() for n in noise]).norm())
    torch._foreach_add_(gradients, noise, alpha=factor * norm / length)


def train(problem: Problem, method: Method, seed: int) -> Run:
    """One run. Data, weights and spikes depend on the seed alone."""
    torch.manual_seed(seed)
    network, optimizer = problem.start()
    act = method.make(network, optimizer)
    try:
        return _train(problem, network, optimizer, act, seed)
    finally:
        close(act)


def _train(problem: Problem, network: Network, optimizer: torch.optim.Optimizer, act: Act, seed: int) -> Run:
    chaos = torch.Generator().manual_seed(seed + 1000)
    clipped = 0
    for step in range(problem.steps):
        if problem.warmup:
            optimizer.param_groups[0]["lr"] = problem.rate * min(1.0, (step + 1) / problem.warmup)
        loss = network.loss(problem.sample(problem.batch))
        optimizer.zero_grad()
        loss.backward()
        if problem.regime == "spikes":
            plant(network, chaos)
        before = norm_of(network)
        act(loss)
        clipped += norm_of(network) < before * (1 - 1e-5)
        optimizer.step()
        if not all(bool(p.isfinite().all()) for p in network.parameters()):
            return Run(math.inf, True, clipped / (step + 1))
    with torch.no_grad():
        torch.manual_seed(10_000 + seed)
        final = float(network.loss(problem.sample(256)))
    return Run(final, not final <= 1.1 * problem.chance, clipped / problem.steps)


@dataclass(frozen=True)
class Row:
    """A method on a problem, over all seeds."""

    method: Method
    runs: tuple[Run, ...]
    chance: float

    @property
    def diverged(self) -> float:
        """Share of the runs."""
        return statistics.mean(run.diverged for run in self.runs)

    @property
    def losses(self) -> list[float]:
        """Final losses; a run that diverged is no better than chance."""
        return [max(run.loss, self.chance) if run.diverged else run.loss for run in self.runs]

    @property
    def loss(self) -> float:
        """Their median."""
        return statistics.median(self.losses)

    @property
    def clipped(self) -> float:
        """Share of all steps."""
        return statistics.mean(run.clipped for run in self.runs)


def measure(problem: Problem, chosen: Iterable[Method], seeds: Sequence[int]) -> list[Row]:
    """Every method on one problem."""
    return [Row(m, tuple(train(problem, m, seed) for seed in seeds), problem.chance) for m in chosen]


def best(rows: Sequence[Row]) -> Row:
    """The setting with the fewest divergences, then the least loss."""
    return min(rows, key=lambda row: (row.diverged, row.loss))


def best_of_families(rows: Sequence[Row]) -> list[Row]:
    """One row a family."""
    families = dict.fromkeys(row.method.family for row in rows)
    return [best([row for row in rows if row.method.family == family]) for family in families]


def show(problem: Problem, rows: Sequence[Row]) -> None:
    """A table."""
    print(f"\n{problem.regime}: {problem.name} (chance {problem.chance:.3f})")
    for row in rows:
        m = row.method
        low, high = min(row.losses), max(row.losses)
        print(
            f"  {m.family:15} {m.setting:26} diverged {row.diverged:5.0%}  loss {row.loss:7.4f} ({low:.4f} to {high:.4f})  "
            f"clipped {row.clipped:6.1%}",
            flush=True,
        )


def verdict(rows: Sequence[Row]) -> tuple[bool, bool, bool, float]:
    """Of Spike: never diverged where another survived; clipped nothing; loss no worse than the best rival's; and their ratio."""
    (ours,) = (row for row in rows if row.method.family == "ours: spike")
    rivals = [row for row in rows if not row.method.ours]
    survived = all(
        not ours.runs[i].diverged or all(row.runs[i].diverged for row in rows if row is not ours)
        for i in range(len(ours.runs))
    )
    rival = best(rivals)
    ratio = ours.loss / rival.loss
    return survived, ours.clipped == 0.0, ratio <= 1.0, ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--regime", choices=("healthy", "spikes", "unstable"))
    parser.add_argument("--numbers", type=int, nargs="*", help="of problems, counted from 0")
    parser.add_argument("--only", nargs="*", help="families of methods")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    started, verdicts = time.time(), []
    for number, problem in enumerate(problems()):
        if arguments.regime not in (None, problem.regime) or (arguments.numbers and number not in arguments.numbers):
            continue
        chosen = [m for m in methods() if not arguments.only or m.family in arguments.only]
        rows = measure(problem, chosen, arguments.seeds)
        show(problem, best_of_families(rows))
        if any(row.method.family == "ours: spike" for row in rows):
            verdicts.append((problem, *verdict(rows)))
    print("\nSpike: no run lost that another held; steps clipped 0; loss against the best rival's best setting")
    for problem, survived, untouched, as_good, ratio in verdicts:
        print(f"  {problem.regime:9} {problem.name:30} {survived!s:6} {untouched!s:6} {as_good!s:6} {ratio:.3f}")
    print(f"# {len(arguments.seeds)} seeds, {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
