"""What is known of the batches before one is seen."""

from __future__ import annotations

from torch.utils.data import DataLoader

from lightning_gradwatch.trainer.compat import Trainer


def batch_size_of(trainer: Trainer) -> int | None:
    """How many examples the training's loader puts into a batch; None where it is no single
    ``DataLoader`` that makes batches.
    """
    loader = getattr(trainer, "train_dataloader", None)
    size = loader.batch_size if isinstance(loader, DataLoader) else None
    return size if isinstance(size, int) and size > 1 else None
