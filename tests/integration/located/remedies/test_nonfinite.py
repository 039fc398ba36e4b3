"""The remedy that an event gives, applied to what provoked it: the event is gone."""

from __future__ import annotations

import math

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import AdaptiveClip, EventKind, GradWatch
from tests.models import trainer


class Model(pl.LightningModule):
    """A recurrent net and a loss of one's choice."""

    def __init__(self, loss, *, net=None, rate=1e-3, optimizer=torch.optim.SGD):
        super().__init__()
        self.rnn, self.head = net or nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 1)
        self._loss, self._rate, self._optimizer = loss, rate, optimizer

    def training_step(self, batch, batch_idx):
        return self._loss(self, batch, batch_idx)

    def configure_optimizers(self):
        return self._optimizer(self.parameters(), self._rate)


def data(*, bad=None):
    """64 sequences of 9 timesteps with a target each; ``bad`` stands in target 41."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 9, 3, generator=generator), torch.randn(64, generator=generator)
    if bad is not None:
        y[41] = bad
    return TensorDataset(x, y)


def fit(tmp_path, loss, *callbacks, dataset=None, steps=4, **options) -> GradWatch:
    torch.manual_seed(0)
    watch = GradWatch(every_n_steps=10, dirpath=tmp_path / "run")
    module = Model(loss, **options)
    trainer(tmp_path, [watch, *callbacks], max_steps=steps).fit(module, DataLoader(dataset or data(), 16))
    return watch


def kinds(watch: GradWatch) -> set[EventKind]:
    return {event.kind for event in watch.events if event.severity != "info"}


def squared(m, b, i):
    return (m.head(m.rnn(b[0])[0][:, -1])[:, 0] - b[1]).square().mean()


def last(m, b):
    return m.rnn(b[0])[0][:, -1]


OUTSIDE = {
    "sqrt": (lambda h: h.square().sum(1).sqrt(), lambda h: (h.square().sum(1) + 1e-12).sqrt()),
    "log": (lambda h: (h * h.log()).nan_to_num().sum(1), lambda h: (h * h.clamp_min(1e-12).log()).sum(1)),
    "a power": (lambda h: h.abs().sum(1) ** 0.5, lambda h: (h.abs().sum(1) + 1e-12) ** 0.5),
    "where": (
        lambda h: torch.where(h > 0, 1 / h, h).sum(1),
        lambda h: torch.where(h > 0, 1 / torch.where(h > 0, h, 1), h).sum(1),
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_gradient_spoilt_between_loss_and_module_is_mended_at_that_operation(name, tmp_path):
    """It is said to come from outside, the operation is suspected, clipping is no remedy; with the remedy it is gone."""
    broken, mended = OUTSIDE[name]
    watch = fit(tmp_path / "a", lambda m, b, i: broken(last(m, b) - last(m, b)).mean())
    (event,) = [event for event in watch.events if event.kind == EventKind.NONFINITE_HIDDEN_GRADIENT]
    assert (event.step, event.timestep) == (0, 8)
    assert "from outside the recurrence" in event.message
    assert "nearer to the loss" not in event.message
    assert f"{name}, which" in event.message
    assert "Clipping cannot mend it" in event.remedy
    left = kinds(fit(tmp_path / "b", lambda m, b, i: mended(last(m, b) - last(m, b)).mean()))
    assert left <= {EventKind.ZERO_GRADIENT}  # what is made of a difference that is always 0 has none


@pytest.mark.parametrize(("bad", "at"), [(math.nan, 9), (math.inf, 9)])
def test_a_bad_target_is_named_and_left_out(bad, at, tmp_path):
    """The entry and its sequence; without it the event is gone."""
    watch = fit(tmp_path / "a", squared, dataset=data(bad=bad))
    (event,) = [event for event in watch.events if event.kind == EventKind.NONFINITE_LOSS]
    assert event.step == 2
    assert f"batch[1][{at}] is {bad} (sequence {at})" in event.message

    def masked(m, b, i):
        kept = b[1].isfinite()
        return (m.head(last(m, b))[:, 0] - b[1])[kept].square().mean()

    assert not kinds(fit(tmp_path / "b", masked, dataset=data(bad=bad)))


def test_an_infinite_ctc_loss_is_mended_by_its_own_option(tmp_path):
    """A target longer than its input is suspected; ``zero_infinity`` mends it."""

    def ctc(zero: bool):
        def loss(m, b, i):
            scores = m.rnn(b[0])[0].log_softmax(-1).transpose(0, 1)
            n = len(b[1])
            target = torch.ones(n, 9, dtype=torch.long)  # nine times the same letter needs 17 timesteps
            lengths = torch.full((n,), 9)
            return functional.ctc_loss(scores, target, lengths, lengths, zero_infinity=zero)

        return loss

    (event,) = fit(tmp_path / "a", ctc(False)).events
    assert event.kind == EventKind.NONFINITE_LOSS
    assert "ctc_loss" in event.message
    assert "zero_infinity=True" in event.remedy
    assert EventKind.NONFINITE_LOSS not in kinds(fit(tmp_path / "b", ctc(True)))


class Cell(nn.Module):
    def __init__(self, divide):
        super().__init__()
        self.w, self.divide = nn.Linear(8, 8, bias=False), divide

    def forward(self, x, h):
        return torch.tanh(x @ torch.ones(3, 8) + self.divide(self.w(h)))


CELLS = {
    "norm": (
        lambda a: a / a.square().sum(1, keepdim=True).sqrt(),
        lambda a: a / (a.square().sum(1, keepdim=True) + 1e-12).sqrt(),
    ),
    "division": (lambda a: a / a.abs().sum(1, keepdim=True), lambda a: a / (a.abs().sum(1, keepdim=True) + 1e-6)),
    "log": (lambda a: a * a.abs().log(), lambda a: a * a.abs().clamp_min(1e-12).log()),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_of_one_s_own_is_told_on_the_first_step(name, tmp_path):
    """With its own arithmetic as the place and no weight spoilt before; with the remedy it is gone."""

    def loop(m, b, i):
        h = torch.zeros(len(b[0]), 8)
        for t in range(9):
            h = m.rnn(b[0][:, t], h)
        return h.square().mean()

    broken, mended = CELLS[name]
    (event,) = fit(tmp_path / "a", loop, net=Cell(broken)).events
    assert (event.kind, event.step, event.timestep, event.parameter) == (EventKind.NONFINITE_STATE, 0, 0, None)
    assert "in the cell's own arithmetic" in event.message
    assert not {k for k in kinds(fit(tmp_path / "b", loop, net=Cell(mended))) if k.startswith("NONFINITE")}


def test_an_outlier_that_hits_the_head_is_told_with_its_batch_and_clipped(tmp_path):
    """The jump names the batch and the head's parameter; AdaptiveClip holds what follows."""

    def loss(m, b, i):
        y = torch.full_like(b[1], 1e6) if i == 30 else b[1]
        return (m.head(last(m, b))[:, 0] - y).square().mean()

    long = TensorDataset(torch.randn(640, 9, 3), torch.randn(640))
    watch = fit(tmp_path / "a", loss, dataset=long, steps=34, rate=1e-6)
    event = next(event for event in watch.events if event.kind == EventKind.EXPLODING_GRADIENT)
    assert (event.step, event.batch_idx) == (30, 30)
    assert "Look at batch 30" in event.remedy


