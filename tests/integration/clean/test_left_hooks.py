"""Where an earlier callback's own failure keeps ours from being told that a fit is over: what is left does nothing, and goes."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.data import DataLoader

from lightning_gradwatch import AdaptiveClip, GradWatch, tap, tap_scan
from lightning_gradwatch.recurrent.capture import scan_taps
from lightning_gradwatch.recurrent.capture.taps import _listeners
from tests.models import trainer

PLACES = ("training_step", "on_after_backward", "on_before_zero_grad", "on_train_batch_end", "on_train_epoch_start")


class Broken(pl.Callback):
    """Breaks the fit off at a place, and then fails itself."""

    def __init__(self, at: str, error: type[BaseException] = RuntimeError) -> None:
        self.error = error
        if at != "training_step":
            setattr(self, at, self.fail)

    def fail(self, *_: Any, **__: Any) -> None:
        raise self.error("broken off")

    def on_exception(self, *_: Any) -> None:
        raise OSError("my own")


class OwnForward(nn.LSTM):
    """A subclass whose forward is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0] * 2.0


class OwnCell(nn.Module):
    """A cell that is found by watching a step."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x + self.mix(h))


class Model(pl.LightningModule):
    """One recurrence of each kind of hook: fused with dropout, a subclass, a cell of torch's, a cell of its own, a tap, a scan."""

    def __init__(self, fails: bool, *, own: bool = True) -> None:
        super().__init__()
        self.fused = nn.LSTM(3, 4, 2, dropout=0.5, batch_first=True)
        self.own = OwnForward(4, 4, batch_first=True) if own else nn.LSTM(4, 4, batch_first=True)
        self.cell, self.mine, self.fails = nn.GRUCell(4, 4), OwnCell(), fails

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(self.fused(x)[0])
        x = x[0] if isinstance(x, tuple) else x
        h = g = torch.zeros(len(x), 4)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            g = tap(self.mine(h, g), name="marked")
        scanned = tap_scan(x.cumsum(1), 1.0, inputs=x, name="scanned")
        return 50.0 * g.square().sum() + scanned.square().sum()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self(batch)
        if self.fails and batch_idx == 1:
            raise RuntimeError("broken off")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def hooks(model: nn.Module) -> int:
    """Forward hooks on a model and everywhere, stand-ins for a forward, and listeners to taps and scans."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs")
    own = sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
    replaced = sum("forward" in vars(module) for module in model.modules())
    return own + replaced + len(torch_module._global_forward_hooks) + len(_listeners) + len(scan_taps._listeners)


def broken_fit(folder: Any, at: str, error: type[BaseException], *ours: pl.Callback, own: bool = True) -> Model:
    """A model whose fit was broken off without a word to our callbacks."""
    model = Model(at == "training_step", own=own)
    with pytest.raises(OSError, match="my own"):
        trainer(folder, [Broken(at, error), *ours]).fit(model, DataLoader(torch.randn(8, 5, 3), 2))
    return model


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Of one forward and backward in training mode."""
    torch.manual_seed(3)
    model.train().zero_grad()
    loss = model(x)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("kind", ["watch", "clip", "through time", "both"])
def test_hooks_that_are_left_do_nothing_and_go(tmp_path, at, kind) -> None:
    """The next forward gives what a bare model gives, to the bit, leaves no hook behind, and changes nothing of what was found."""
    watch, clip = GradWatch(dirpath=tmp_path / "run", every_n_steps=1), AdaptiveClip()
    holding = AdaptiveClip(clip_through_time=1e-3)
    ours = {"watch": [watch], "clip": [clip], "through time": [holding], "both": [holding, watch]}[kind]
    model = broken_fit(tmp_path, at, RuntimeError, *ours, own="through time" != kind != "both")
    bare = Model(False, own=not isinstance(model.own, nn.LSTM) or isinstance(model.own, OwnForward))
    bare.load_state_dict(model.state_dict())
    profiles = (
        (tmp_path / "run" / "profiles.jsonl").read_bytes() if (tmp_path / "run" / "profiles.jsonl").exists() else b""
    )
    x = torch.randn(2, 5, 3)
    loss, found = gradients(model, x)
    assert hooks(model) == 0
    expected, wanted = gradients(bare, x)
    assert torch.equal(loss, expected)
    assert all(map(torch.equal, found, wanted))
    if profiles:
        assert (tmp_path / "run" / "profiles.jsonl").read_bytes() == profiles
    assert watch._fit is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    "ask",
    [lambda watch: watch.events, copy.deepcopy, pickle.dumps, lambda watch: watch.state_dict()],
    ids=["events", "deepcopy", "pickle", "state_dict"],
)
def test_whatever_of_ours_runs_takes_them_off(tmp_path, error, ask) -> None:
    """Also where the model is never called again."""
    watch = GradWatch(dirpath=tmp_path / "run")
    model = broken_fit(tmp_path, "on_after_backward", error, watch)
    assert hooks(model) > 0
    ask(watch)
    assert hooks(model) == 0


def test_a_model_with_left_hooks_is_copied_and_saved(tmp_path) -> None:
    """What is left goes along, and does nothing in the copy; the copy's forward is the model's."""
    watch = GradWatch(dirpath=tmp_path / "run")
    model = broken_fit(tmp_path, "on_after_backward", RuntimeError, watch)
    model.trainer = None
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    x = torch.randn(2, 5, 3)
    copies = [copy.deepcopy(model), torch.load(file, weights_only=False)]
    expected, _ = gradients(model, x)
    for one in copies:
        assert torch.equal(gradients(one, x)[0], expected)


def test_the_next_fit_starts_afresh(tmp_path) -> None:
    """With the same callback, and with another one, on the same model."""
    watch = GradWatch(dirpath=tmp_path / "run", every_n_steps=1)
    model = broken_fit(tmp_path, "training_step", RuntimeError, watch)
    model.fails = False
    for callback in (GradWatch(dirpath=tmp_path / "other", every_n_steps=1), watch):
        trainer(tmp_path, [callback]).fit(model, DataLoader(torch.randn(8, 5, 3), 2))
        assert hooks(model) == 0
        assert {place[0] for place in callback.lagged} >= {"fused", "own", "cell"}
