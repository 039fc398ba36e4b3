"""Gradients of hidden states that are not finite while those of all weights are, and a spread that is innocent of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import EventKind, GradWatch, load_run
from lightning_gradwatch.runlog.summary import Verdict, summarise
from tests.integration.recurrences import HIDDEN, WIDTH, ByHand, Run, series, zeros
from tests.models import trainer


def fit(net: nn.Module, run: Run, tmp_path: Path, steps: int = 4, batch: int = 8) -> GradWatch:
    torch.manual_seed(0)
    watch = GradWatch(dirpath=tmp_path / "run", every_n_steps=1, summary=False)
    trainer(tmp_path, [watch], max_steps=steps).fit(ByHand(net, run), series(batch=batch))
    return watch


def off(rnn: nn.RNN) -> nn.RNN:
    """A recurrence whose relus are all off: nothing passes them, on the way back neither."""
    nn.init.constant_(rnn.bias_ih_l0, -50.0)
    return rnn


class OffCell(nn.Module):
    """h ← relu(W x + U h − 50)."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.relu(self.x(x) + self.h(h) - 50)


def by_cell(net: nn.ModuleList, x: Tensor) -> Tensor:
    h = zeros(x)
    for t in range(x.shape[1]):
        h = net[0](x[:, t], h)
    return (h / (h.square().sum(-1, keepdim=True).sqrt() + 1e-6)).square().mean() + net[1](x[:, 0]).square().mean()


def normed(net: nn.ModuleList, x: Tensor) -> Tensor:
    """The output divided by its norm, whose slope at 0 is infinite; a second part of the model learns on."""
    output = net[0](x)[0]
    by = output.square().sum(-1, keepdim=True).sqrt() + 1e-6
    return (output / by).square().mean() + net[1](x[:, 0]).square().mean()


WAYS = {
    "a relu recurrence": (lambda: off(nn.RNN(WIDTH, HIDDEN, batch_first=True, nonlinearity="relu")), normed),
    "in both directions": (
        lambda: off(off_reverse(nn.RNN(WIDTH, HIDDEN, batch_first=True, nonlinearity="relu", bidirectional=True))),
        normed,
    ),
    "a cell of one's own": (OffCell, by_cell),
}


def off_reverse(rnn: nn.RNN) -> nn.RNN:
    nn.init.constant_(rnn.bias_ih_l0_reverse, -50.0)
    return rnn


@pytest.mark.parametrize("way", WAYS)
def test_nan_that_reaches_no_weight_is_told_once(way: str, tmp_path: Path) -> None:
    """The verdict "not finite" has an event that says where it came from, and that no weight is spoilt."""
    make, run = WAYS[way]
    net = nn.ModuleList([make(), nn.Linear(WIDTH, 1)])
    watch = fit(net, run, tmp_path)
    (event,) = [event for event in watch.events if event.kind.startswith("NONFINITE")]
    assert event.kind == EventKind.NONFINITE_HIDDEN_GRADIENT
    assert (event.module, event.step) == ("net.0", 1 if way.startswith("a cell") else 0)
    assert "sqrt" in event.message
    assert event.message.endswith("The gradients of the weights are finite all the same, so it spoils none.")
    log = load_run(tmp_path / "run")
    layer = summarise(log.profile_records, log.event_records)[0]
    assert layer.verdict is Verdict.NOT_FINITE
    assert "First came NONFINITE_HIDDEN_GRADIENT" in layer.sentence
    assert all(weight.isfinite().all() for weight in net.parameters())


def test_finite_gradients_have_no_such_event(tmp_path: Path) -> None:
    """With the small number under the root, as the remedy says, nothing is told of it."""

    def run(net: nn.ModuleList, x: Tensor) -> Tensor:
        output = net[0](x)[0]
        return (output / (output.square().sum(-1, keepdim=True) + 1e-12).sqrt()).square().mean() + net[1](
            x[:, 0]
        ).mean()

    net = nn.ModuleList([WAYS["a relu recurrence"][0](), nn.Linear(WIDTH, 1)])
    assert not [event for event in fit(net, run, tmp_path).events if event.kind.startswith("NONFINITE")]


@pytest.mark.parametrize("spread", ["std", "var"])
@pytest.mark.parametrize("keepdim", [True, False])
def test_a_spread_of_several_values_is_no_suspect(spread: str, keepdim: bool, tmp_path: Path) -> None:
    """Its slope at equal values is 0; the division by it is what makes the NaN."""

    def run(net: nn.Module, x: Tensor) -> Tensor:
        last = net(x)[0][:, -1] * 0
        by = getattr(last, spread)(-1, keepdim=keepdim)
        return (last.T / by if not keepdim else last / by).square().mean()

    watch = fit(nn.GRU(WIDTH, HIDDEN, batch_first=True), run, tmp_path, steps=1)
    (event,) = [event for event in watch.events if event.kind.startswith("NONFINITE")]
    assert "a division" in event.message
    assert spread not in event.message


@pytest.mark.parametrize("spread", ["std", "var"])
def test_one_of_a_single_value_is(spread: str, tmp_path: Path) -> None:
    """Over a batch of one sequence."""
    watch = fit(
        nn.GRU(WIDTH, HIDDEN, batch_first=True),
        lambda net, x: getattr(net(x)[0][:, -1], spread)(0).mean(),
        tmp_path,
        1,
        batch=1,
    )
    (event,) = [event for event in watch.events if event.kind.startswith("NONFINITE")]
    assert math.isnan(event.value)
    assert f"{spread}, which is NaN of a single value" in event.message
