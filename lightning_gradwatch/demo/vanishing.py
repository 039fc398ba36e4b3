"""Act 1: a gradient that vanishes. Three networks learn was/were; what the gradient does not reach
is not learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_gradwatch.demo.accuracy import Accuracy, accuracy_by_distance
from lightning_gradwatch.demo.agreement import LONG
from lightning_gradwatch.demo.data import AgreementData
from lightning_gradwatch.demo.influence import Influences, influence_on_verb
from lightning_gradwatch.demo.language_model import CELLS, Cell, RecurrentLanguageModel
from lightning_gradwatch.demo.training import Training, reproducible, train
from lightning_gradwatch.runlog.summary import LayerSummary, summarise

HIDDEN, EMBEDDING = 64, 32
LEARNING_RATE = 0.01
MAX_NORM = 1.0
STEPS = 600
GATE_BIAS = 2.0
TIMESTEPS = LONG[1] + 8  # every subject lies within the window of its verb


@dataclass(frozen=True, slots=True)
class Reach:
    """The longest horizon of a training, in words, and the step at which it was measured;
    ``censored`` by the window."""

    horizon: int
    censored: bool
    step: int


@dataclass(frozen=True, slots=True)
class Memory:
    """How far one network's gradient reaches, and what it learned.

    Args:
        cell: which.
        reach: how far the gradient of the verb went at most, in all of the training.
        summary: of the run's last samples; ``summary.horizon`` in timesteps, which here are words.
        accuracies: at was/were, by distance.
        training: what else came of it.
        influences: of the words of one sentence on its verb.
    """

    cell: Cell
    reach: Reach
    summary: LayerSummary
    accuracies: tuple[Accuracy, ...]
    training: Training
    influences: Influences


def compare_cells(folder: Path, *, seed: int, console: Any, steps: int = STEPS) -> list[Memory]:
    """Train a vanilla RNN, a GRU and an LSTM alike on the agreement corpus."""
    return [_remember(cell, folder / f"agreement-{cell}", seed, console, steps) for cell in CELLS]


def _remember(cell: Cell, folder: Path, seed: int, console: Any, steps: int) -> Memory:
    data = AgreementData(timesteps=TIMESTEPS, seed=seed)
    with reproducible(seed):
        model = RecurrentLanguageModel(
            data.vocabulary, cell, embedding=EMBEDDING, hidden=HIDDEN, lr=LEARNING_RATE, gate_bias=GATE_BIAS
        )
        before = influence_on_verb(model)
        training = train(
            model,
            data,
            name=f"agreement, {cell.upper()}",
            steps=steps,
            folder=folder,
            console=console,
            sample_every=25,
            anchors=1,  # the last word of a window is the verb: this follows its gradient alone
            max_norm=MAX_NORM,
        )
        model.eval()
        accuracies = accuracy_by_distance(model.logits, seed=seed, timesteps=TIMESTEPS)
        influences = Influences(before, influence_on_verb(model))
    run = training.run
    summary = summarise(run.profile_records, run.event_records)[0]
    return Memory(cell, longest_reach(run.profile_records), summary, tuple(accuracies), training, influences)


def longest_reach(profile_records: Sequence[Mapping[str, Any]]) -> Reach:
    """The longest horizon among the samples of a run, the first of several; one that the window cut
    off counts as longest."""
    reaches = [
        Reach(record["horizon"], record["horizon_censored"], record["step"])
        for record in profile_records
        if record["horizon"] is not None
    ]
    return max(reaches, key=lambda reach: (reach.censored, reach.horizon), default=Reach(0, False, 0))
