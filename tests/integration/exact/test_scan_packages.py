"""Scans of real packages, marked as their users would, against the same model run one timestep after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import EventKind, GradWatch, load_run, tap_scan
from tests.asserts import assert_identical
from tests.models import trainer
from tests.oracles import size
from tests.scan_models import Sequential

EXACT = 1e-10
TIME, WIDTH = 33, 6
HEARD: list[Sequential] = []
"""The scans of the last forward that ran one timestep after the other."""


def one_by_one(a: Tensor, b: Tensor) -> Tensor:
    HEARD.append(Sequential())
    return HEARD[-1](a, b)


def mamba(watched: bool) -> nn.Module:
    """mambapy, two layers; the block's own method is overridden."""
    package = pytest.importorskip("mambapy.mamba")

    class Watched(package.MambaBlock):
        def selective_scan(self, x, delta, A, B, C, D):  # noqa: N803
            y = super().selective_scan(x, delta, A, B, C, D)
            with torch.no_grad():
                decay = torch.exp(delta[..., None] * A)
            return tap_scan(y, decay, readout=C, name=self.name)

    class Looped(package.MambaBlock):
        def selective_scan(self, x, delta, A, B, C, D):  # noqa: N803
            h = one_by_one(torch.exp(delta[..., None] * A), delta[..., None] * B[:, :, None] * x[..., None])
            return (h @ C[..., None])[..., 0] + D * x

    net = package.Mamba(package.MambaConfig(d_model=WIDTH, n_layers=2, d_state=4))
    for number, layer in enumerate(net.layers):
        layer.mixer.__class__, layer.mixer.name = Watched if watched else Looped, f"layer {number}"
    return net


def mingru(watched: bool) -> nn.Module:
    """minGRU-pytorch, whose output is its state; the decay is one minus its gate."""
    package = pytest.importorskip("minGRU_pytorch.minGRU")

    class Watched(package.minGRU):
        def forward(self, x):
            with torch.no_grad():
                gate = self.to_hidden_and_gate(x).chunk(2, dim=-1)[1]
            return tap_scan(super().forward(x), torch.sigmoid(-gate), name="gru")

    class Looped(package.minGRU):
        def forward(self, x):
            value, gate = self.to_hidden_and_gate(x).chunk(2, dim=-1)
            return one_by_one(torch.sigmoid(-gate), torch.sigmoid(gate) * package.g(value))

    return (Watched if watched else Looped)(WIDTH)


def minlstm(watched: bool) -> nn.Module:
    """minGRU-pytorch's minLSTM, by its scan in log space, marked with what goes in."""
    package = pytest.importorskip("minGRU_pytorch.minLSTM")
    scan = package.heinsen_associative_scan_log

    class Own(package.minLSTM):
        def forward(self, x):
            value, forget, take = self.to_hidden_and_f_i_gate(x).chunk(3, dim=-1)
            ratio = nn.functional.softplus(-forget) - nn.functional.softplus(-take)
            log_f, log_b = -nn.functional.softplus(ratio), -nn.functional.softplus(-ratio) + package.log_g(value)
            if not watched:
                return one_by_one(log_f.exp(), log_b.exp())
            return tap_scan(scan(log_f, log_b), log_f.exp(), inputs=log_b.exp(), name="lstm")

    return Own(WIDTH)


def accelerated(watched: bool) -> nn.Module:
    """accelerated-scan's reference, time last."""
    package = pytest.importorskip("accelerated_scan.ref")

    class Gates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates, self.tokens = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.sigmoid(self.gates(x)), self.tokens(x)
            if not watched:
                return one_by_one(a, b)
            a, b = a.mT.contiguous(), b.mT.contiguous()
            return tap_scan(package.scan(a, b), a, inputs=b, name="gates", dim=2).mT

    return Gates()


MADE: dict[str, Callable[[bool], nn.Module]] = {
    "mambapy": mamba,
    "minGRU-pytorch, minGRU": mingru,
    "minGRU-pytorch, minLSTM": minlstm,
    "accelerated-scan": accelerated,
}


