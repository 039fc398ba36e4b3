"""Does a start that reaches further learn to agree with a more distant noun?

    python -m benchmarks.starts.agreement            # 600 steps, seeds 0 to 2
    python -m benchmarks.starts.agreement --seeds 7  # others

The corpus is that of ``gradwatch demo``: in a window of 48 words the last one is *was* or *were*, as a noun up to 40 words
before it asks for. LSTM and GRU of 64 units, trained as there (Adam at 0.01, clipped to norm 1, batches of 32), from each
start alike: the embedding and the softmax, the sentences and their order are the same in all of them. Printed are, for
each start, before training the horizon of the verb's loss, its growth rate and the recurrent weights' gradient (medians
over seeds; ``≥``: the gradient outlived the window); how often the right verb is preferred after 150 steps, by the noun's
distance in words (means over seeds, 400 new sentences each; guessing gives 50 %); in how many runs it was for 95 % of the
verbs at each distance within ``--steps``, looked at every 50 steps, and after how many (median of those).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradwatch import compare_starts, initialise_
from lightning_gradwatch.demo.accuracy import BUCKETS, accuracy_by_distance
from lightning_gradwatch.demo.data import AgreementData
from lightning_gradwatch.demo.language_model import RecurrentLanguageModel
from lightning_gradwatch.demo.vanishing import EMBEDDING, HIDDEN, LEARNING_RATE, MAX_NORM, STEPS, TIMESTEPS
from lightning_gradwatch.starts import StartRow

STARTS = ("pytorch", "gate_bias", "chrono", "uniform_gates", "orthogonal")


EARLY, EVERY, LEARNED = 150, 50, 0.95


@dataclass(frozen=True)
class Run:
    """What was measured before a training, the share of right verbs in each bucket of distances after ``EARLY`` steps,
    and after how many steps it was high in all of them; None where it was not.
    """

    before: StartRow
    early: list[float]
    learned: int | None


def run(cell: Any, start: str, seed: int, steps: int = STEPS) -> Run:
    """Train from one start until the verbs agree, ``steps`` at most."""
    torch.manual_seed(seed)
    data = AgreementData(timesteps=TIMESTEPS, seed=seed)
    model = RecurrentLanguageModel(data.vocabulary, cell, embedding=EMBEDDING, hidden=HIDDEN)
    initialise_(model, start, timesteps=TIMESTEPS)
    batches = _batches(data)
    (row,) = compare_starts(model, next(_batches(data)), [], loss=_loss_at_verb)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    early: list[float] = []
    for step, (fed, asked) in enumerate(islice(batches, steps), 1):
        loss = nn.functional.cross_entropy(model.logits(fed).flatten(0, 1), asked.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        if step % EVERY == 0:
            shares = [found.share for found in accuracy_by_distance(model.logits, seed=seed, timesteps=TIMESTEPS)]
            early = shares if step == EARLY else early
            if early and min(shares) >= LEARNED:
                return Run(row, early, step)
    return Run(row, early, None)


def _batches(data: AgreementData) -> Iterator[tuple[Tensor, Tensor]]:
    loader = data.train_dataloader()
    while True:
        yield from loader


def _loss_at_verb(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model.logits(batch[0])[:, -1], batch[1][:, -1])


def line(cell: str, start: str, found: Sequence[Run]) -> str:
    """A line of the table."""
    rows = [one.before for one in found]
    censored = sum(row.censored for row in rows) * 2 > len(rows)
    shares = [statistics.fmean(bucket) for bucket in zip(*(one.early for one in found), strict=True)]
    learned = [one.learned for one in found if one.learned is not None]
    return (
        f"| {cell.upper()} | {start} | {'≥ ' * censored}{statistics.median(row.horizon or 0 for row in rows):g} "
        f"| {statistics.median(row.growth_rate or 0.0 for row in rows):+.3f} "
        f"| {statistics.median(row.weight_gradient or 0.0 for row in rows):.2g} "
        f"| {' | '.join(f'{share:.0%}' for share in shares)} | {len(learned)} of {len(found)} "
        f"| {f'{statistics.median(learned):g}' if learned else '–'} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=["lstm", "gru"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(
        "| cell | start | horizon | growth rate | ∂L/∂W_hh |"
        + "".join(f" {a}–{b} |" for a, b in BUCKETS)
        + " learned | after |"
    )
    print("|---" * (7 + len(BUCKETS)) + "|")
    for cell, start in product(options.cells, STARTS):
        found = [run(cell, start, seed, options.steps) for seed in options.seeds]
        print(line(cell, start, found), flush=True)


if __name__ == "__main__":
    main()
