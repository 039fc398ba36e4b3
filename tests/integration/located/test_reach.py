"""Which timesteps and sequences the loss reaches, and what is said where it is few of them."""

# Over 300 lines: one verdict, few timesteps or few sequences reached, on the same small models.
from __future__ import annotations

import copy
import math
import re

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import EventKind, GradWatch, load_run
from lightning_gradwatch.cli import main
from lightning_gradwatch.report.html import write_report
from lightning_gradwatch.runlog import summarise
from lightning_gradwatch.runlog.summary import Verdict
from tests.models import trainer


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")


class Reads(pl.LightningModule):
    """A recurrent module, and a loss that reads of its result what ``reads`` says."""

    def __init__(self, rnn: nn.Module, reads) -> None:
        super().__init__()
        self.rnn, self.reads = rnn, reads

    def training_step(self, batch, batch_idx):
        return self.reads(self.rnn, batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def fit(tmp_path, rnn, reads, *, steps=8, timesteps=20, batch=16, width=3, **options):
    """The callback after a few steps, and the verdicts by layer and direction."""
    watch = GradWatch(every_n_steps=2, dirpath=tmp_path / "run", **options)
    data = DataLoader(TensorDataset(torch.randn(4 * batch, timesteps, width)), batch)
    trainer(tmp_path, [watch], max_steps=steps, max_epochs=-1).fit(Reads(rnn, reads), data)
    run = load_run(watch.run_dir)
    found = summarise(run.profile_records, run.event_records)
    return watch, {(layer.layer, layer.direction): layer for layer in found}


def few(watch):
    return [event for event in watch.events if event.kind == EventKind.FEW_TIMESTEPS_REACHED]


def lstm(**options):
    return nn.LSTM(3, 8, batch_first=True, **options)


def at(timestep):
    return lambda rnn, x: rnn(x)[0][:, timestep].square().mean()


BARE = {
    "the reverse direction at the last timestep": (lstm(bidirectional=True), at(-1), "reverse", 1, "output[:, -1]"),
    "the forward direction at the first timestep": (lstm(bidirectional=True), at(0), "forward", 1, "output[:, 0]"),
    "one direction at the first timestep": (nn.GRU(3, 8, batch_first=True), at(0), "forward", 1, "h_n[-1]"),
    "time first": (
        nn.RNN(3, 8, bidirectional=True),
        lambda rnn, x: rnn(x.transpose(0, 1))[0][-1].square().mean(),
        "reverse",
        1,
        "output[-1]",
    ),
    "labels at early timesteps": (
        nn.GRU(3, 8, batch_first=True),
        lambda rnn, x: rnn(x)[0][:, :4].square().mean(),
        "forward",
        4,
        "cut the sequences there",
    ),
    "a loss at three early timesteps": (
        lstm(),
        lambda rnn, x: rnn(x)[0][:, [0, 2, 4]].square().mean(),
        "forward",
        5,
        "cut the sequences there",
    ),
    "labels at late timesteps of both directions": (
        lstm(bidirectional=True),
        lambda rnn, x: rnn(x)[0][:, -3:].square().mean(),
        "reverse",
        3,
        "one direction is enough",
    ),
    "two layers, the upper one": (lstm(bidirectional=True, num_layers=2), at(-1), "reverse", 1, "h_n[-2]"),
}


@pytest.mark.parametrize("case", BARE)
def test_a_direction_that_the_loss_barely_reaches_is_told_with_the_timesteps(tmp_path, case):
    """Event and verdict say at how many of its own first steps, and the remedy names how the output is read."""
    rnn, reads, direction, reached, remedy = BARE[case]
    watch, found = fit(tmp_path, rnn, reads)
    (event,) = few(watch)
    top = getattr(rnn, "num_layers", 1) - 1
    assert (event.severity, event.direction, event.layer, event.value) == ("warning", direction, top, reached)
    assert f"the other {20 - reached} of 20 get no gradient" in event.message
    assert remedy in event.remedy
    layer = found[top, direction]
    assert layer.verdict == Verdict.BARELY_REACHED
    assert f"the other {20 - reached} of 20 timesteps get no gradient" in layer.sentence
    assert all(one.verdict != Verdict.BARELY_REACHED for place, one in found.items() if place != (top, direction))
    for curve in watch.lagged.values():
        assert curve.horizon().lag == len(curve.compute().reshape(-1)) - 1 or not curve.horizon().censored


def test_a_curve_of_one_lag_has_a_horizon_and_no_growth_rate(tmp_path):
    """Where the loss reaches one timestep, nothing is followed back: lag 0, cut off there."""
    watch, _ = fit(tmp_path, lstm(bidirectional=True), at(-1))
    curve = watch.lagged["rnn", 0, "reverse"]
    assert (curve.horizon().lag, curve.horizon().censored, curve.growth_rate()) == (0, True, None)
    axes = curve.plot()[1]
    assert len(axes.lines[0].get_xdata()) == 1


@pytest.mark.parametrize("steps", [1, 3])
def test_a_short_run_hears_it_at_its_end(tmp_path, steps):
    """One or two samples are enough when no more come."""
    watch, found = fit(tmp_path, lstm(bidirectional=True), at(-1), steps=steps)
    assert [event.direction for event in few(watch)] == ["reverse"]
    assert found[0, "reverse"].verdict == Verdict.BARELY_REACHED


def _ragged(rnn, x, reads):
    lengths = torch.arange(len(x)) % 13 + 5
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    output, state = rnn(packed)
    return reads(*pad_packed_sequence(output, batch_first=True), state)


def _loop(cell, x, last):
    h, losses = torch.zeros(len(x), 8), []
    for t in range(x.shape[1]):
        h = cell(x[:, t], h)
        losses.append(h.square().mean())
    return losses[-1] if last else sum(losses)


class Steps(nn.Module):
    """A cell in a loop, whose states are read where ``last`` says."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.cell, self.last = nn.GRUCell(3, 8), last

    def forward(self, x):
        return _loop(self.cell, x, self.last)


WELL = {
    "every timestep": (lstm(), lambda rnn, x: rnn(x)[0].square().mean()),
    "both ends of both directions": (
        lstm(bidirectional=True),
        lambda rnn, x: torch.cat([*rnn(x)[1][0][-2:]], -1).square().mean(),
    ),
    "packed, final states": (
        lstm(bidirectional=True),
        lambda rnn, x: _ragged(rnn, x, lambda output, lengths, state: state[0].square().mean()),
    ),
    "padded behind the end, read there": (
        lstm(),
        lambda rnn, x: rnn(x)[0][torch.arange(len(x)), torch.arange(len(x)) % 13 + 5].square().mean(),
    ),
    "the middle": (lstm(bidirectional=True), at(10)),
    "the final state": (nn.GRU(3, 8, batch_first=True), lambda rnn, x: rnn(x)[1].square().mean()),
    "a loop, its last state": (Steps(True), lambda rnn, x: rnn(x)),
    "a loop, all states": (Steps(False), lambda rnn, x: rnn(x)),
}


@pytest.mark.parametrize("case", WELL)
def test_a_loss_that_lies_where_it_should_raises_no_alarm(tmp_path, case):
    """A language model, final states, packed and padded sequences, a middle timestep, loops."""
    watch, found = fit(tmp_path, *WELL[case])
    assert not few(watch)
    assert all(layer.verdict != Verdict.BARELY_REACHED for layer in found.values())


def test_packed_sequences_read_at_their_last_timestep_are_told_too(tmp_path):
    """The reverse direction has seen one timestep of each, however long they are."""

    def last(output, lengths, state):
        return output[torch.arange(len(output)), lengths - 1].square().mean()

    watch, found = fit(tmp_path, lstm(bidirectional=True), lambda rnn, x: _ragged(rnn, x, last))
    assert [(event.direction, event.value) for event in few(watch)] == [("reverse", 1)]
    assert found[0, "reverse"].verdict == Verdict.BARELY_REACHED


def _tagger(rnn, x, padded):
    lengths = torch.arange(len(x)) % 9 + 12
    padding = torch.arange(x.shape[1]) >= lengths[:, None]
    if padded == "before":
        padding = padding.flip(1)
    output = rnn(x.masked_fill(padding[..., None], 0.5))[0]
    return output[~padding].square().mean()


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("padded", ["behind", "before"])
def test_padding_of_a_tagger_starves_without_harm(tmp_path, kind, padded):
    """Both directions, not packed, a loss at each real timestep: what little reaches the padding is no warning and no short reach."""
    rnn = getattr(nn, kind)(3, 8, batch_first=True, bidirectional=True)
    watch, found = fit(tmp_path, rnn, lambda rnn, x: _tagger(rnn, x, padded), timesteps=40)
    assert all(event.severity == "info" for event in watch.events)
    assert not few(watch)
    assert not any(layer.starves for layer in found.values())


def test_timesteps_drawn_anew_at_each_step_are_not_judged_by_a_few_samples(tmp_path):
    """Early timesteps in three samples of a run that reads late ones too are no alarm."""
    drawn = iter([19, 1, 1, 1, 1, 1, 1, 1, 1, 12, 19, 15])
    watch, found = fit(tmp_path, lstm(), lambda rnn, x: rnn(x)[0][:, next(drawn)].square().mean(), steps=12)
    assert not few(watch)
    assert found[0, "forward"].verdict != Verdict.BARELY_REACHED


def test_a_horizon_that_is_cut_off_says_how_far_it_was_followed(tmp_path):
    """A loss in the middle of the sequence is followed back over the timesteps before it, not over all."""
    rnn = nn.RNN(3, 8, batch_first=True)
    nn.init.orthogonal_(rnn.weight_hh_l0)
    _, found = fit(tmp_path, rnn, at(9))
    layer = found[0, "forward"]
    assert layer.verdict == Verdict.HEALTHY
    assert "all of the 10 timesteps over which it could be followed, of 20" in layer.sentence


# ---------------------------------------------------------------- sequences that get a gradient


def _hardest(state):
    distance = (state[:8] - state[8:]).square().sum(1)
    return distance.max()


def _cell(rnn, x):
    h = torch.zeros(len(x), 8)
    for t in range(x.shape[1]):
        h = rnn(x[:, t], h)
    return _hardest(h)


def _packed(rnn, x):
    lengths = torch.arange(len(x)) % 5 + 16
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return rnn(packed)[0].data.new_zeros(()) + rnn(packed)[1][-1][-1].square().sum()


SOME = {
    "the hardest pair, h_n": (lstm(), lambda rnn, x: _hardest(rnn(x)[1][0][-1]), 2),
    "the hardest pair, output": (nn.GRU(3, 8, batch_first=True), lambda rnn, x: _hardest(rnn(x)[0][:, -1]), 2),
    "the hardest pair, cells": (nn.GRUCell(3, 8), _cell, 2),
    "the last sequence alone, packed": (nn.GRU(3, 8, batch_first=True), _packed, 1),
    "every third": (lstm(), lambda rnn, x: rnn(x)[0][2::3, -1].square().mean(), 5),
}


@pytest.mark.parametrize("limit", [1, 8, None])
@pytest.mark.parametrize("case", SOME)
def test_sequences_with_a_gradient_are_measured_and_counted(tmp_path, case, limit):
    """Whichever of the batch they are; the summary says how many get one, and never that nothing was observed."""
    rnn, reads, count = SOME[case]
    watch, found = fit(tmp_path, rnn, reads, max_sequences=limit)
    records = [record for record in load_run(watch.run_dir).profile_records if record["state"] == "h"]
    assert all(max(record["total"]) > 0 for record in records)
    assert {record["with_gradient"] for record in records if record["with_gradient"]} == {count}
    layer = next(iter(found.values()))
    assert layer.verdict != Verdict.NOT_OBSERVED
    assert f"Of the 16 sequences of a batch {count} {'gets' if count == 1 else 'get'} a gradient." in layer.sentence
    assert layer.horizon is not None


@pytest.mark.parametrize("rnn", [nn.LSTM(3, 8), nn.GRU(3, 8, 2), nn.RNN(3, 8, bidirectional=True)])
def test_a_forgotten_batch_first_is_named_as_a_possibility(tmp_path, rnn):
    """One of 30 sequences gets a gradient in a module with time first: the facts, and what may be behind them."""
    _, found = fit(tmp_path, rnn, lambda rnn, x: rnn(x)[0][:, -1].square().mean(), timesteps=30)
    for layer in found.values():
        assert layer.verdict == Verdict.BARELY_REACHED
        assert "Of the 30 sequences of a batch 1 gets a gradient." in layer.sentence
        assert "if 30 is the number of timesteps, batch_first=True was forgotten" in layer.sentence


def test_choosing_sequences_leaves_training_and_random_numbers_alone(tmp_path):
    """Weights and generator after a run in which few sequences get a gradient are those of a run without GradWatch."""

    def end(callbacks):
        torch.manual_seed(1)
        model = Reads(lstm(), SOME["the hardest pair, h_n"][1])
        data = DataLoader(TensorDataset(torch.randn(64, 20, 3)), 16)
        trainer(tmp_path, callbacks, max_steps=4).fit(model, data)
        return [*model.state_dict().values(), torch.get_rng_state()]

    watched = end([GradWatch(every_n_steps=1, max_sequences=2, dirpath=tmp_path / "run")])
    assert all(map(torch.equal, watched, end([])))


# ---------------------------------------------------------------- numbers and reasons


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_the_number_of_an_event_is_that_of_its_step(tmp_path, kind):
    """Horizon and starving timesteps are those of the profile of the same step, not of an average over several."""
    rnn = getattr(nn, kind)(3, 8, batch_first=True)
    watch, _ = fit(tmp_path, rnn, lambda rnn, x: rnn(x * torch.rand(()) * 5)[0][:, -1].square().mean(), timesteps=60)
    (event,) = [e for e in watch.events if e.kind == EventKind.VANISHING_HIDDEN_GRADIENT and e.action is None]
    records = load_run(watch.run_dir).profile_records
    of_step = [r for r in records if r["step"] == event.step]
    (record,) = [r for r in of_step if r["state"] == "h"]
    assert event.value == record["horizon"]
    (starving,) = map(int, re.findall(r"The (\d+) timesteps furthest", event.message))
    together = [math.hypot(*norms) for norms in zip(*(r["total"] for r in of_step), strict=True)]  # h, and c of an LSTM
    dark = next(place for place, norm in enumerate(together) if norm >= 0.01 * max(together))
    assert abs(starving - dark) <= 1  # the one is a median over sequences, the other is of the median's curve


class Twice(torch.autograd.Function):
    """A user's own operation, whose backward must run once."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Obstructed(nn.Module):
    """A cell in a loop with an ``obstacle`` between the states, and a loss at each of them."""

    def __init__(self, obstacle) -> None:
        super().__init__()
        self.cell, self.obstacle = nn.GRUCell(3, 8), obstacle

    def forward(self, x):
        h, loss = torch.zeros(len(x), 8), 0.0
        for t in range(x.shape[1]):
            h = self.obstacle(self.cell(x[:, t], h))
            loss = loss + h.square().mean()
        return loss


def _hooked(h):
    h.register_hook(lambda gradient: None)
    return h


def _retained(h):
    h.retain_grad()
    return h


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        (Twice.apply, "the backward of Twice in it would run twice"),
        (_hooked, "a hook on its states would be called twice"),
        (_retained, "its states retain their gradients"),
    ],
)
def test_lags_that_cannot_be_taken_are_a_reason_everywhere(tmp_path, capsys, obstacle, reason):
    """In the verdict, the table, the live picture and the page."""
    watch, found = fit(tmp_path, Obstructed(obstacle), lambda rnn, x: rnn(x), timesteps=6)
    layer = found[0, "forward"]
    assert layer.verdict == Verdict.UNDECIDED
    assert layer.sentence.count(reason) == 1
    assert "sends no gradient" not in layer.sentence
    run = load_run(watch.run_dir)
    for command in (["events", str(run.path)], ["watch", "--once", str(run.path)]):
        assert main(command) == 0
        assert reason in " ".join(capsys.readouterr().out.split())
    assert reason in write_report(run, tmp_path / "page.html").read_text("utf-8")


