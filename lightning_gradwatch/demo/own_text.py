"""``gradwatch demo --text``: a network of the user's choice learns the user's text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lightning_gradwatch import AdaptiveClip, arguments
from lightning_gradwatch.demo.data import TextData
from lightning_gradwatch.demo.language_model import CELLS, Cell, RecurrentLanguageModel
from lightning_gradwatch.demo.text import unigram_perplexity
from lightning_gradwatch.demo.training import Training, reproducible, train
from lightning_gradwatch.runlog.summary import LayerSummary, summarise


@dataclass(frozen=True)
class TextOptions:
    """What to train on what.

    Args:
        files: UTF-8; none is Python's standard library.
        cell, layers, hidden, dropout, tied, lr: of the model and its training by Adam.
        steps: optimizer steps; ``timesteps``: characters of a window; ``batch_size``: windows of a
            step.
        sample: characters that the model writes in the end.
        seed: of everything drawn.
        accelerator: the Trainer's.

    Raises:
        ValueError: an option breaks its rule.
    """

    files: list[str] = field(default_factory=list[str])
    cell: Cell = "lstm"
    layers: int = 1
    hidden: int = 128
    dropout: float = 0.0
    tied: bool = False
    lr: float = 3e-3
    steps: int = 300
    timesteps: int = 100
    batch_size: int = 32
    sample: int = 200
    seed: int = 0
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        arguments.one_of("--cell", self.cell, CELLS, "Leave it out for lstm.")
        for name in ("layers", "hidden", "steps", "timesteps", "batch_size"):
            arguments.whole(f"--{name.replace('_', '-')}", getattr(self, name), "Leave it out for the default.")
        arguments.number("--dropout", self.dropout, lambda share: 0 <= share < 1, "in [0, 1)", "0 drops nothing.")
        arguments.positive("--lr", self.lr, "Leave it out for 0.003.")

    def data(self) -> TextData:
        """The text, read.

        Raises:
            DemoError: it cannot be used.
        """
        return TextData(
            self.files, timesteps=self.timesteps, batch_size=self.batch_size, batches=self.steps, seed=self.seed
        )


@dataclass(frozen=True, slots=True)
class OwnText:
    """What came of it.

    Args:
        summaries: one for each layer.
        unigram: perplexity of knowing only how frequent each character is; ``characters``: how many
            there are.
        sample: what the model writes after the beginning of the held-out text; None if its weights
            are not finite.
    """

    training: Training
    summaries: tuple[LayerSummary, ...]
    unigram: float
    characters: int
    sample: str | None


def learn_text(folder: Path, data: TextData, options: TextOptions, *, console: Any) -> OwnText:
    """Train, measure, and let the model write something."""
    with reproducible(options.seed):
        model = RecurrentLanguageModel(
            data.vocabulary,
            options.cell,
            hidden=options.hidden,
            layers=options.layers,
            dropout=options.dropout,
            tied=options.tied,
            lr=options.lr,
        )
        training = train(
            model,
            data,
            name=f"text, {options.cell.upper()}",
            steps=options.steps,
            folder=folder / f"text-{options.cell}",
            console=console,
            sample_every=max(options.steps // 20, 1),
            clip=AdaptiveClip(),
            accelerator=options.accelerator,
        )
        model.eval()
        sample = None
        if training.weights_finite:
            generator = torch.Generator().manual_seed(options.seed)
            start = data.held_out[: options.timesteps].to(model.device)
            sample = data.characters.decode(model.generate(start, options.sample, generator))
    summaries = tuple(summarise(training.run.profile_records, training.run.event_records))
    return OwnText(training, summaries, unigram_perplexity(data.held_out, data.vocabulary), data.vocabulary, sample)