class Model(pl.LightningModule):
    def __init__(self, net: nn.Module, everywhere: bool) -> None:
        super().__init__()
        self.net, self.head, self.everywhere = net, nn.Linear(WIDTH, 1), everywhere

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        said = self.head(self.net(x))
        return nn.functional.mse_loss(
            said if self.everywhere else said[:, -1:], y.expand(-1, TIME if self.everywhere else 1, 1)
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


def data() -> DataLoader[Any]:
    source = torch.Generator().manual_seed(0)
    x, y = (torch.randn(32, *rest, generator=source, dtype=torch.float64) for rest in ((TIME, WIDTH), (1, 1)))
    return DataLoader(TensorDataset(x, y), 8)


def train(model: pl.LightningModule, path: Path, watched: bool) -> GradWatch | None:
    watch = GradWatch(every_n_steps=2, max_sequences=None, keep_sequences=True, anchors=1, dirpath=path / "run")
    trainer(path, [watch] if watched else [], max_steps=4, precision="64-true").fit(model, data())
    return watch if watched else None


def pair(name: str, everywhere: bool) -> tuple[Model, Model]:
    """The model with its scan marked, and the same one timestep after the other."""
    torch.manual_seed(2)
    marked = Model(MADE[name](True), everywhere).double()
    looped = Model(MADE[name](False), everywhere).double()
    looped.load_state_dict(marked.state_dict())
    return marked, looped


@pytest.mark.parametrize("everywhere", [False, True], ids=["last loss", "every loss"])
@pytest.mark.parametrize("name", MADE)
def test_a_package_s_scan_is_measured_as_autograd_has_it(name: str, everywhere: bool, tmp_path: Path) -> None:
    """Totals of every sequence and the lagged curve of every layer, to 1e-10."""
    marked, looped = pair(name, everywhere)
    watch = train(marked, tmp_path, watched=True)
    assert watch is not None
    assert not {event.kind for event in watch.events} & {EventKind.NOT_OBSERVED, EventKind.SCAN_MISMATCH}
    HEARD.clear()
    loss = looped.training_step(next(iter(data())), 0)
    records = [record for record in load_run(watch.run_dir).profile_records if record["step"] == 0]
    assert len(records) == len(HEARD) == (2 if name == "mambapy" else 1)
    for record, scan in zip(records, HEARD, strict=True):
        assert record["exact"], record["inexact_reason"]
        gradients = torch.autograd.grad(loss, scan.states, retain_graph=True)
        total = torch.stack([size(g) for g in gradients], 1).numpy()
        assert np.abs(np.array(record["total_by_sequence"]) - total).max() <= EXACT * total.max()
        sent = torch.autograd.grad(loss, scan.stacked, retain_graph=True)[0][:, -1]
        back = torch.autograd.grad(scan.states[-1], scan.states, sent, retain_graph=True)
        lagged = torch.stack([size(g) for g in reversed(back)], 1)
        by_lag = np.median((lagged / lagged[:, :1]).numpy(), axis=0)
        assert np.abs(np.array(record["lagged"]) - by_lag).max() <= EXACT
        assert record["channels"] == int(np.prod(scan.stacked.shape[2:]))


@pytest.mark.parametrize("name", MADE)
def test_a_package_s_training_is_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    """Weights after four steps, with GradWatch and without."""
    bare, _ = pair(name, everywhere=True)
    watched = copy.deepcopy(bare)
    train(bare, tmp_path / "bare", watched=False)
    train(watched, tmp_path / "watched", watched=True)
    assert_identical(bare.state_dict(), watched.state_dict())


def test_what_a_package_computes_unmarked_is_told(tmp_path: Path) -> None:
    """mambapy's own blocks, as they are: one note that names the first and counts the others."""
    package = pytest.importorskip("mambapy.mamba")
    model = Model(package.Mamba(package.MambaConfig(d_model=WIDTH, n_layers=3)), everywhere=False).double()
    watch = train(model, tmp_path, watched=True)
    assert watch is not None
    (event,) = watch.events
    assert event.kind == EventKind.NOT_OBSERVED
    assert event.module == "net.layers.0.mixer"
    assert "(MambaBlock) and 2 more" in event.message
