"""What is advised where clipping limits the steps of a run that goes on exploding through time, and that it helps."""

from __future__ import annotations

import re
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from benchmarks.clipping.problems import adding
from lightning_gradwatch import AdaptiveClip, EventKind, GradWatch, Norm, ZClip
from tests.integration.clipping.test_clip_audit import fit


class Exploding(pl.LightningModule):
    """The adding problem with recurrent weights whose radius is over 1: without clipping it is lost in a few steps."""

    def __init__(self, radius: float, rate: float, batch: int) -> None:
        super().__init__()
        self.rnn, self.head, self.rate, self.losses = nn.RNN(2, 32), nn.Linear(32, 1), rate, list[float]()
        nn.init.orthogonal_(self.rnn.weight_hh_l0, gain=radius)
        self.batch = batch

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = adding(self.batch, 40)
        loss = nn.functional.mse_loss(self.head(self.rnn(x)[0][-1])[:, 0], y)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.rate)


@pytest.mark.parametrize(("radius", "rate", "batch"), [(2.0, 0.1, 16), (2.0, 0.3, 8), (1.8, 0.1, 16)])
def test_a_run_that_goes_on_exploding_is_held_by_the_norm_that_is_named(
    tmp_path, radius: float, rate: float, batch: int
) -> None:
    """The run that is not clipped is lost; the one that follows the advice is not. A fixed bound is not to be raised."""

    def train(**options: Any) -> tuple[GradWatch, float]:
        torch.manual_seed(3)
        module = Exploding(radius, rate, batch)
        watch = fit(tmp_path, module, max_steps=80, max_epochs=-1, **options)
        return watch, sum(module.losses[-10:]) / 10

    def advice(watch: GradWatch) -> str:
        (remedy,) = [event.remedy for event in watch.events if event.kind == EventKind.CLIPPING_LIMITS_STEPS]
        return remedy

    bare = train()[1]
    bounded, _ = train(gradient_clip_val=0.1)
    assert any(event.kind == EventKind.EXPLODING_HIDDEN_GRADIENT for event in bounded.events)
    assert "Leave the bound where it is" in advice(bounded)
    adaptive, _ = train(callbacks=[AdaptiveClip(policy=ZClip(max_norm=0.3))])
    (bound,) = re.findall(r"AdaptiveClip\(policy=Norm\(max_norm=([\d.e+-]+)\)\)", advice(adaptive))
    _, held = train(callbacks=[AdaptiveClip(policy=Norm(float(bound)))])
    assert not bare < 100
    assert held < 2.0


def test_a_training_that_was_not_held_is_not_told_that_limiting_is_what_it_needs(tmp_path) -> None:
    """It diverged although most of its steps were clipped."""
    torch.manual_seed(3)
    watch = fit(tmp_path, Exploding(2.0, 0.3, 8), max_steps=80, max_epochs=-1, gradient_clip_val=300.0)
    assert any(event.kind == EventKind.DIVERGED for event in watch.events)
    assert not any("limiting its steps may be what it needs" in event.remedy for event in watch.events)
