"""Both corpora as LightningDataModules. A batch is ``(fed, asked)``, each ``(batch, time)``: every
word and the one after it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from lightning_gradwatch.demo.agreement import WORDS, make_windows
from lightning_gradwatch.demo.error import DemoError
from lightning_gradwatch.demo.text import LIMIT, Characters, read_text
from lightning_gradwatch.trainer.compat import LightningDataModule

Batch = tuple[Tensor, Tensor]
Batches = DataLoader[tuple[Tensor, ...]]

_HELD_OUT_SEED = 1_000_003  # far from the seeds that people choose


class AgreementData(LightningDataModule):
    """Generated sentences whose verb agrees with a distant noun; each window ends at such a verb.

    Args:
        timesteps: words of a window, > 40, the longest distance.
        windows: of one epoch.
        batch_size: windows of a batch.
        seed: of the sentences and of their order.
    """

    def __init__(self, timesteps: int = 48, windows: int = 4000, batch_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.timesteps, self.windows, self.batch_size, self.seed = timesteps, windows, batch_size, seed
        self.vocabulary = len(WORDS)

    def train_dataloader(self) -> Batches:
        """Shuffled anew every epoch, whatever the global generator's state."""
        generator = torch.Generator().manual_seed(self.seed)
        windows = make_windows(self.seed, self.windows, self.timesteps)
        return DataLoader(_pairs(windows), self.batch_size, shuffle=True, drop_last=True, generator=generator)

    def val_dataloader(self) -> Batches:
        """Sentences of another seed, a tenth as many."""
        windows = make_windows(self.seed + _HELD_OUT_SEED, max(self.windows // 10, 1), self.timesteps)
        return DataLoader(_pairs(windows), self.batch_size)


def _pairs(windows: Tensor) -> TensorDataset:
    return TensorDataset(windows[:, :-1], windows[:, 1:])


class TextData(LightningDataModule):
    """Real text by character, its last tenth held out. Training draws windows at random places.

    Args:
        files: UTF-8; without any, the sources of Python's standard library.
        timesteps: characters of a window.
        batch_size: windows of a batch.
        batches: of one epoch.
        limit: characters after which no more is read.
        seed: of the places.

    Attributes:
        characters: those of the text.
        training, held_out: the text's two parts as numbers ``(character,)``.

    Raises:
        DemoError: a file cannot be read, or there is less text than two windows.
    """

    def __init__(
        self,
        files: list[str] | None = None,
        timesteps: int = 100,
        batch_size: int = 32,
        batches: int = 200,
        limit: int = LIMIT,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.timesteps, self.batch_size, self.batches, self.seed = timesteps, batch_size, batches, seed
        text = read_text(files or (), limit=limit)
        least = timesteps + 1
        if len(text) < 2 * least:
            raise DemoError(
                f"The text must be at least two windows of {least} characters long, one to learn from and one held out; "
                f"found {len(text)} characters. Name more text, or shorter windows (--timesteps)."
            )
        held_out = max(len(text) // 10, least)
        self.characters = Characters(text[:-held_out])
        self.training = self.characters.encode(text[:-held_out])
        self.held_out = self.characters.encode(text[-held_out:])
        self.vocabulary = len(self.characters)

    def train_dataloader(self) -> Batches:
        """Windows that begin anywhere."""
        windows = _Windows(self.training, self.timesteps, stride=1)
        generator = torch.Generator().manual_seed(self.seed)
        sampler = RandomSampler(windows, True, self.batches * self.batch_size, generator=generator)
        return DataLoader(windows, self.batch_size, sampler=sampler)

    def val_dataloader(self) -> Batches:
        """Windows of the held-out part, one after another; 1,024 at most, evenly spread."""
        stride = max(self.timesteps, (len(self.held_out) - self.timesteps) // 1024)
        return DataLoader(_Windows(self.held_out, self.timesteps, stride), self.batch_size)


class _Windows(Dataset[Batch]):
    """Windows of ``timesteps`` characters that begin every ``stride`` characters."""

    def __init__(self, numbers: Tensor, timesteps: int, stride: int) -> None:
        self.numbers, self.timesteps, self.stride = numbers, timesteps, stride

    def __len__(self) -> int:
        return (len(self.numbers) - self.timesteps - 1) // self.stride + 1

    def __getitem__(self, index: int) -> Batch:
        start = index * self.stride
        window = self.numbers[start : start + self.timesteps + 1]
        return window[:-1], window[1:]
