"""How many rows a lagged curve needs: horizon and growth rate from fewer anchors a sequence, beside those from all of them.

    python -m benchmarks.cost.anchors [--batches N] [--sequences N] [--json FILE]

Each anchor of each sequence is a row of the sweep. The same sweeps are read several times: with every anchor of every sequence, as a
reference with many anchors of the whole batch, and with the anchors spread over the sequences, so that each has one or two of
its own. Shown is how far horizon and growth rate are from the reference's, over networks of three kinds, two depths, several recurrent
weights, losses and lengths, some of them trained for a while. The verdict is whether the gradient falls under 1 % in the first half.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cost.launches import KINDS
from lightning_gradwatch.profile import Horizon, gradient_horizon, growth_rate
from lightning_gradwatch.recurrent import Capture, RecurrentCall, sweep
from lightning_gradwatch.recurrent.measure import anchors as measured
from lightning_gradwatch.recurrent.measure.sweep import Sweep
from lightning_gradwatch.recurrent.measure.tables import lag_curves

BATCH, INPUT, HIDDEN, WORDS, POSITIONS, MANY = 32, 16, 48, 12, 4, 12

Chooser = Callable[[int, int], bool]
"""Whether a sequence (its number among those measured) keeps an anchor (0 is its last)."""

SCHEMES: dict[str, Chooser] = {
    "4 anchors each": lambda sequence, anchor: True,
    "2 each: the last, and by turns one of the others": lambda sequence, anchor: anchor in (0, 1 + sequence % 3),
    "2 each, in turn": lambda sequence, anchor: (anchor - sequence) % 2 == 0,
    "1 each, in turn": lambda sequence, anchor: anchor == sequence % 4,
    "1 each, the last for every second": lambda sequence, anchor: (
        anchor == (0 if sequence % 2 == 0 else 1 + sequence // 2 % 3)
    ),
    "1 each, the last": lambda sequence, anchor: anchor == 0,
}


@dataclass(frozen=True)
class Problem:
    """A network and what it is trained on."""

    kind: str
    layers: int
    scale: float
    timesteps: int
    loss: str
    trained: int

    def module(self) -> nn.RNNBase:
        module = KINDS[self.kind](INPUT, HIDDEN, self.layers)
        with torch.no_grad():
            for name, weight in module.named_parameters():
                if name.startswith("weight_hh"):
                    weight.mul_(self.scale)
        return module


def problems() -> Iterator[Problem]:
    scales = {"RNN": (0.8, 1.4, 1.8), "LSTM": (0.7, 1.5, 3.0), "GRU": (0.7, 1.5, 2.5)}
    for kind, layers, place in itertools.product(KINDS, (1, 2), range(3)):
        timesteps, loss = (30, 80, 160)[(place + layers) % 3], ("every", "last tenth")[layers % 2 if place else 0]
        for trained in (0, 60):
            yield Problem(kind, layers, scales[kind][place], timesteps, loss, trained)


def sweeps(problem: Problem, batches: int, sequences: int) -> Iterator[tuple[Sweep, Sweep]]:
    """The sweep of each batch with four anchors each, and the reference."""
    torch.manual_seed(0)
    module, embedding, head = problem.module(), nn.Embedding(WORDS, INPUT), nn.Linear(HIDDEN, WORDS)
    parameters = [*module.parameters(), *embedding.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, 3e-3)
    capture = Capture({"rnn": module})
    for step in range(problem.trained + batches):
        is_measured = step >= problem.trained
        if is_measured:
            capture.attach()
            capture.begin()
        optimizer.zero_grad()
        _loss(problem, module, embedding, head).backward()
        if is_measured:
            (call,) = capture.read_calls()
            yield _both(call, sequences)
            capture.detach()
        else:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()


def _both(call: RecurrentCall, sequences: int) -> tuple[Sweep, Sweep]:
    with mock.patch.object(measured, "by_turns", lambda latest_first, *_: latest_first):
        return (
            sweep(call, max_sequences=sequences, anchors=POSITIONS),
            sweep(call, max_sequences=None, anchors=MANY),
        )


def _loss(problem: Problem, module: nn.RNNBase, embedding: nn.Module, head: nn.Module) -> Tensor:
    """Each word is that of six timesteps before, or random: what is to be learned lies back in time."""
    words = torch.randint(WORDS, (problem.timesteps, BATCH))
    again = torch.rand(problem.timesteps, BATCH) < 0.5
    for t in range(6, problem.timesteps):
        words[t] = torch.where(again[t], words[t - 6], words[t])
    first = 0 if problem.loss == "every" else problem.timesteps - max(problem.timesteps // 10, 1)
    out = head(module(embedding(words))[0])[first:-1]
    return nn.functional.cross_entropy(out.flatten(0, 1), words[first + 1 :].flatten())


def read(swept: Sweep, keeps: Chooser) -> list[tuple[Horizon, float | None]]:
    """Horizon and growth rate of each layer from the anchors that are kept."""
    found: list[tuple[Horizon, float | None]] = []
    timestep = swept.anchors.timestep.clone()
    for anchor, sequence in itertools.product(range(timestep.shape[0]), range(timestep.shape[1])):
        if not keeps(sequence, anchor):
            timestep[anchor, sequence] = -1
    anchors = replace(swept.anchors, timestep=timestep)
    for (one,) in swept.directions:
        norms = one.total[:, 1:]
        if one.total_cell is not None:
            norms = torch.hypot(norms, one.total_cell[:, 1:])
        curve = np.nanmedian(lag_curves(norms, swept.layout, anchors, 0), axis=0)
        found.append((gradient_horizon(curve), growth_rate(curve)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=8, help="of each network")
    parser.add_argument("--sequences", type=int, nargs="+", default=[8], help="max_sequences")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {f"{count} sequences": figures(options.batches, count) for count in options.sequences}
    for title, rows in found.items():
        show(title, rows)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def figures(batches: int, sequences: int) -> dict[str, dict[str, float]]:
    errors: dict[str, Errors] = {name: Errors() for name in SCHEMES}
    for problem in problems():
        for swept, reference in sweeps(problem, batches, sequences):
            truth = read(reference, lambda sequence, anchor: True)
            full = read(swept, SCHEMES["4 anchors each"])
            for name, keeps in SCHEMES.items():
                errors[name].add(read(swept, keeps), truth, full, problem.timesteps)
    return {name: each.result() for name, each in errors.items()}


class Errors:
    """Of one way to choose anchors."""

    def __init__(self) -> None:
        self._horizon: list[float] = []
        self._rate: list[float] = []
        self._verdicts, self._to_full, self._rate_to_full = list[bool](), list[bool](), list[float]()

    def add(
        self,
        found: list[tuple[Horizon, float | None]],
        truth: list[tuple[Horizon, float | None]],
        full: list[tuple[Horizon, float | None]],
        timesteps: int,
    ) -> None:
        for (horizon, rate), (true_horizon, true_rate), (full_horizon, full_rate) in zip(
            found, truth, full, strict=True
        ):
            if horizon.lag and true_horizon.lag:
                self._horizon.append(abs(math.log(horizon.lag / true_horizon.lag)))
            if rate is not None and true_rate is not None and full_rate is not None:
                self._rate.append(abs(rate - true_rate))
                self._rate_to_full.append(abs(rate - full_rate))
            self._verdicts.append(_short(horizon, timesteps) != _short(true_horizon, timesteps))
            self._to_full.append(_short(horizon, timesteps) != _short(full_horizon, timesteps))

    def result(self) -> dict[str, float]:
        return {
            "cases": len(self._verdicts),
            "horizon off by, median": math.expm1(np.median(self._horizon)),
            "90 %": math.expm1(np.quantile(self._horizon, 0.9)),
            "99 %": math.expm1(np.quantile(self._horizon, 0.99)),
            "rate off by, median": float(np.median(self._rate)),
            "rate, 90 %": float(np.quantile(self._rate, 0.9)),
            "verdict differs from the reference's": float(np.mean(self._verdicts)),
            "from 4 each": float(np.mean(self._to_full)),
        }


def _short(horizon: Horizon, timesteps: int) -> bool:
    return horizon.lag is not None and not horizon.censored and horizon.lag < timesteps / 2


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    columns = list(next(iter(rows.values())))
    print(f"\n{title}: {columns}")
    for name, row in rows.items():
        print(f"{name:>50}", *(f"{row[column]:9.4f}" for column in columns))


if __name__ == "__main__":
    main()
