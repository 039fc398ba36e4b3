"""Small real LightningModules and their data."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

WORDS = 12


class TinyLanguageModel(pl.LightningModule):
    """Embedding → recurrent layer → softmax, next-word loss.

    Args:
        before_rnn: applied to the embedded input ``(batch, time, width)`` with the batch index; to plant faults.
    """

    def __init__(
        self,
        cell: str = "LSTM",
        layers: int = 1,
        dropout: float = 0.0,
        bidirectional: bool = False,
        hidden: int = 8,
        before_rnn: Callable[[Tensor, int], Tensor] | None = None,
        optimizer: str = "Adam",
        lr: float = 1e-2,
    ) -> None:
        super().__init__()
        kind, _, nonlinearity = cell.partition("_")
        options = {"nonlinearity": nonlinearity.lower()} if nonlinearity else {}
        self.embedding = nn.Embedding(WORDS, 6)
        self.rnn = getattr(nn, kind)(
            6, hidden, layers, batch_first=True, dropout=dropout, bidirectional=bidirectional, **options
        )
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(hidden * (2 if bidirectional else 1), WORDS)
        self.before_rnn, self.optimizer, self.lr = before_rnn, optimizer, lr

    def loss(self, words: Tensor, batch_idx: int) -> Tensor:
        x = self.embedding(words[:, :-1])
        if self.before_rnn is not None:
            x = self.before_rnn(x, batch_idx)
        output, _ = self.rnn(x)
        return nn.functional.cross_entropy(self.head(self.drop(output)).flatten(0, 1), words[:, 1:].flatten())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch[0], batch_idx)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch[0], -1))

    def configure_optimizers(self):
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=self.lr)


def sentences(count: int = 32, length: int = 9, batch: int = 8, seed: int = 0, shuffle: bool = False) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, WORDS, (count, length), generator=generator)
    return DataLoader(TensorDataset(words), batch_size=batch, shuffle=shuffle)


def trainer(tmp_path, callbacks=(), **options) -> pl.Trainer:
    """A quiet Trainer on one CPU."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 6,
        "callbacks": list(callbacks),
        "default_root_dir": tmp_path,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**{**defaults, **options})
