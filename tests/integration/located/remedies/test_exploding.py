"""What is advised against growth through time, an overflowing scaler, clipping that became a habit and skipped steps, tried on its case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import AdaptiveClip, EventKind, GradWatch, load_run
from lightning_gradwatch.clip import Norm
from lightning_gradwatch.events import Severity
from tests.models import trainer
from tests.versions import cpu_scaler

EXPLODING = EventKind.EXPLODING_HIDDEN_GRADIENT


class Regression(pl.LightningModule):
    """The sum over the first inputs from the last state; ``spoilt``: batches whose input is infinite."""

    def __init__(self, rnn: nn.RNNBase, lr: float = 1e-3, spoilt: tuple[int, ...] = (), size: float = 1.0) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(rnn.hidden_size, 1)
        self.lr, self.spoilt, self.size = lr, spoilt, size

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        seen = x / 0 if batch_idx in self.spoilt else x
        return (self.head(self.rnn(seen)[0][:, -1])[:, 0] - x.sum((1, 2))).square().mean() * self.size

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)


def grown(kind: Any = nn.RNN, **options: Any) -> nn.RNNBase:
    """Every state is passed on one and a half times as large."""
    torch.manual_seed(0)
    rnn = kind(2, 8, batch_first=True, **({"nonlinearity": "relu"} if kind is nn.RNN else {}), **options)
    if kind is nn.RNN:
        with torch.no_grad():
            rnn.weight_hh_l0.copy_(1.5 * torch.eye(8))
    return rnn


def orthogonal() -> nn.RNNBase:
    rnn = grown()
    nn.init.orthogonal_(rnn.weight_hh_l0)
    return rnn


def identity() -> nn.RNNBase:
    rnn = grown()
    nn.init.eye_(rnn.weight_hh_l0)
    return rnn


def events(model: Any, folder: Any, length: int = 30, steps: int = 12, clip: Any = None, **options: Any) -> list[Any]:
    torch.manual_seed(1)
    data = DataLoader(TensorDataset(0.05 * torch.randn(8 * steps, length, 2)), 8)
    watch = GradWatch(every_n_steps=1, dirpath=folder / "run", summary=False)
    callbacks = [watch, *([clip] if clip else [])]
    trainer(folder, callbacks, max_steps=steps, **options).fit(model, data)
    return [*watch.events, *(clip.events if clip else [])]


def kinds(found: list[Any]) -> set[EventKind]:
    return {event.kind for event in found}


REMEDIES: dict[str, tuple[Callable[[], nn.RNNBase], int]] = {
    "an orthogonal recurrent weight": (orthogonal, 30),
    "the identity": (identity, 30),
    "an LSTM": (lambda: grown(nn.LSTM), 30),
    "a GRU": (lambda: grown(nn.GRU), 30),
    "shorter sequences": (grown, 8),
}


def test_the_case_explodes(tmp_path) -> None:
    """The network on which the remedies are tried does have an exploding hidden-state gradient."""
    assert EXPLODING in kinds(events(Regression(grown(), lr=1e-9), tmp_path))


@pytest.mark.parametrize("remedy", REMEDIES)
def test_remedies_against_growth_through_time(remedy: str, tmp_path) -> None:
    """With a better start, a gated cell or shorter sequences nothing explodes any more."""
    make, length = REMEDIES[remedy]
    assert EXPLODING not in kinds(events(Regression(make(), lr=1e-9), tmp_path, length))


def test_clipping_holds_the_step_and_not_the_growth(tmp_path) -> None:
    """Under AdaptiveClip the exploding network trains on with finite weights; the growth itself stays, and stays told."""
    model, bare = (Regression(grown(), lr=1e-2) for _ in range(2))
    found = events(model, tmp_path / "clip", clip=AdaptiveClip(policy="norm", dirpath=tmp_path / "clipped"))
    events(bare, tmp_path / "bare")
    assert EXPLODING in kinds(found)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert not all(bool(p.isfinite().all()) and float(p.detach().abs().max()) < 100 for p in bare.parameters())


def scaled(initial: float) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", scaler=cpu_scaler(init_scale=initial))


def test_an_overflow_that_does_not_end_is_gone_in_bf16(tmp_path) -> None:
    """A gradient that leaves fp16 at every scale gives an alarm; in bf16-mixed, as advised, there is no overflow."""
    torch.manual_seed(0)
    make = lambda: Regression(nn.GRU(2, 8, batch_first=True), lr=1e-12, size=1e9)  # noqa: E731
    with torch.backends.mkldnn.flags(enabled=False):
        narrow = events(make(), tmp_path / "fp16", steps=30, plugins=[scaled(1024.0)])
        wide = events(make(), tmp_path / "bf16", steps=30, precision="bf16-mixed")
    overflows = [event for event in narrow if event.kind == EventKind.AMP_OVERFLOW]
    assert any(event.severity != Severity.INFO for event in overflows)
    assert EventKind.AMP_OVERFLOW not in kinds(wide)


def test_a_smaller_initial_scale_has_nothing_to_overflow(tmp_path) -> None:
    """The search for a scale, begun far too high, is a note; begun at a smaller one, as advised, there is none."""
    torch.manual_seed(0)
    with torch.backends.mkldnn.flags(enabled=False):
        found = [
            events(Regression(nn.GRU(2, 8, batch_first=True)), tmp_path / str(size), plugins=[scaled(size)])
            for size in (2.0**40, 2.0**8)
        ]
    assert [EventKind.AMP_OVERFLOW in kinds(one) for one in found] == [True, False]


def test_a_lower_rate_ends_habitual_clipping(tmp_path) -> None:
    """At a rate so high that the loss swings, most steps are clipped; at a lower one, as advised, none is."""
    clipped, told = [], []
    for number, lr in enumerate((2.0, 0.1)):
        torch.manual_seed(0)
        clip = AdaptiveClip(policy=Norm(3.0), dirpath=tmp_path / f"clip{number}")
        found = events(Regression(nn.GRU(2, 8, batch_first=True), lr=lr), tmp_path / str(number), steps=40, clip=clip)
        clipped.append(sum(r["clip_coefficient"] < 1 for r in load_run(tmp_path / f"clip{number}").step_records))
        told.append(EventKind.GRADIENT_CLIPPED in kinds(found))
    assert clipped[0] > 30
    assert clipped[1] == 0
    assert told == [True, False]


def test_skipped_steps_end_with_what_began_them(tmp_path) -> None:
    """The event before a skipped step names the batch at fault; without it in the data nothing is skipped."""
    torch.manual_seed(0)
    found = events(Regression(nn.GRU(2, 8, batch_first=True), spoilt=(3, 4)), tmp_path / "1", clip=AdaptiveClip())
    assert EventKind.STEP_SKIPPED in kinds(found)
    assert {event.batch_idx for event in found if event.kind == EventKind.NONFINITE_INPUT} == {3}
    mended = events(Regression(nn.GRU(2, 8, batch_first=True)), tmp_path / "2", clip=AdaptiveClip())
    assert kinds(mended).isdisjoint({EventKind.STEP_SKIPPED, EventKind.NONFINITE_INPUT})
