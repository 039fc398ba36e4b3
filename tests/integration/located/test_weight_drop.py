"""Recurrent weights that a weight drop which does not work has emptied, or left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import EventKind, GradWatch, load_run
from lightning_gradwatch.runlog.summary import Verdict, summarise
from tests.models import trainer

KINDS = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}


class WeightDrop(nn.Module):
    """As published with AWD-LSTM, and as fastai has it: the raw weight is kept aside, a dropped one is set before each forward."""

    def __init__(self, rnn: nn.RNNBase, dropped: float) -> None:
        super().__init__()
        self.module, self.dropped = rnn, dropped
        self.raw = rnn._parameters.pop("weight_hh_l0")

    def forward(self, x: Tensor) -> Any:
        self.module.weight_hh_l0 = functional.dropout(self.raw, self.dropped, self.training)  # type: ignore[assignment]
        return self.module(x)


class Dropped(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return functional.dropout(weight, 0.5)


class Model(pl.LightningModule):
    def __init__(self, rnn: nn.Module, prepare: Callable[[nn.Module], Any] = lambda rnn: None) -> None:
        super().__init__()
        self.rnn, self.prepare = rnn, prepare

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.prepare(self.rnn)
        return self.rnn(batch[0])[0][:, -1].square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fitted(model: Model, folder: Any) -> GradWatch:
    watch = GradWatch(every_n_steps=1, dirpath=folder / "run")
    trainer(folder, [watch], max_steps=4).fit(model, DataLoader(TensorDataset(torch.randn(16, 9, 3)), 4))
    return watch


def told(watch: GradWatch, kind: EventKind) -> list[Any]:
    return [event for event in watch.events if event.kind == kind]


def emptied(rnn: nn.Module) -> None:
    rnn.weight_hh_l0.data.zero_()  # type: ignore[union-attr, operator]


EMPTY: dict[str, Callable[[nn.RNNBase], Model]] = {
    "everything is dropped": lambda rnn: Model(WeightDrop(rnn, 1.0)),
    "set to zeros before each forward": lambda rnn: Model(rnn, emptied),
    "masked by a parametrization": lambda rnn: Model(
        parametrize.register_parametrization(rnn, "weight_hh_l0", Zeros())
    ),
}


class Zeros(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0


@pytest.mark.parametrize("how", EMPTY)
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_recurrent_weight_is_told(kind: str, how: str, tmp_path) -> None:
    """A recurrent weight of zeros at step after step is told once, with its name and with what flows all the same."""
    watch = fitted(EMPTY[how](KINDS[kind](3, 5, batch_first=True)), tmp_path)
    (event,) = told(watch, EventKind.NO_GRADIENT_THROUGH_TIME)
    assert "weight_hh_l0 is all zeros" in event.message
    assert event.parameter.endswith("weight_hh_l0")
    assert event.step == 1
    assert {"RNN": "No gradient flows through time in", "LSTM": "cell state alone", "GRU": "update gate"}[
        kind
    ] in event.message
    run = load_run(watch.run_dir)
    (layer,) = summarise(run.profile_records, run.event_records)
    (curve,) = [metric.compute() for metric in watch.lagged.values()]
    assert bool((curve[1:] > 1e-29).any()) == (kind != "RNN")
    assert (layer.verdict is Verdict.NO_GRADIENT_THROUGH_TIME) == (kind == "RNN")


def test_zeros_to_begin_with_are_no_fault(tmp_path) -> None:
    """A recurrent weight that is initialised with zeros, and learns, is left alone."""
    rnn = nn.LSTM(3, 5, batch_first=True)
    nn.init.zeros_(rnn.weight_hh_l0)
    assert told(fitted(Model(rnn), tmp_path), EventKind.NO_GRADIENT_THROUGH_TIME) == []


def taken_away(rnn: nn.Module) -> None:
    rnn._parameters.pop("weight_hh_l0", None)


def kept_aside(rnn: nn.Module) -> None:
    if "weight_hh_l0" in rnn._parameters:
        rnn.raw = rnn._parameters.pop("weight_hh_l0")


def copied(rnn: nn.Module) -> None:
    if "weight_hh_l0" in rnn._parameters:
        rnn.raw = nn.Parameter(rnn._parameters.pop("weight_hh_l0").detach().clone())


LEFT = {taken_away: "no parameter of the model", kept_aside: "has no effect", copied: "no parameter of the model"}


@pytest.mark.parametrize("prepare", LEFT)
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_was_left_behind_is_told(kind: str, prepare: Callable[[nn.Module], None], tmp_path) -> None:
    """Where the module loses its weight and goes on with an old tensor, that is told, and whether the model still has that one."""
    watch = fitted(Model(KINDS[kind](3, 5, batch_first=True), prepare), tmp_path)
    (event,) = told(watch, EventKind.NOT_OBSERVED)
    assert "has no weight_hh_l0 any more" in event.message
    assert LEFT[prepare] in event.message


WORKING: dict[str, Callable[[nn.RNNBase], nn.Module]] = {
    "set by setattr": lambda rnn: WeightDrop(rnn, 0.5),
    "a parametrization": lambda rnn: parametrize.register_parametrization(rnn, "weight_hh_l0", Dropped()),
    "spectral_norm": lambda rnn: nn.utils.parametrizations.spectral_norm(rnn, "weight_hh_l0"),
    "weight_norm of old": lambda rnn: nn.utils.weight_norm(rnn, "weight_hh_l0"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", WORKING)
@pytest.mark.parametrize("kind", KINDS)
def test_one_that_works_is_left_alone(kind: str, how: str, tmp_path) -> None:
    """A weight drop or norm that PyTorch takes up is measured exactly and told nothing: these are the remedies too."""
    watch = fitted(Model(WORKING[how](KINDS[kind](3, 5, batch_first=True))), tmp_path)
    assert told(watch, EventKind.NO_GRADIENT_THROUGH_TIME) == told(watch, EventKind.NOT_OBSERVED) == []
