"""Models whose steps go wrong in known places, for bundles and their replay."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader

from tests.models import TinyLanguageModel, sentences, trainer

AT = 2
"""The batch that goes wrong."""


class Drawn(TinyLanguageModel):
    """Spoils the recurrent input of batch 2 at a sequence, timestep and unit that three random generators draw."""

    def __init__(self, **options: Any) -> None:
        super().__init__(before_rnn=self.spoil, **options)
        self.save_hyperparameters()

    def spoil(self, x: Tensor, batch_idx: int) -> Tensor:
        place = int(torch.randint(8, ())), np.random.randint(8), random.randrange(6)
        if batch_idx == AT:
            x = x.clone()
            x[place] = math.nan
        return x


class OwnCell(pl.LightningModule):
    """A cell of one's own in a loop, found by watching a step; its state is spoilt at a timestep that is drawn."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(6 + 8, 8)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(self.mix(torch.cat([x, h], 1)))

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell, self.head = nn.Embedding(12, 6), self.Cell(), nn.Linear(8, 12)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        words, at = batch[0], int(torch.randint(7, ()))  # of the last one no later call tells
        h, loss = torch.zeros(len(words), 8), torch.zeros(())
        for t in range(words.shape[1] - 1):
            h = self.cell(self.embedding(words[:, t]), h)
            if batch_idx == AT and t == at:
                h = h / torch.zeros(())
            loss = loss + nn.functional.cross_entropy(self.head(h), words[:, t + 1])
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


class Stateful(TinyLanguageModel):
    """Carries its hidden state from batch to batch in a plain attribute, and normalises with running statistics."""

    def __init__(self) -> None:
        super().__init__(dropout=0.3)
        self.hidden: tuple[Tensor, Tensor] | None = None
        self.seen = 0
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def loss(self, words: Tensor, batch_idx: int) -> Tensor:
        self.seen += 1
        self.scale *= 1.1
        x = self.norm(self.embedding(words[:, :-1]).transpose(1, 2)).transpose(1, 2) * self.scale * self.seen
        output, state = self.rnn(x, self.hidden)
        self.hidden = (state[0].detach(), state[1].detach())
        return nn.functional.cross_entropy(self.head(self.drop(output)).flatten(0, 1), words[:, 1:].flatten())


class Scheduled(TinyLanguageModel):
    """With weight decay, momentum and a learning rate that changes at every step; its loss depends on what Lightning counts."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        return super().training_step(batch, batch_idx) * (
            1 + rate + self.global_step + 10 * self.current_epoch + batch_idx
        )

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, 20), "interval": "step"}]


class Words(NamedTuple):
    """A batch with names."""

    packed: PackedSequence
    extra: dict[str, Any]


@dataclasses.dataclass
class Held:
    """What else a batch may hold."""

    offsets: np.ndarray[Any, Any]
    tags: tuple[str, ...]


class Nested(pl.LightningModule):
    """Its batches hold packed sequences, named tuples, dataclasses, arrays, numbers and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 5), nn.Linear(5, 1)

    def training_step(self, batch: Words, batch_idx: int) -> Tensor:
        assert isinstance(batch, Words)
        assert isinstance(batch.extra["held"], Held)
        assert batch.extra["held"].tags == ("a", "b")
        batch.packed.data.mul_(2.0)  # changed in place by the step itself
        output, _ = self.rnn(batch.packed)
        offsets = torch.from_numpy(batch.extra["held"].offsets).float().sum()
        return self.head(output.data).mean() * batch.extra["factor"] + offsets + batch.extra["weights"][0].sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def nested_batches() -> DataLoader[Words]:
    """Four of them."""
    generator = torch.Generator().manual_seed(3)

    def batch(number: int) -> Words:
        packed = pack_sequence([torch.randn(n, 3, generator=generator) for n in (2, 5, 3)], enforce_sorted=False)
        held = Held(np.arange(3) + number, ("a", "b"))
        return Words(packed, {"held": held, "factor": 0.5, "weights": [torch.ones(2)], "name": "x", "none": None})

    return DataLoader([batch(n) for n in range(4)], batch_size=None)


def train(tmp_path, model: pl.LightningModule, *callbacks: pl.Callback, data: Any = None, **options: Any) -> pl.Trainer:
    """One epoch of four batches."""
    run = trainer(tmp_path, callbacks, **{"max_epochs": 1, "max_steps": -1, **options})
    run.fit(model, sentences(shuffle=True) if data is None else data)
    return run
