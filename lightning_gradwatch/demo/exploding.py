"""Act 2: a gradient that explodes. One and the same training on real text, without and with
adaptive clipping."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_gradwatch import AdaptiveClip
from lightning_gradwatch.demo.data import TextData
from lightning_gradwatch.demo.language_model import RecurrentLanguageModel
from lightning_gradwatch.demo.text import unigram_perplexity
from lightning_gradwatch.demo.training import Training, reproducible, train

HIDDEN, EMBEDDING = 128, 32
SPECTRAL_RADIUS = 1.2
LEARNING_RATE = 0.5
STEPS = 200
TIMESTEPS = 100


@dataclass(frozen=True, slots=True)
class Explosion:
    """Both trainings, and what to hold their perplexities against.

    Args:
        bare, clipped: without and with ``AdaptiveClip()``, the same in all else.
        unigram: perplexity of knowing only how frequent each character is.
        characters: how many there are: the perplexity of knowing nothing.
    """

    bare: Training
    clipped: Training
    unigram: float
    characters: int


def explode(folder: Path, *, seed: int, console: Any, steps: int = STEPS) -> Explosion:
    """Train a relu RNN whose start and learning rate are too large, twice."""
    data = TextData(timesteps=TIMESTEPS, batches=steps, seed=seed)
    bare = _train(data, folder / "explosion-bare", seed, console, steps, None)
    clipped = _train(data, folder / "explosion-clipped", seed, console, steps, AdaptiveClip())
    return Explosion(bare, clipped, unigram_perplexity(data.held_out, data.vocabulary), data.vocabulary)


def _train(data: TextData, folder: Path, seed: int, console: Any, steps: int, clip: AdaptiveClip | None) -> Training:
    with reproducible(seed):
        model = RecurrentLanguageModel(
            data.vocabulary,
            "rnn",
            nonlinearity="relu",
            embedding=EMBEDDING,
            hidden=HIDDEN,
            optimizer="sgd",
            lr=LEARNING_RATE,
            spectral_radius=SPECTRAL_RADIUS,
        )
        return train(
            model,
            data,
            name="text, RNN" + (", AdaptiveClip" if clip is not None else ", no clipping"),
            steps=steps,
            folder=folder,
            console=console,
            sample_every=10,
            clip=clip,
        )
