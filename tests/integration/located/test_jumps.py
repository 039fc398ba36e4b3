"""A gradient norm that jumps among the first steps, time and again, or with a loss that is multiplied or another one."""

from __future__ import annotations

import itertools
import re

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_gradwatch import AdaptiveClip, EventKind
from tests.integration.located.remedies.fits import fit


def network(cell: type = nn.GRU, **options) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList([cell(3, 8, batch_first=True, **options), nn.Linear(8, 1), nn.Linear(8, 4)])


def regression(net, x):
    return (net[1](net[0](x)[0][:, -1]) - x[:, -1, :1]).square().mean()


def classes(net, x):
    return functional.cross_entropy(net[2](net[0](x)[0][:, -1]), (x[:, 0, 0] > 0).long())


def jumps(tmp_path, loss, *, net=None, steps=80, **options):
    """The jumps told of a training on ``loss(net, x, step)``, and all else that was told."""
    net = net or network()
    count = itertools.count()
    data = (torch.randn(16 * steps, 12, 3),)
    told = fit(tmp_path, net, lambda n, b: loss(n, b[0], next(count)), data, steps=steps, every=10, **options)
    return told.begun(EventKind.EXPLODING_GRADIENT), told


_GREW = (
    r"That of (?P<name>\S+) grew most: to (?P<norm>\S+) from (?P<was>\S+) (?:at the step|(?P<back>\d+) steps) before"
)


