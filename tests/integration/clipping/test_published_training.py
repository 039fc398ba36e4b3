"""Real training with the originals, and with the policies that reproduce them: the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from zclip.zclip_lightning_callback import ZClipLightningCallback

from lightning_gradwatch import AGC, AdaGC, AdaptiveClip, AutoClip, ZClip
from tests.models import TinyLanguageModel, sentences, trainer
from tests.unit.clip.policies.tensors import timm_agc
from tests.unit.clip.policies.test_tensors_as_published import StatedAdaGC


class Published(pl.Callback):
    """Calls an original where its users would: after the backward pass, before the step."""

    def __init__(self, act: Callable[[pl.LightningModule], object]) -> None:
        self.act = act

    def on_before_optimizer_step(self, trainer: Any, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.act(pl_module)


def weights_after(tmp_path: Any, callback: pl.Callback, cell: str = "LSTM") -> list[torch.Tensor]:
    """Of 80 steps at a rate at which the gradient's norm is anything but constant."""
    torch.manual_seed(0)
    model = TinyLanguageModel(cell, optimizer="SGD", lr=3.0)
    trainer(tmp_path, [callback], max_steps=80, max_epochs=-1).fit(model, sentences(count=64))
    return [p.detach().clone() for p in model.parameters()]


def assert_same(tmp_path: Any, published: pl.Callback, ours: AdaptiveClip, *, exactly: bool = False) -> None:
    bare = weights_after(tmp_path, pl.Callback())
    theirs, own = weights_after(tmp_path, published), weights_after(tmp_path, ours)
    assert not all(torch.allclose(a, b, rtol=1e-2) for a, b in zip(theirs, bare, strict=True)), "nothing was clipped"
    for a, b in zip(theirs, own, strict=True):
        assert torch.equal(a, b) if exactly else torch.allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("adaptive_scaling", {"mode": "zscore", "clip_option": "adaptive_scaling"}),
        ("mean", {"mode": "zscore", "clip_option": "mean"}),
        ("percentile", {"mode": "percentile"}),
    ],
)
@pytest.mark.parametrize("max_norm", [1.0, None])
def test_zclip_trains_as_the_packages_callback(tmp_path, mode, options, max_norm) -> None:
    """Its Lightning callback and ours, in each of the three modes."""
    published = ZClipLightningCallback(**options, max_grad_norm=max_norm, z_thresh=1.0)
    ours = AdaptiveClip(ZClip(mode, max_norm=max_norm, z_threshold=1.0, as_published=True))
    assert_same(tmp_path, published, ours)


def test_autoclip_trains_as_numpys_percentile(tmp_path) -> None:
    """Its stated rule: append the norm, take numpy's percentile of all, clip_grad_norm_."""
    norms: list[float] = []

    def act(module: nn.Module) -> None:
        norms.append(float(nn.utils.clip_grad_norm_(module.parameters(), float("inf"))))
        nn.utils.clip_grad_norm_(module.parameters(), float(np.percentile(norms, 10)))

    assert_same(tmp_path, Published(act), AdaptiveClip(AutoClip(as_published=True)))


def test_agc_trains_as_timms(tmp_path) -> None:
    """timm's own function, to the bit."""
    timm = timm_agc()
    published = Published(lambda module: timm.adaptive_clip_grad(module.parameters()))
    assert_same(tmp_path, published, AdaptiveClip(AGC(as_published=True)), exactly=True)


def test_adagc_trains_as_its_algorithm(tmp_path) -> None:
    """Algorithm 1, stated in plain numbers."""
    stated = StatedAdaGC(warmup=20)

    def act(module: nn.Module) -> None:
        found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        for name, h in stated.coefficients(
            {name: math.sqrt(float(g.double().square().sum())) for name, g in found.items()}
        ).items():
            found[name].mul_(h)

    assert_same(tmp_path, Published(act), AdaptiveClip(AdaGC(warmup_steps=20, as_published=True)))
