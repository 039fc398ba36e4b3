"""The training runs of the quiet and the sick campaign: a small recurrent model, a task, an optimizer, under a real Trainer."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_gradwatch.demo.text import Characters, read_text

CELLS = ("RNN_TANH", "RNN_RELU", "LSTM", "GRU")
OPTIMIZERS = ("SGD", "momentum", "Adam", "AdamW", "RMSprop")
TASKS = ("text", "adding", "copying", "classification")
CLASSES = 4
"""Of the classification, and symbols of the copying task."""


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        task: ``text``: the next character of Python's own sources; ``adding``: the sum of the two marked numbers; ``copying``: repeat
            what was shown ``timesteps // 2`` steps before; ``classification``: which symbol is the most frequent.
        cell: PyTorch's own name of the mode, or ``LSTM cells`` for a Python loop over ``nn.LSTMCell``.
        radius: spectral radius that the recurrent weights begin with, orthogonal otherwise; None leaves PyTorch's initialisation.
        warm_up: steps over which the learning rate rises; ``schedule``: what it does then.
        gate_bias: added to what opens an LSTM's forget gate or a GRU's update gate, so that it remembers from the start.
        clip: the Trainer's ``gradient_clip_val``.
    """

    task: str
    cell: str
    hidden: int
    layers: int
    timesteps: int
    batch: int
    optimizer: str
    lr: float
    seed: int
    bidirectional: bool = False
    schedule: str = "constant"
    warm_up: int = 0
    precision: str = "32-true"
    clip: float | None = None
    radius: float | None = None
    gate_bias: float = 0.0
    sick: str = ""
    """What is wrong with it by construction; nothing if empty."""