class _Norms(pl.Callback):
    """The norm of each parameter's gradient, by its name, of every step."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.named_parameters()
        self.steps.append({name: float(p.grad.double().norm()) for name, p in named if p.grad is not None})


def with_outlier(at, size):
    """One target of one batch, or of several, is far off."""
    where = at if isinstance(at, tuple) else (at,)

    def loss(net, x, step):
        y = 0.2 * x[:, -1, :1]
        if step in where:
            y = y.index_fill(0, torch.tensor([3]), size)
        return (net[1](net[0](x)[0][:, -1]) - y).square().mean()

    return loss


class TestTheFirstSteps:
    """Too little is known of what is ordinary, but not nothing."""

    @pytest.mark.parametrize(("at", "size"), [(5, 13.0), (9, -40.0), (15, 100.0), (40, 13.0)])
    def test_an_outlier_among_the_targets_is_told_with_its_batch(self, at, size, tmp_path):
        """Loss and gradient leap together at one step, whether or not a baseline is known by then."""
        found, told = jumps(tmp_path, with_outlier(at, size))
        assert [(event.step, event.batch_idx, event.severity) for event in found] == [(at, at, "warning")]
        assert f"and the loss to {told.losses[at]:.4g}" in found[0].message
        assert f"Look at batch {at} of epoch 0" in found[0].remedy

    @pytest.mark.parametrize("at", [5, 12, 40])
    def test_the_remedy_of_such_an_outlier_helps(self, at, tmp_path):
        """A loss that it moves less ends the event; the level that is named bounds the step."""

        def robust(net, x, step):
            y = 0.2 * x[:, -1, :1]
            y = y.index_fill(0, torch.tensor([3]), 13.0) if step == at else y
            return functional.huber_loss(net[1](net[0](x)[0][:, -1]), y)

        found, _ = jumps(tmp_path / "squared", with_outlier(at, 13.0))
        assert "huber_loss instead of mse_loss" in found[0].remedy
        assert "AdaptiveClip(policy=Norm(" in found[0].remedy
        assert jumps(tmp_path / "robust", robust)[0] == []

    @pytest.mark.parametrize("by", [1e4, 1e6])
    def test_a_multiplied_loss_is_told_as_that(self, by, tmp_path):
        """The gradients grow as it does."""
        found, _ = jumps(tmp_path, lambda n, x, step: regression(n, x) * (by if step == 7 else 1), lr=1e-5)
        assert [event.step for event in found] == [7]
        assert "it seems to be the loss itself that is larger" in found[0].message

    @pytest.mark.parametrize(("steps", "lr"), [(4, 3.0), (12, 3.0), (40, 1.0)])
    def test_a_learning_rate_that_explodes_at_once_is_told(self, steps, lr, tmp_path):
        """Loss and norm leave the first steps within a few; so in a run that ends there."""
        found, told = jumps(tmp_path, lambda n, x, _: regression(n, x), steps=steps, optimizer="SGD", lr=lr)
        assert max(told.losses) > 30 * told.losses[0]
        assert found
        assert found[0].step < 16

    @pytest.mark.parametrize(
        ("cell", "lr"), [(nn.RNN, 1.0), (nn.RNN, 3.0), (nn.GRU, 1.0), (nn.GRU, 3.0), (nn.LSTM, 3.0)]
    )
    def test_the_parameter_that_is_said_to_have_grown_most_has_grown(self, cell, lr, tmp_path):
        """Since the step that is named, as its gradients show; also where the step just before was larger."""
        norms = _Norms()
        found, _ = jumps(
            tmp_path, lambda n, x, _: regression(n, x), net=network(cell), optimizer="SGD", lr=lr, beside=[norms]
        )
        said = [re.search(_GREW, event.message) for event in found]
        assert any(said)
        for event, one in zip(found, said, strict=True):
            if one is not None:
                now, then = norms.steps[event.step], norms.steps[event.step - int(one["back"] or 1)]
                assert float(one["norm"]) == pytest.approx(now[one["name"]], rel=0.01)
                assert float(one["was"]) == pytest.approx(then[one["name"]], rel=0.01)
                assert now[one["name"]] > then[one["name"]]

    @pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
    def test_an_ordinary_start_is_no_jump(self, cell, tmp_path):
        """Nor one whose head begins with zeros."""
        net = network(cell)
        nn.init.zeros_(net[1].weight)
        found, _ = jumps(tmp_path, lambda n, x, _: regression(n, x), net=net, lr=3e-2)
        assert found == []

    def test_the_remedy_of_a_rise_helps(self, tmp_path):
        """With a learning rate ten times lower, once or twice, nothing is told and the loss falls."""
        found, _ = jumps(tmp_path / "high", lambda n, x, _: regression(n, x), optimizer="SGD", lr=3.0)
        assert "a learning rate ten times lower" in found[0].remedy
        found, told = jumps(tmp_path / "low", lambda n, x, _: regression(n, x), optimizer="SGD", lr=3e-2)
        assert found == []
        assert told.loss() < told.losses[0]


class TestADivergence:
    """It is told with the step at which the loss leapt, where it did."""

    @pytest.mark.parametrize(
        ("at", "size", "lr"),
        [((3, 30), -2e4, 0.02), ((2, 22, 42), 1e4, 0.01), ((1, 11, 21, 31), 5e3, 0.02)],
    )
    def test_outliers_that_come_back_are_named_and_adaptive_clip_holds_them(self, at, size, lr, tmp_path):
        """The remedy names the batch beside the learning rate; with AdaptiveClip nothing diverges."""
        _, told = jumps(tmp_path / "bare", with_outlier(at, size), optimizer="SGD", lr=lr)
        (event,) = told.begun(EventKind.DIVERGED)
        assert any(f" within one step, at step {step} (batch {step})" in event.message for step in at)
        assert "Look at the batch first" in event.remedy
        _, told = jumps(tmp_path / "held", with_outlier(at, size), optimizer="SGD", lr=lr, beside=[AdaptiveClip()])
        assert told.begun(EventKind.DIVERGED) == []
        assert told.losses[-1] < 10 * told.losses[0]

    @pytest.mark.parametrize("lr", [1.0, 3.0])
    def test_a_rate_that_is_too_high_blames_no_batch(self, lr, tmp_path):
        """The loss was high before it leapt a hundredfold."""
        _, told = jumps(tmp_path, lambda n, x, _: regression(n, x), optimizer="SGD", lr=lr, steps=40)
        (event,) = told.begun(EventKind.DIVERGED)
        assert "within one step" not in event.message
        assert event.remedy.startswith("Begin anew with a learning rate ten times lower")


LOUD = {
    "every third batch": lambda n, x, step: regression(n, x) * (1e4 if step % 3 == 2 else 1),
    "every third batch from the first on": lambda n, x, step: regression(n, x) * (1 if step % 3 else 1e4),
    "every other batch": lambda n, x, step: regression(n, x) * (200 if step % 2 else 1),
    "another head every third batch": lambda n, x, step: 1e4 * classes(n, x) if step % 3 == 2 else regression(n, x),
    "another head every tenth batch": lambda n, x, step: 1e4 * classes(n, x) if step % 10 == 9 else regression(n, x),
    "another term every third batch": lambda n, x, step: regression(n, x) + (1e4 * classes(n, x) if step % 3 else 0),
    "weighted anew": lambda n, x, step: regression(n, x) * (100 if step >= 50 else 1),
    "weighted anew at once": lambda n, x, step: regression(n, x) * (100 if step >= 8 else 1),
    "a term switched on": lambda n, x, step: regression(n, x) + (1e4 * classes(n, x) if step >= 40 else 0),
}


@pytest.mark.parametrize("name", LOUD)
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_large_gradients_that_belong_to_the_run_are_no_jump(name, optimizer, tmp_path):
    """Losses that alternate, or are weighted anew."""
    found, _ = jumps(tmp_path, LOUD[name], optimizer=optimizer, lr=1e-3 if optimizer == "Adam" else 1e-7)
    assert found == []


@pytest.mark.parametrize("period", [7, 12])
def test_a_jump_that_comes_and_goes_is_told_no_more_after_three(period, tmp_path):
    """The record of the end says that it is part of the run; or each was an episode of its own."""

    def loss(net, x, step):
        return regression(net, x) * (1e4 if step >= 30 and step % period == 0 else 1)

    found, told = jumps(tmp_path, loss, steps=140, lr=1e-5)
    assert 1 <= len(found) <= 3
    ends = [e.message for e in told.watch.events if e.action == "ended"]
    assert len(ends) == len(found)
    assert ("it came and went 3 times, so it is part of this run" in ends[-1]) == (period == 7)