class TwoLayers(nn.Module):
    """Two cells, one on the other; ``early`` has the upper one stop so many timesteps before the lower one does."""

    def __init__(self, kind: str, early: int, sliced: bool) -> None:
        super().__init__()
        self.lower, self.upper = getattr(nn, kind)(3, 8), getattr(nn, kind)(8, 8)
        self.early, self.sliced = early, sliced

    def forward(self, x):
        low = high = None
        states, self.lows = [], []
        for t in range(x.shape[1]):
            low = self.lower(x[:, t], low)
            h = low[0] if isinstance(low, tuple) else low
            self.lows.append(h)
            if self.sliced or t < x.shape[1] - self.early:
                high = self.upper(h, high)
                states.append(high[0] if isinstance(high, tuple) else high)
        output = torch.stack(states, 1)
        return output[:, : x.shape[1] - self.early].square().mean()


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("early", [1, 3])
@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_lags_start_at_the_last_state_that_the_loss_reaches(tmp_path, kind, early, sliced):
    """Also where the last states of a layer serve no loss; the curve is that of autograd on the same cells."""
    net = TwoLayers(kind, early, sliced)
    before = copy.deepcopy(net)
    batches = []
    watch, _ = fit(tmp_path, net, lambda net, x: batches.append(x) or net(x), timesteps=12, steps=1, max_sequences=None)
    records = load_run(watch.run_dir).profile_records
    (lower,) = [r for r in records if r["state"] == "h" and r["module"] == "rnn.lower"]
    assert lower["exact"]
    assert lower["horizon"] is not None
    assert len(lower["lagged"]) == 12 - early
    if kind != "LSTMCell":  # whose lags are of h and c together
        loss, last = before(batches[0]), 11 - early
        (sent,) = torch.autograd.grad(loss, before.lows[last], retain_graph=True)
        back = torch.autograd.grad(before.lows[last], before.lows[: last + 1], sent)
        norms = torch.stack([gradient.double().norm(dim=1) for gradient in reversed(back)])
        expected = (norms / norms[0]).quantile(0.5, dim=1)
        assert torch.allclose(torch.tensor(lower["lagged"], dtype=torch.float64), expected, rtol=1e-4)


