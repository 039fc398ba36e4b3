"""What is advised against a gradient that does not reach far, tried on what provoked the advice."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import EventKind, GradWatch, load_run
from lightning_gradwatch.runlog import summarise
from lightning_gradwatch.runlog.summary import Verdict
from tests.models import trainer

TIMESTEPS = 40


class Net(pl.LightningModule):
    """A recurrent module and a linear head; ``read`` makes of both and of the input what the loss sees."""

    def __init__(self, rnn: nn.Module, read, width: int = 16) -> None:
        super().__init__()
        self.rnn, self.head, self.read = rnn, nn.Linear(width, 1), read

    def training_step(self, batch, batch_idx):
        seen = self.head(self.read(self.rnn, batch[0]))
        return (seen - 1).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def fit(tmp_path, net):
    watch = GradWatch(every_n_steps=2, dirpath=tmp_path / "run")
    data = DataLoader(TensorDataset(torch.randn(64, TIMESTEPS, 3)), 16)
    trainer(tmp_path, [watch], max_steps=8, max_epochs=-1).fit(net, data)
    return watch


def of(watch, kind):
    return [event for event in watch.events if event.kind == kind and event.action is None]


def verdicts(watch):
    run = load_run(watch.run_dir)
    return summarise(run.profile_records, run.event_records)


# ---------------------------------------------------------------- FEW_TIMESTEPS_REACHED


def both():
    return nn.LSTM(3, 8, batch_first=True, bidirectional=True)


def at(timestep):
    return lambda rnn, x: rnn(x)[0][:, timestep]


def final_states(rnn, x):
    h_n = rnn(x)[1][0]
    return torch.cat([h_n[-2], h_n[-1]], -1)


def one_way(kind):
    return lambda: getattr(nn, kind)(3, 16, batch_first=True)


FEW = {
    "the reverse direction at the last timestep: both final states": (both, at(-1), both, final_states),
    "the reverse direction at the last timestep: the output at all timesteps": (
        both,
        at(-1),
        both,
        lambda rnn, x: rnn(x)[0].mean(1),
    ),
    "the forward direction at the first timestep: both final states": (both, at(0), both, final_states),
    "one direction at the first timestep: the final state": (
        one_way("GRU"),
        at(0),
        one_way("GRU"),
        lambda rnn, x: rnn(x)[1][-1],
    ),
    "late labels of both directions: the reverse direction's final state": (
        both,
        lambda rnn, x: rnn(x)[0][:, -4:].mean(1),
        both,
        final_states,
    ),
    "late labels of both directions: one direction": (
        both,
        lambda rnn, x: rnn(x)[0][:, -4:].mean(1),
        one_way("LSTM"),
        lambda rnn, x: rnn(x)[0][:, -4:].mean(1),
    ),
    "early labels: sequences cut behind them": (
        one_way("RNN"),
        lambda rnn, x: rnn(x)[0][:, :5],
        one_way("RNN"),
        lambda rnn, x: rnn(x[:, :5])[0],
    ),
    "early labels: the last state": (
        one_way("RNN"),
        lambda rnn, x: rnn(x)[0][:, :5],
        one_way("RNN"),
        lambda rnn, x: rnn(x)[1][-1],
    ),
}


@pytest.mark.parametrize("case", FEW)
def test_a_loss_that_reaches_few_timesteps_reaches_more_with_the_remedy(tmp_path, case):
    """The event comes with what is read, and goes with what is advised."""
    made, read, made_anew, read_anew = FEW[case]
    ill = fit(tmp_path / "ill", Net(made(), read))
    well = fit(tmp_path / "well", Net(made_anew(), read_anew))
    assert of(ill, EventKind.FEW_TIMESTEPS_REACHED)
    assert any(layer.verdict == Verdict.BARELY_REACHED for layer in verdicts(ill))
    assert not of(well, EventKind.FEW_TIMESTEPS_REACHED)
    assert all(layer.verdict != Verdict.BARELY_REACHED for layer in verdicts(well))


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_batch_first_makes_all_sequences_learn(tmp_path, kind):
    """Where time and batch were taken for one another, one sequence of 40 gets a gradient; with the argument all of them do."""

    def seen(watch):
        return {(p["with_gradient"], p["batch_size"]) for p in load_run(watch.run_dir).profile_records}

    ill = fit(tmp_path / "ill", Net(getattr(nn, kind)(3, 16), at(-1)))
    well = fit(tmp_path / "well", Net(one_way(kind)(), at(-1)))
    assert seen(ill) == {(1, 40)}
    assert "batch_first=True was forgotten" in verdicts(ill)[0].sentence
    assert seen(well) == {(16, 16)}
    assert "batch_first" not in verdicts(well)[0].sentence


# ---------------------------------------------------------------- VANISHING_HIDDEN_GRADIENT


def last(rnn, x):
    return rnn(x)[0][:, -1]


def open_gate(kind, bias=5.0):
    """A gated cell whose state is kept: the second gate is an LSTM's forget gate and a GRU's update gate."""
    rnn = one_way(kind)()
    rnn.bias_ih_l0.data[16:32] = bias
    rnn.bias_hh_l0.data[16:32] = 0.0
    return rnn


def started(nonlinearity, start):
    rnn = nn.RNN(3, 16, batch_first=True, nonlinearity=nonlinearity)
    start(rnn.weight_hh_l0)
    with torch.no_grad():  # small inputs: a tanh that does not bend
        rnn.weight_ih_l0 *= 0.1
        rnn.bias_ih_l0.zero_()
        rnn.bias_hh_l0.zero_()
    return rnn


LONGER = {
    "RNN: a gated cell, its gate open": (one_way("RNN"), lambda: open_gate("LSTM")),
    "RNN: an orthogonal recurrent weight": (one_way("RNN"), lambda: started("tanh", nn.init.orthogonal_)),
    "RNN with relu: the identity": (
        lambda: nn.RNN(3, 16, batch_first=True, nonlinearity="relu"),
        lambda: started("relu", nn.init.eye_),
    ),
    "LSTM: the forget-gate bias": (one_way("LSTM"), lambda: open_gate("LSTM")),
    "GRU: the update-gate bias": (one_way("GRU"), lambda: open_gate("GRU")),
}


@pytest.mark.parametrize("case", LONGER)
def test_a_vanishing_gradient_reaches_further_with_the_remedy(tmp_path, case):
    """The event is gone, and the horizon is at least twice as long."""
    before, after = LONGER[case]
    ill, well = fit(tmp_path / "ill", Net(before(), last)), fit(tmp_path / "well", Net(after(), last))
    assert [event.severity for event in of(ill, EventKind.VANISHING_HIDDEN_GRADIENT)] == ["warning"]
    assert not of(well, EventKind.VANISHING_HIDDEN_GRADIENT)
    short, long = verdicts(ill)[0], verdicts(well)[0]
    assert (short.verdict, long.verdict) == (Verdict.VANISHING, Verdict.HEALTHY)
    assert long.horizon >= 2 * short.horizon


class Attention(nn.Module):
    """Weighs all states of an RNN: a way of one step from each of them to the loss."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell, self.score = one_way(kind)(), nn.Linear(16, 1)

    def forward(self, x):
        output, _ = self.cell(x)
        return (self.score(output).softmax(1) * output).sum(1)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_shorter_way_leaves_no_timestep_starving(tmp_path, kind):
    """With attention the horizon is as short as before, but every timestep is learned from: no warning is left."""
    ill = fit(tmp_path / "ill", Net(one_way(kind)(), last))
    well = fit(tmp_path / "well", Net(Attention(kind), lambda net, x: net(x)))
    assert [event.severity for event in of(ill, EventKind.VANISHING_HIDDEN_GRADIENT)] == ["warning"]
    assert all(event.severity == "info" for event in of(well, EventKind.VANISHING_HIDDEN_GRADIENT))
    assert not any(layer.starves for layer in verdicts(well))


def test_clipping_does_not_help_as_the_remedy_says(tmp_path):
    """A norm held to anything leaves the lagged gradient as it is."""

    def horizons(clip):
        torch.manual_seed(0)
        watch = GradWatch(every_n_steps=2, dirpath=tmp_path / f"run-{clip}")
        data = DataLoader(TensorDataset(torch.randn(64, TIMESTEPS, 3)), 16)
        net = Net(one_way("RNN")(), last)
        trainer(tmp_path, [watch], max_steps=8, max_epochs=-1, gradient_clip_val=clip).fit(net, data)
        assert of(watch, EventKind.VANISHING_HIDDEN_GRADIENT)
        assert "Clipping does not help" in of(watch, EventKind.VANISHING_HIDDEN_GRADIENT)[0].remedy
        return verdicts(watch)[0].horizon

    assert horizons(0.01) == horizons(None)
