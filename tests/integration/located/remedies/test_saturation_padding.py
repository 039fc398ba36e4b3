"""What is advised against saturated gates, against padding and against a short memory, tried on the case that provoked the advice.

The lines are those that ``gradwatch explain`` prints: they are taken from the page itself.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_gradwatch import EventKind, load_run
from lightning_gradwatch.report.explain import body
from tests.integration.located.remedies.fits import Told, fit

VANISHING, SATURATED = EventKind.VANISHING_HIDDEN_GRADIENT, EventKind.SATURATED_GATES


def lines(kind: EventKind, having: str) -> str:
    """The one block of code on a kind's page that holds ``having``."""
    (found,) = [block for block in re.findall(r"```text\n(.*?)```", body(kind.page), re.DOTALL) if having in block]
    return found


def apply(code: str, **names) -> dict:
    """Run lines of a page with these names at hand."""
    exec(code, given := {"nn": nn, "torch": torch, "math": math, **names})
    return given


def horizon(told: Told) -> float:
    """Of the last sample; longer than any where the sequence cut it off."""
    record = load_run(told.watch.run_dir).profile_records[-1]
    return math.inf if record["horizon_censored"] else record["horizon"]


# ---------------------------------------------------------------------- saturated gates


def regression(net, batch):
    return functional.mse_loss(net[1](net[0](batch[0])[0][:, -1])[:, 0], batch[1])


def series():
    torch.manual_seed(1)
    x = torch.randn(64, 15, 3)
    return x, x[:, -3:, 0].sum(1)


def lstm(kind: str = "LSTM", **options) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList([getattr(nn, kind)(3, 16, batch_first=True, **options), nn.Linear(16, 1)])


class Normed(nn.Module):
    """An LSTM behind the lines that a page says."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn
        make, use = lines(SATURATED, "BatchNorm1d").strip().splitlines()
        apply(make.strip(), self=self, channels=3)
        self._use = use.strip()

    def forward(self, x):
        return self.rnn(apply(self._use, self=self, x=x)["x"])


@pytest.mark.parametrize("how", ["by the training set", "by nn.BatchNorm1d"])
@pytest.mark.parametrize("large", ["numbers of 1e6", "a price", "a timestamp"])
def test_standardised_inputs_are_learned_from(tmp_path, large, how) -> None:
    """The event is gone, and the loss falls as it did not before."""
    x, y = series()
    if large == "numbers of 1e6":
        x = 1e6 * (1 + x)
    elif large == "a price":
        x = 1e4 + 100 * x
    else:
        x = torch.cat([x[..., :2], (1.7e9 + 3600 * torch.randint(0, 10**4, (64, 1, 1))).expand(64, 15, 1)], -1)
    before = fit(tmp_path / "before", lstm(), regression, (x, y), steps=80, every=8, lr=1e-2)
    assert before.begun(SATURATED)
    net = lstm()
    if how == "by the training set":
        x = (x - x.mean((0, 1))) / x.std((0, 1))
    else:
        net[0] = Normed(net[0])
    after = fit(tmp_path / "after", net, regression, (x, y), steps=80, every=8, lr=1e-2)
    assert not after.begun(SATURATED)
    assert after.loss() < 0.7 * before.loss()


def test_a_forget_bias_does_not_help_saturated_gates(tmp_path) -> None:
    """As the page says."""
    x, y = series()
    net = lstm()
    apply(lines(VANISHING, "constant_"), lstm=net[0], T=15)
    assert fit(tmp_path, net, regression, (1e6 * x, y)).begun(SATURATED)


def test_a_lower_learning_rate_keeps_the_gates_open(tmp_path) -> None:
    """Where the weights had grown."""
    for lr, events in ((30.0, 1), (1e-2, 0)):
        assert len(fit(tmp_path / str(lr), lstm(), regression, series(), lr=lr, steps=30).begun(SATURATED)) == events


def test_smaller_biases_open_the_gates(tmp_path) -> None:
    """Where an output gate began shut, and within PyTorch's own start."""
    for bias, events in ((-20.0, 1), (-0.2, 0)):
        net = lstm()
        nn.init.constant_(net[0].bias_ih_l0[48:], bias)
        assert len(fit(tmp_path / str(bias), net, regression, series()).begun(SATURATED)) == events


# ---------------------------------------------------------------------- padding

T = 30


def padded():
    torch.manual_seed(1)
    words, lengths = torch.randint(1, 20, (256, T)), torch.randint(4, 9, (256,))
    words[torch.arange(T) >= lengths[:, None]] = 0
    return words, lengths, (words[:, 1] > 10).long()