class TestOneSequence:
    """Time taken for the batch: the last "sequence" alone has a loss."""

    def told(self, tmp_path, rnn, reads, **options):
        watch, found = fit(tmp_path, rnn, reads, **options)
        return [event for event in watch.events if event.kind == EventKind.ONE_SEQUENCE_REACHED], found

    @pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
    @pytest.mark.parametrize(("steps", "samples"), [(8, 3), (3, 2), (1, 1)])
    def test_a_forgotten_batch_first_is_an_event_with_its_remedy(self, kind, steps, samples, tmp_path):
        """Once the module, after three samples or at the end of a shorter run; the verdict says the same."""
        (event,), found = self.told(tmp_path, kind(3, 8, 2), lambda n, x: n(x)[0][:, -1].square().mean(), steps=steps)
        assert (event.module, event.value, event.threshold, event.severity) == ("rnn", 1, 20, "warning")
        assert "It is the last one" in event.message
        assert (f"in {samples} samples in a row" in event.message) == (samples > 1)
        assert "batch_first=False and took its input for 16 timesteps of 20 sequences" in event.message
        assert event.remedy.startswith("If 20 is the number of timesteps, batch_first=True was forgotten")
        assert {layer.verdict for layer in found.values()} == {Verdict.BARELY_REACHED}

    def test_the_remedy_ends_it(self, tmp_path):
        """With batch_first=True every sequence gets a gradient."""
        rnn = nn.LSTM(3, 8, batch_first=True)
        events, found = self.told(tmp_path, rnn, lambda n, x: n(x)[0][:, -1].square().mean())
        assert events == []
        assert found[0, "forward"].verdict != Verdict.BARELY_REACHED

    def test_one_that_is_fed_time_first_is_told_so(self, tmp_path):
        """The mirror image: batch_first=True, and an input that has time first."""
        rnn = nn.GRU(3, 8, batch_first=True)
        (event,), found = self.told(tmp_path, rnn, lambda n, x: n(x.transpose(0, 1))[0][-1].square().mean())
        assert event.remedy.startswith("If 20 is the number of timesteps, the input has time first")
        assert "if 20 is the number of timesteps, its input has time first" in found[0, "forward"].sentence

    @pytest.mark.parametrize(
        ("first", "reads", "swapped", "misread"),
        [
            (
                True,
                lambda n, x: n(x)[0][-1],
                "If the input has time first, transpose it",
                ("output[-1]", "output[:, -1]"),
            ),
            (True, lambda n, x: n(x)[0][0], "If the input has time first, transpose it", ("output[0]", "output[:, 0]")),
            (False, lambda n, x: n(x)[0][:, -1], "batch_first=True was forgotten", ("output[:, -1]", "output[-1]")),
        ],
    )
    def test_as_many_sequences_as_timesteps_may_be_either(self, first, reads, swapped, misread, tmp_path):
        """No number tells the axes apart: the remedy names the input, and the output read along the wrong axis."""
        rnn = nn.LSTM(3, 8, batch_first=first)
        (event,), found = self.told(tmp_path, rnn, lambda n, x: reads(n, x).square().mean(), batch=20)
        assert swapped in event.remedy
        assert "is the number of timesteps" not in event.remedy + found[0, "forward"].sentence
        assert "20 timesteps of 20 sequences: if it is the other way round" in found[0, "forward"].sentence
        sequence, timestep = misread
        assert f"If not, {sequence} reads the " in event.remedy
        assert f"timestep is {timestep}." in event.remedy

    def test_a_loop_along_the_wrong_axis_is_told(self, tmp_path):
        """A cell of one's own steps over the batch; nothing is said of batch_first."""

        def reads(cell, x):
            h, made = x.new_zeros(x.shape[1], 8), []
            for row in x:
                h = cell(row, h)
                made.append(h)
            return torch.stack(made)[:, -1].square().mean()

        (event,), _ = self.told(tmp_path, nn.GRUCell(3, 8), reads)
        assert "batch_first" not in event.message + event.remedy
        assert "which axis of the input is time" in event.remedy

    @pytest.mark.parametrize("first", [True, False])
    def test_the_hardest_of_a_batch_is_no_such_thing(self, first, tmp_path):
        """It lies at places that change."""
        rnn = nn.LSTM(3, 8, batch_first=first)

        def hardest(n, x):
            return n(x if first else x.transpose(0, 1))[1][0][-1].square().sum(1).max()

        events, _ = self.told(tmp_path, rnn, hardest, steps=16)
        assert events == []

    @pytest.mark.parametrize("batch", [1, 2])
    def test_of_one_or_two_sequences_nothing_is_said(self, batch, tmp_path):
        """A stream has one, and of a pair one may be enough."""
        events, _ = self.told(
            tmp_path, nn.GRU(3, 8, batch_first=True), lambda n, x: n(x)[0][-1, -1].square().mean(), batch=batch
        )
        assert events == []