@functools.cache
def corpus() -> tuple[Tensor, int]:
    """The sources of Python's standard library as numbers ``(character,)``, and how many characters there are."""
    text = read_text(limit=400_000)
    characters = Characters(text)
    return characters.encode(text), len(characters)


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches ``(fed, asked)`` drawn anew for ever, the same for the same seed."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(self.run.seed)
        make = getattr(self, f"_{self.run.task}")
        while True:
            yield make(generator)

    def _text(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        numbers, _ = corpus()
        starts = torch.randint(len(numbers) - self.run.timesteps - 1, (self.run.batch, 1), generator=generator)
        window = numbers[starts + torch.arange(self.run.timesteps + 1)]
        return window[:, :-1], window[:, 1:]

    def _adding(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        batch, steps = self.run.batch, self.run.timesteps
        values = torch.rand(batch, steps, generator=generator)
        marked = torch.rand(batch, steps, generator=generator).argsort(1)[:, :2]
        marks = torch.zeros(batch, steps).scatter_(1, marked, 1.0)
        return torch.stack([values, marks], -1), (values * marks).sum(1)

    def _copying(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shown = torch.randint(CLASSES, (self.run.batch, self.run.timesteps), generator=generator)
        delay = self.run.timesteps // 2
        asked = torch.full_like(shown, -100)
        asked[:, delay:] = shown[:, : self.run.timesteps - delay]
        return shown, asked

    def _classification(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        favoured = torch.randint(CLASSES, (self.run.batch,), generator=generator)
        noise = torch.randint(CLASSES, (self.run.batch, self.run.timesteps), generator=generator)
        keep = torch.rand(self.run.batch, self.run.timesteps, generator=generator) < 0.4
        return torch.where(keep, favoured[:, None], noise), favoured


class CellLoop(nn.Module):
    """A loop over ``nn.LSTMCell``, batch-first, which returns what ``nn.LSTM`` does."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(width, hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        h = x.new_zeros(len(x), self.cell.hidden_size)
        c, states = h, []
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
            states.append(h)
        return torch.stack(states, 1), None


class RunModel(pl.LightningModule):
    """Embedding (or numbers as they are) → recurrent layers → linear head."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run, self.losses = run, list[float]()
        symbols = corpus()[1] if run.task == "text" else CLASSES
        width = 2 if run.task == "adding" else 16
        self.embedding = nn.Identity() if run.task == "adding" else nn.Embedding(symbols, width)
        self.rnn = _recurrent(run, width)
        self.head = nn.Linear(run.hidden * (1 + run.bidirectional), 1 if run.task == "adding" else symbols)
        for name, weight in self.rnn.named_parameters():
            if "weight_hh" in name and run.radius is not None:
                for gate in weight.data.split(run.hidden):
                    nn.init.orthogonal_(gate, gain=run.radius)
            if "bias_hh" in name and run.gate_bias:
                weight.data[run.hidden : 2 * run.hidden] += run.gate_bias  # f is an LSTM's second gate, z a GRU's

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        fed, asked = batch
        loss = self.loss(self.rnn(self.embedding(fed))[0], asked)
        self.losses.append(float(loss.detach()))
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def loss(self, output: Tensor, asked: Tensor) -> Tensor:
        """What is made of the recurrent output ``(batch, time, width)``."""
        if self.run.task == "adding":
            return nn.functional.mse_loss(self.head(self._final(output))[:, 0], asked)
        if self.run.task == "classification":
            return nn.functional.cross_entropy(self.head(self._final(output)), asked)
        return nn.functional.cross_entropy(self.head(output).flatten(0, 1), asked.flatten())

    def _final(self, output: Tensor) -> Tensor:
        """Where each direction has seen the whole sequence: the last timestep, and the first one of the reverse direction."""
        if not self.run.bidirectional:
            return output[:, -1]
        return torch.cat([output[:, -1, : self.run.hidden], output[:, 0, self.run.hidden :]], -1)

    def configure_optimizers(self) -> Any:
        run = self.run
        kind = {"momentum": "SGD"}.get(run.optimizer, run.optimizer)
        options = {"momentum": 0.9} if run.optimizer == "momentum" else {}
        optimizer = getattr(torch.optim, kind)(self.parameters(), lr=run.lr, **options)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate(self, step: int) -> float:
        rise = min(1.0, (step + 1) / self.run.warm_up) if self.run.warm_up else 1.0
        steps = self.trainer.max_steps
        fall = {
            "constant": 1.0,
            "cosine": 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))),
            "step": 0.3 ** (3 * step // steps),
        }[self.run.schedule]
        return rise * fall


def _recurrent(run: Run, width: int) -> nn.Module:
    if run.cell == "LSTM cells":
        return CellLoop(width, run.hidden)
    kind, _, nonlinearity = run.cell.partition("_")
    options = {"nonlinearity": nonlinearity.lower()} if nonlinearity else {}
    return getattr(nn, kind)(
        width, run.hidden, run.layers, batch_first=True, bidirectional=run.bidirectional, **options
    )


def train(
    run: Run,
    callbacks: list[pl.Callback],
    folder: Path,
    steps: int,
    epoch: int | None = None,
    made: list[RunModel] | None = None,
    **more: Any,
) -> RunModel:
    """Train in a real Trainer. ``model.losses`` holds the loss of every step.

    Args:
        epoch: steps of an epoch; None makes one of all.
        made: is given the model before it trains, for whoever wants it after an error.
        more: arguments of the Trainer.
    """
    torch.manual_seed(run.seed)
    model = RunModel(run)
    if made is not None:
        made.append(model)
    options: dict[str, Any] = {"precision": run.precision, **more}
    if epoch is not None:
        options |= {"limit_train_batches": epoch, "max_epochs": -1}
    if run.precision == "16-mixed":  # on a CPU the scaler has to be asked for, and oneDNN has no half-precision LSTM
        options |= {
            "precision": None,
            "plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))],
        }
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        gradient_clip_val=run.clip,
        callbacks=callbacks,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    with torch.backends.mkldnn.flags(enabled=run.precision != "16-mixed"):
        trainer.fit(model, DataLoader(Batches(run), batch_size=None))
    return model
