"""The quiet campaign: does GradWatch keep quiet on healthy training runs?

    python -m benchmarks.campaigns.quiet [--runs N] [--steps N] [--seed N] [--list]

Each run is a real Trainer with ``GradWatch`` as it comes, over cell kinds, sizes, depths, tasks, optimizers, learning-rate schedules with
and without warm-up, and precisions, drawn at random. A run is *healthy* if it is set up as a textbook would and learns:

- by design, before anything is measured: learning rates are ordinary ones for their optimizer; plain SGD clips, as it must in a
  recurrent network (Pascanu et al. 2013); what a task needs to remember lies within reach of a network as PyTorch initialises it, 5 to 10
  timesteps, or its gates begin open, and it is up to twice as far (Jozefowicz et al. 2015), or each timestep has a loss of its own (the
  language model);
- by the loss curve: all losses are finite, and the mean over the last tenth is at least 5 % under that over the first tenth.

A run that does not learn is counted and left out of the judgement, whatever was said of it. Every warning or critical event of a
healthy run is a false alarm, but for one: that clipping limits most steps, where a count of all steps says that it does. Notes (severity
``info``) are counted apart.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import lightning.pytorch as pl
import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.campaigns.run_models import OPTIMIZERS, Run, train
from lightning_gradwatch import Event, EventKind, GradWatch
from lightning_gradwatch.audit.rules import LIMITING_SHARE

RATES = {
    "SGD": (0.1, 0.5),
    "momentum": (0.02, 0.1),
    "Adam": (1e-3, 1e-2),
    "AdamW": (1e-3, 1e-2),
    "RMSprop": (1e-3, 5e-3),
}
"""Learning rates that are ordinary for small recurrent networks."""

REACH = {"adding": (4, 9), "copying": (6, 12), "classification": (6, 14), "text": (16, 32)}
"""Timesteps of a task. What the copying task asks for lies half of them back."""

LEARNED = 0.95
"""The loss at the end over that at the begin, at most."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run, and what was said of it. ``first``, ``last``: mean loss over the first and last tenth of its steps;
    ``limited``: share of its steps on which the Trainer's clipping shortened the gradient.
    """

    run: Run
    first: float
    last: float
    finite: bool
    events: tuple[Event, ...]
    limited: float = 0.0

    @property
    def healthy(self) -> bool:
        return self.finite and self.last <= LEARNED * self.first

    @property
    def alarms(self) -> list[Event]:
        return [event for event in self.events if event.severity != "info" and not self._is_so(event)]

    def _is_so(self, event: Event) -> bool:
        """That clipping limits most steps is no alarm where it does: healthy runs may train so."""
        return event.kind == EventKind.CLIPPING_LIMITS_STEPS and self.limited > LIMITING_SHARE


class ClippedSteps(pl.Callback):
    """Counts the steps whose gradient is longer than the bound, before it is clipped."""

    def __init__(self, bound: float | None) -> None:
        self.bound, self.steps, self.over = bound, 0, 0

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.steps += 1
        self.over += self.bound is not None and float(nn.utils.get_total_norm(gradients)) > self.bound

    @property
    def share(self) -> float:
        return self.over / max(self.steps, 1)


def draw(random: Random) -> Run:
    """A healthy run at random."""
    task = random.choice(("text", "text", "adding", "copying", "classification"))
    cell = random.choice(("RNN_TANH", "RNN_RELU", "LSTM", "LSTM", "GRU", "GRU", "LSTM cells"))
    optimizer = random.choice(OPTIMIZERS)
    low, high = RATES[optimizer]
    loop = cell == "LSTM cells"
    layers = 1 if loop else random.choice((1, 1, 2, 3))
    warm_up = random.choice((0, 0, 20, 100))
    opened = cell in ("LSTM", "GRU") and task != "text" and random.random() < 0.4
    precision = random.choice(("32-true", "32-true", "64-true", "bf16-mixed", "16-mixed"))
    return Run(
        task=task,
        cell=cell,
        hidden=random.choice((16, 32, 48)),
        layers=layers,
        timesteps=random.randint(*REACH[task]) * (1 + opened),
        batch=random.choice((8, 16)),
        optimizer=optimizer,
        lr=low * (high / low) ** random.random(),
        seed=random.randrange(2**30),
        # What comes after a character is not to be seen by what predicts it.
        bidirectional=task in ("adding", "classification") and not loop and random.random() < 0.3,
        schedule=random.choice(("constant", "cosine", "step")),
        warm_up=warm_up,
        precision="32-true" if loop and precision.startswith("16") else precision,
        gate_bias=2.0 * opened,
        clip=1.0 if optimizer in ("SGD", "momentum") else random.choice((None, None, 1.0)),
    )


def judge(run: Run, steps: int) -> Outcome:
    """Train it under GradWatch."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watch = GradWatch(dirpath=Path(folder) / "run", summary=False)
        watch.raise_own_errors = True
        counted = ClippedSteps(run.clip)
        losses = train(run, [watch, counted], Path(folder), steps).losses
    tenth = max(steps // 10, 1)
    return Outcome(
        run,
        sum(losses[:tenth]) / tenth,
        sum(losses[-tenth:]) / tenth,
        all(map(math.isfinite, losses)),
        tuple(watch.events),
        counted.share,
    )


def campaign(runs: Iterable[Run], steps: int, tell: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
    """All of them, one after the other; Ctrl-C ends it with those that are done."""
    outcomes: list[Outcome] = []
    with suppress(KeyboardInterrupt):
        for run in runs:
            outcomes.append(judge(run, steps))
            tell(outcomes[-1])
    return outcomes


def drawn(count: int, seed: int) -> list[Run]:
    """That many runs, the same for the same seed."""
    random = Random(seed)
    return [draw(random) for _ in range(count)]


GROUPS: dict[str, Callable[[Run], str]] = {
    "task": lambda run: run.task,
    "cell": lambda run: run.cell,
    "layers": lambda run: (
        f"{run.layers} layer{'s' * (run.layers > 1)}" + (", bidirectional" if run.bidirectional else "")
    ),
    "optimizer": lambda run: run.optimizer,
    "initialisation": lambda run: "gates begin open" if run.gate_bias else "PyTorch's own initialisation",
    "schedule": lambda run: run.schedule + (", warm-up" if run.warm_up else ""),
    "precision": lambda run: run.precision,
}


def table(outcomes: list[Outcome], steps: int) -> str:
    """By every property that was drawn. The loss ratio is that of the end to the begin, median over the healthy runs."""
    lines = [f"{'':28}{'runs':>6}{'healthy':>9}{'loss ratio':>12}{'alarms':>8}{'notes':>7}"]
    groups = [("all", outcomes)]
    for key in GROUPS.values():
        names = sorted({key(outcome.run) for outcome in outcomes})
        groups += [(name, [outcome for outcome in outcomes if key(outcome.run) == name]) for name in names]
    for name, group in groups:
        healthy = [outcome for outcome in group if outcome.healthy]
        ratio = sorted(outcome.last / outcome.first for outcome in healthy)[len(healthy) // 2] if healthy else math.nan
        alarms = sum(len(outcome.alarms) for outcome in healthy)
        notes = sum(event.severity == "info" and not event.action for outcome in healthy for event in outcome.events)
        lines.append(f"{name:28}{len(group):6}{len(healthy):9}{ratio:12.2f}{alarms:8}{notes:7}")
    healthy = [outcome for outcome in outcomes if outcome.healthy]
    alarmed = Counter(str(event.kind) for outcome in healthy for event in outcome.alarms)
    noted = Counter(
        str(event.kind)
        for outcome in healthy
        for event in outcome.events
        if event.severity == "info" and not event.action
    )
    lines.append(
        f"Alarms in {len(healthy)} healthy runs of {steps} steps: {dict(alarmed) or 'none'}. Notes: {dict(noted) or 'none'}."
    )
    left = [outcome for outcome in outcomes if not outcome.healthy]
    lines.append(
        f"Left out, since they did not learn: {len(left)}, of which {sum(bool(o.alarms) for o in left)} had an alarm."
    )
    return "\n".join(lines)


def quietly() -> None:
    """One thread, and no word from Lightning."""
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> int:
    """Print the table; exit code 1 if there was a false alarm."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=220)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="print each run that had an alarm, or did not learn")
    options = parser.parse_args()
    quietly()
    begin = time.monotonic()

    done, so_far = Counter[str](), list[Outcome]()

    def tell(outcome: Outcome) -> None:
        done.update(runs=1, healthy=outcome.healthy, alarms=len(outcome.alarms))
        so_far.append(outcome)
        if done["runs"] % 20 == 0:
            print(
                f"{table(so_far, options.steps)}\n{time.monotonic() - begin:6.0f} s: {dict(done)}",
                file=sys.stderr,
                flush=True,
            )
        if options.list and (outcome.alarms or not outcome.healthy):
            print(f"{outcome.run}\n  loss {outcome.first:.3f} → {outcome.last:.3f}", flush=True)
            for event in outcome.alarms:
                print(f"  {event.severity} {event.kind} at step {event.step}: {event.message}", flush=True)

    outcomes = campaign(drawn(options.runs, options.seed), options.steps, tell)
    print(table(outcomes, options.steps))
    print(f"{time.monotonic() - begin:.0f} s.")
    return 1 if any(outcome.alarms for outcome in outcomes if outcome.healthy) else 0


if __name__ == "__main__":
    sys.exit(main())