def classifier(kind: str) -> nn.ModuleList:
    torch.manual_seed(0)
    rnn = getattr(nn, kind)(6, 16, batch_first=True)
    return nn.ModuleList([nn.Embedding(20, 6, padding_idx=0), rnn, nn.Linear(16, 2)])


def read_at_the_end(net, batch):
    words, _, y = batch
    return functional.cross_entropy(net[2](net[1](net[0](words))[0][:, -1]), y)


def packed(net, batch):
    words, lengths, y = batch
    made = apply(
        lines(VANISHING, "pack_padded_sequence").partition("# or")[0],
        self=_Holder(net[1]),
        x=net[0](words),
        lengths=lengths,
    )
    return functional.cross_entropy(net[2](made["h_n"][-1]), y)


def read_at_the_last_word(net, batch):
    words, lengths, y = batch
    x = net[0](words)
    (line,) = [line for line in lines(VANISHING, "pack_padded_sequence").splitlines() if line.startswith("last")]
    return functional.cross_entropy(net[2](apply(line, output=net[1](x)[0], x=x, lengths=lengths)["last"]), y)


class _Holder:
    def __init__(self, lstm: nn.Module) -> None:
        self.lstm = lstm


@pytest.mark.parametrize("remedy", [packed, read_at_the_last_word])
def test_packed_sequences_are_learned_from(tmp_path, remedy) -> None:
    """The event is gone and the loss falls; before, it stood."""
    runs = {
        loss.__name__: fit(tmp_path / loss.__name__, classifier("LSTM"), loss, padded(), steps=120, every=12, lr=1e-2)
        for loss in (read_at_the_end, remedy)
    }
    assert runs["read_at_the_end"].begun(VANISHING)
    assert not runs[remedy.__name__].begun(VANISHING)
    assert runs["read_at_the_end"].loss() > 0.6
    assert runs[remedy.__name__].loss() < 0.5


# ---------------------------------------------------------------------- memory


def recall(timesteps: int = 50):
    """The label is seen at the first timestep, then comes noise."""
    torch.manual_seed(1)
    y = torch.randint(0, 2, (512,))
    x = 0.3 * torch.randn(512, timesteps, 3)
    x[:, 0, 0] = 2.0 * y - 1
    return x, y


def of_the_last(net, batch):
    return functional.cross_entropy(net[1](net[0](batch[0])[0][:, -1]), batch[1])


def recaller(kind: str, **options) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList([getattr(nn, kind)(3, 16, batch_first=True, **options), nn.Linear(16, 2)])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "relu RNN", "two layers"])
def test_the_lines_of_the_page_make_the_memory_longer(tmp_path, kind) -> None:
    """ln T in the gate that remembers, or an orthogonal recurrent weight: no event of vanishing, and the horizon outlives the sequence."""
    cell = {"two layers": "LSTM", "relu RNN": "RNN"}.get(kind, kind)
    options = {"two layers": {"num_layers": 2}, "relu RNN": {"nonlinearity": "relu"}}.get(kind, {})
    before, after = recaller(cell, **options), recaller(cell, **options)
    code = lines(VANISHING, "orthogonal_" if cell == "RNN" else "constant_")
    if kind == "relu RNN":
        code = code.replace("nn.init.orthogonal_(weight)", "nn.init.eye_(weight)")
    apply(code, lstm=after[0], rnn=after[0], T=50)
    old, new = (
        fit(tmp_path / name, net, of_the_last, recall(), steps=24, lr=1e-3)
        for name, net in (("old", before), ("new", after))
    )
    (event, *_) = old.begun(VANISHING)
    if cell != "RNN":
        assert "ln 50 = 3.9" in event.remedy
    assert "gradwatch explain VANISHING_HIDDEN_GRADIENT" in event.remedy
    assert not new.begun(VANISHING)
    assert horizon(new) > 2 * horizon(old)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_with_that_bias_the_task_is_learned(tmp_path, kind) -> None:
    """PyTorch's own start leaves the loss at ln 2; ln T does not."""
    before, after = recaller(kind), recaller(kind)
    apply(lines(VANISHING, "constant_"), lstm=after[0], T=50)
    assert fit(tmp_path / "before", before, of_the_last, recall(), steps=120, lr=1e-2, every=20, batch=32).loss() > 0.6
    assert fit(tmp_path / "after", after, of_the_last, recall(), steps=120, lr=1e-2, every=20, batch=32).loss() < 0.3
