"""The lecture's picture: which words of a sentence the loss of its verb listens to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from lightning_gradwatch.demo.agreement import NUMBERS
from lightning_gradwatch.demo.language_model import RecurrentLanguageModel
from lightning_gradwatch.engine.once import measure_once
from lightning_gradwatch.engine.options import WatchOptions
from lightning_gradwatch.profile import INPUT
from lightning_gradwatch.report.extra import require
from lightning_gradwatch.report.figures.influence import plot_words

SENTENCE = ["the", "cats", ",", "which", "already", "ate", "the", "dog", "near", "the", "bird", ",", "were", "full"]
VERB = SENTENCE.index("were")


@dataclass(frozen=True, slots=True)
class Influences:
    """Of each word before the verb on the verb's loss, ‖∂L/∂x_t‖: before training and after it."""

    start: tuple[float, ...]
    end: tuple[float, ...]


def influence_on_verb(model: RecurrentLanguageModel) -> tuple[float, ...]:
    """‖∂L/∂x_t‖ of the embedded words before the verb, L the loss of the verb alone. The model
    stays as it is.
    """
    model = copy.deepcopy(model).train()
    numbers = torch.tensor([[NUMBERS[word] for word in SENTENCE[: VERB + 1]]], device=model.device)

    def loss() -> Tensor:
        return functional.cross_entropy(model.logits(numbers[:, :-1])[:, -1], numbers[:, -1])

    _, profiles = measure_once(model, loss, WatchOptions(find_cells=False, influence=True))
    (of_inputs,) = [profile for profile in profiles if profile.state == INPUT]
    return tuple(of_inputs.total[0].tolist())


def draw(influences: Sequence[tuple[str, Influences]], path: Path) -> Path:
    """A PNG: each network's sentence, at its start and at its end.

    Args:
        influences: name of the network, and what was measured.
    """
    bare = [None] * (len(SENTENCE) - VERB)
    rows = {
        f"{name}, {when}": [*values, *bare]
        for name, influence in influences
        for when, values in (("before training", influence.start), ("after", influence.end))
    }
    figure = require("matplotlib.figure").Figure(figsize=(10.5, 0.42 * len(rows) + 0.75), layout="constrained", dpi=130)
    title = f"Which words does the loss of “{SENTENCE[VERB]}” listen to? Black: most. White: 1 % of that, or less."
    plot_words(SENTENCE, rows, title=title, ax=figure.subplots())
    figure.savefig(path)
    return path
