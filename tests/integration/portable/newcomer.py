"""A training as a newcomer writes it, under the name of Lightning that ``NAMESPACE`` holds; its third batch holds a NaN.

Usage: ``NAMESPACE=pytorch_lightning python newcomer.py FOLDER``
"""

from __future__ import annotations

import importlib
import os
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader

pl = importlib.import_module(os.environ["NAMESPACE"])


class Model(pl.LightningModule):
    """A GRU over sequences of six timesteps."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 1)

    def training_step(self, batch, batch_idx):
        return self.head(self.rnn(batch)[0]).square().mean()

    def train_dataloader(self):
        data = torch.randn(24, 6, 3, generator=torch.Generator().manual_seed(0))
        data[9, 4, 1] = torch.nan
        return DataLoader(data, batch_size=4)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


if __name__ == "__main__":
    from lightning_gradwatch import AdaptiveClip, GradWatch

    watch, clip = GradWatch(every_n_steps=2, dirpath=sys.argv[1], bundles=1), AdaptiveClip(dirpath=sys.argv[1])
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_steps=4, callbacks=[watch, clip], enable_model_summary=False, **quiet)
    trainer.fit(Model())