@pytest.mark.parametrize(
    ("net", "rate", "optimizer"),
    [(nn.LSTM, 3.0, torch.optim.Adam), (nn.GRU, 3.0, torch.optim.Adam), (nn.RNN, 1.0, torch.optim.RMSprop)],
)
def test_a_training_that_diverges_is_told_and_a_lower_rate_mends_it(net, rate, optimizer, tmp_path):
    """Never healthy; ``check`` fails; with a hundredth of the rate or less the event is gone."""
    options = {"steps": 24, "optimizer": optimizer}
    watch = fit(tmp_path / "a", squared, net=net(3, 8, batch_first=True), rate=rate, **options)
    assert EventKind.DIVERGED in kinds(watch)
    assert "diverged" in watch._found.summary()[1]
    low = fit(tmp_path / "b", squared, net=net(3, 8, batch_first=True), rate=1e-3, **options)
    assert EventKind.DIVERGED not in kinds(low)


@pytest.mark.parametrize("net", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("rate", [3.0, 10.0])
def test_a_loss_that_ends_in_inf_after_a_divergence_has_that_for_its_cause(net, rate, tmp_path):
    """The learning rate is what helps, and not a look at the operations of the loss."""
    watch = fit(tmp_path, squared, net=net(3, 8, batch_first=True), rate=rate, steps=60)
    diverged = next(event for event in watch.events if event.kind == EventKind.DIVERGED)
    lost = next(event for event in watch.events if event.kind == EventKind.NONFINITE_LOSS)
    assert lost.step > diverged.step
    assert f"had diverged before, at step {diverged.step}." in lost.message
    assert lost.remedy == diverged.remedy


@pytest.mark.parametrize("net", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("rate", [30.0, 300.0])
def test_a_loss_that_leaves_the_numbers_within_a_few_steps_has_the_divergence_for_its_cause(net, rate, tmp_path):
    """Sooner than any look at the weights: what the loss was at the start and last, and the learning rate as remedy."""
    watch = fit(tmp_path, squared, net=net(3, 8, batch_first=True), rate=rate, steps=30, optimizer=torch.optim.SGD)
    lost = next(event for event in watch.events if event.kind == EventKind.NONFINITE_LOSS)
    assert "The training had diverged" in lost.message
    assert "learning rate" in lost.remedy
    assert "a log or a division" not in lost.remedy


def test_clipping_that_has_become_the_rule_is_said_once_and_a_lower_rate_mends_it(tmp_path):
    """Spike that clips nearly every step says so once, with the rate as the remedy; at a lower rate it is silent."""

    def warned(name: str, rate: float) -> list:
        clip = AdaptiveClip(dirpath=tmp_path / f"clip {name}")
        fit(tmp_path / name, squared, clip, steps=90, rate=rate, net=nn.RNN(3, 8, batch_first=True))
        found = [event for event in clip.events if event.kind == EventKind.GRADIENT_CLIPPED]
        return [event for event in found if event.severity == "warning"]

    (event,) = warned("high", 20.0)
    assert "clipping has become the rule" in event.message
    assert "Lower the learning rate" in event.remedy
    assert warned("low", 0.01) == []
