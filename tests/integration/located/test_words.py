"""Sentences that must hold of networks that nothing is wrong with, or that nothing is known of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gradwatch import EventKind, load_run
from lightning_gradwatch.runlog.summary import Verdict
from tests.integration.located.remedies.fits import fit


def last(net, b):
    return net(b[0])[0][:, -1].square().mean()


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_what_was_followed_over_one_timestep_is_not_called_healthy(kind, tmp_path):
    """The lower reverse direction gets a gradient everywhere, through the layer above; its lags end where it begins."""
    torch.manual_seed(0)
    net = kind(3, 8, 2, batch_first=True, bidirectional=True)
    layers = fit(tmp_path, net, last, (torch.randn(64, 30, 3),), steps=12).layers
    (lower,) = [one for one in layers if (one.layer, one.direction) == (0, "reverse")]
    assert lower.verdict == Verdict.UNDECIDED
    assert "followed over 1 of 30 timesteps only" in lower.sentence


@pytest.mark.parametrize("timesteps", [5, 20])
def test_a_sequence_followed_to_its_end_is_judged(timesteps, tmp_path):
    """Its horizon is the sequence: the loss reads a timestep in the middle, and nothing behind it is due."""
    torch.manual_seed(0)
    net = nn.GRU(3, 8, batch_first=True)
    (layer,) = fit(
        tmp_path, net, lambda n, b: n(b[0])[0][:, 3].square().mean(), (torch.randn(64, timesteps, 3),)
    ).layers
    assert layer.verdict == (Verdict.HEALTHY if timesteps == 5 else Verdict.BARELY_REACHED)


def test_more_timesteps_than_count_are_not_said_to_be_of_them(tmp_path):
    """With padding before the sequences the gradient goes on into it: not "13 of 8 timesteps"."""
    torch.manual_seed(0)
    x = torch.randn(64, 30, 3)
    x[:, :24] = 0
    net = nn.LSTM(3, 8, batch_first=True)
    nn.init.constant_(net.bias_ih_l0[8:16], 0.4)
    (layer,) = fit(tmp_path, net, last, (x,), lr=1e-4).layers
    assert layer.verdict == Verdict.HEALTHY
    assert f"after {layer.horizon} timesteps, more than the 6 that count, beside 24 more whose inputs are equal" in layer.sentence


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_frozen_module_is_told_what_fits_it(kind, tmp_path):
    """Neither ``.forward`` nor tap(): it may well be meant."""
    torch.manual_seed(0)
    net = nn.ModuleList([kind(3, 8, batch_first=True), nn.Linear(8, 1)])
    net[0].requires_grad_(False)
    told = fit(
        tmp_path, net, lambda n, b: n[1](n[0](b[0])[0][:, -1]).square().mean(), (torch.randn(64, 9, 3),), steps=4
    )
    (event,) = told.begun(EventKind.NOT_OBSERVED)
    assert "nothing to do" in event.remedy
    assert ".forward" not in event.remedy
    assert told.layers[0].line == "net.0: not observed. Nothing in it needs a gradient."


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_frozen_cell_is_told_what_fits_it(kind, tmp_path):
    """A reservoir of fixed weights under a trained readout."""
    torch.manual_seed(0)
    net = nn.ModuleList([kind(3, 8), nn.Linear(8, 1)])
    net[0].requires_grad_(False)

    def loss(n, b):
        state = None
        for x in b[0].unbind(1):
            state = n[0](x, state)
        return n[1](state[0] if isinstance(state, tuple) else state).square().mean()

    told = fit(tmp_path, net, loss, (torch.randn(64, 9, 3),), steps=4)
    (event,) = told.begun(EventKind.NOT_OBSERVED)
    assert "nothing to do" in event.remedy
    assert told.layers[0].line == "net.0: not observed. Nothing in it needs a gradient."


def test_a_cell_that_no_loss_reached_is_not_called_frozen(tmp_path):
    """Though it was called upon what needs no gradient, too: its last call could train."""
    torch.manual_seed(0)
    net = nn.ModuleList([nn.GRUCell(3, 8), nn.Linear(3, 3), nn.LSTM(3, 8, batch_first=True)])
    net[0].requires_grad_(False)

    def loss(n, b):
        n[0](b[0][:, 1], n[0](n[1](b[0][:, 0]), n[0](b[0][:, 0])))
        return last(n[2], b)

    told = fit(tmp_path, net, loss, (torch.randn(64, 9, 3),), steps=4)
    (event,) = told.begun(EventKind.NOT_OBSERVED)
    assert "No loss reached its output" in event.message


def test_a_module_beside_the_loss_is_told_what_fits_it(tmp_path):
    """No hook is missing: it is just not used."""
    torch.manual_seed(0)
    net = nn.ModuleList([nn.GRU(3, 8, batch_first=True), nn.LSTM(3, 8, batch_first=True)])

    def loss(n, b):
        n[1](b[0])
        return last(n[0], b)

    told = fit(tmp_path, net, loss, (torch.randn(64, 9, 3),), steps=4)
    (event,) = told.begun(EventKind.NOT_OBSERVED)
    assert (event.module, ".forward" in event.remedy) == ("net.1", False)
    assert "let what it returns reach the loss" in event.remedy


def of_episodes(kind: str, share: float):
    """A batch of one sequence whose state is made anew where an episode begins, at ``share`` of the timesteps."""
    cell = kind.endswith("Cell")

    def loss(net, b):
        x, begins = b
        h = c = torch.zeros(1, 8) if cell else torch.zeros(1, 1, 8)
        parts = []
        for t in range(24):
            if begins[0, t]:
                h, c = torch.zeros_like(h), torch.zeros_like(h)
            state, step = (h, c) if "LSTM" in kind else h, x[:, t] if cell else x[:, t][None]
            made = net(step, state) if cell else net(step, state)[1]
            h, c = made if "LSTM" in kind else (made, c)
            parts.append((h.flatten()[0] - x[0, t, 0]).square())
        return torch.stack(parts).mean()

    torch.manual_seed(1)
    return getattr(nn, kind)(3, 8), loss, (torch.randn(64, 24, 3), torch.rand(64, 24) < share)


@pytest.mark.parametrize(("kind", "share"), [("LSTM", 0.15), ("LSTMCell", 0.06), ("GRU", 0.1), ("RNNCell", 0.3)])
def test_episodes_too_short_to_tell_decide_nothing(kind, share, tmp_path):
    """What an episode's end cut off is said neither to be shortest nor to have reached further; a horizon that was seen is not denied."""
    told = fit(tmp_path, *of_episodes(kind, share), steps=36, batch=1)
    (layer,) = told.layers
    records = [r for r in load_run(told.watch.run_dir).profile_records if r["state"] == "h"]
    seen = [r["horizon"] for r in records if not r["horizon_censored"]]
    assert seen
    assert layer.verdict != Verdict.SHORTENED
    assert not layer.horizon_censored
    assert layer.horizon in seen
    vanished = [e for e in told.watch.events if e.kind == EventKind.VANISHING_HIDDEN_GRADIENT]
    assert all(e.value in seen for e in vanished)
    assert not any("Earlier it reached" in e.message for e in vanished)
