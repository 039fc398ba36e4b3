"""Short trainings of small networks under GradWatch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import Event, EventKind, GradWatch, load_run
from lightning_gradwatch.runlog.summary import LayerSummary, summarise
from tests.models import trainer

Loss = Callable[[nn.Module, Sequence[Tensor]], Tensor]


class Plain(pl.LightningModule):
    """``net``, trained on ``loss(net, batch)``."""

    def __init__(self, net: nn.Module, loss: Loss, optimizer: str, lr: float) -> None:
        super().__init__()
        self.net, self._loss, self._optimizer, self._lr = net, loss, optimizer, lr
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(self.net, batch)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        return getattr(torch.optim, self._optimizer)(self.parameters(), lr=self._lr)


@dataclass(frozen=True)
class Told:
    """What was said of one training."""

    watch: GradWatch
    losses: list[float]
    layers: list[LayerSummary]

    def begun(self, kind: EventKind) -> list[Event]:
        """The events of a kind that begin an episode."""
        return [event for event in self.watch.events if event.kind == kind and event.action is None]

    def verdicts(self) -> list[str]:
        return [str(layer.verdict) for layer in self.layers]

    def loss(self) -> float:
        """The mean over the last ten steps."""
        return sum(self.losses[-10:]) / 10


def fit(
    folder: Any,
    net: nn.Module,
    loss: Loss,
    data: Sequence[Tensor],
    *,
    steps=24,
    every=3,
    lr=5e-3,
    optimizer="Adam",
    batch=16,
    beside: Sequence[pl.Callback] = (),
    **options,
) -> Told:
    """Train ``net``, with other callbacks ``beside``; the verdicts are those of the run log."""
    model = Plain(net, loss, optimizer, lr)
    watch = GradWatch(every_n_steps=every, dirpath=folder / "run", summary=False)
    watch.raise_own_errors = True
    trainer(folder, [watch, *beside], max_steps=steps, max_epochs=-1, **options).fit(
        model, DataLoader(TensorDataset(*data), batch)
    )
    run = load_run(watch.run_dir)
    return Told(watch, model.losses, summarise(run.profile_records, run.event_records))
