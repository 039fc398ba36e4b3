"""Gates that are saturated so far that their weights learn nothing, told apart from all that looks like it, in real trainings."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from lightning_gradwatch import EventKind
from lightning_gradwatch.detect import SaturationDetector
from lightning_gradwatch.events import Moment
from lightning_gradwatch.forward import Gate, Saturation
from tests.integration.located.remedies.fits import fit
from tests.profiles import profile

SHUT = Saturation((Gate("output gate", 1.0, 0.0, True),), (0.0, 0.1, 0.9), 1.0, 3.0, None, 20.0, 16)
SATURATED = EventKind.SATURATED_GATES


def net(kind: str, channels: int = 3, **options) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList([getattr(nn, kind)(channels, 16, batch_first=True, **options), nn.Linear(16, 1)])


def loss(net, batch):
    x, y = batch
    return nn.functional.mse_loss(net[1](net[0](x)[0][:, -1])[:, 0], y)


def data(change=lambda x: x, channels: int = 3):
    torch.manual_seed(1)
    x = torch.randn(64, 15, channels)
    return change(x), x[:, -3:, 0].sum(1)


def with_channel(values):
    return lambda x: torch.cat([x[..., :2], torch.as_tensor(values).expand(64, 15, 1)], -1)


LARGE = {
    "numbers of 1e6": lambda x: 1e6 * x,
    "prices": lambda x: 1e4 + 100 * x.cumsum(1),
    "Kelvin": lambda x: 290 + 5 * x,
    "pixels of three channels": lambda x: 255 * x.sigmoid(),
    "a timestamp": with_channel(1.7e9 + 60 * torch.arange(15.0)[:, None]),
    "a year": with_channel(2024.0),
}


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("change", LARGE)
def test_large_inputs_are_named(tmp_path, kind, change) -> None:
    """One warning, with the gates, their share and the inputs' size; normalisation, and no word of the forget bias as a cure."""
    told = fit(tmp_path, net(kind), loss, data(LARGE[change]))
    (event,) = told.begun(SATURATED)
    assert event.severity == "warning"
    assert "of units and timesteps" in event.message
    assert "The inputs are large" in event.message
    assert event.remedy.startswith("Standardise the inputs")
    assert ("channel 2" in event.message) == (change in ("a timestamp", "a year"))
    assert ("Channel 2 hardly varies" in event.remedy) == (change in ("a timestamp", "a year"))
    assert told.verdicts() == ["saturated"]
    assert not told.begun(EventKind.VANISHING_HIDDEN_GRADIENT)


def test_pixels_from_0_to_255_are_too_large(tmp_path) -> None:
    """28 of them at every timestep saturate an LSTM; divided by 255 they do not."""
    torch.manual_seed(1)
    pixels = 255 * torch.rand(64, 15, 28)
    y = torch.randn(64)
    assert fit(tmp_path / "raw", net("LSTM", 28), loss, (pixels, y)).verdicts() == ["saturated"]
    assert not fit(tmp_path / "scaled", net("LSTM", 28), loss, (pixels / 255, y)).begun(SATURATED)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_pixels_are_too_large_for_many_units_too(tmp_path, kind) -> None:
    """Three channels from 0 to 255 into 64 units; standardised they are no alarm, and the loss is lower."""
    torch.manual_seed(1)
    pixels = 255 * torch.rand(320, 15, 3)
    y = pixels[:, -3:, 0].sum(1) / 255 - 1.5
    made = {}
    for name, x in (("raw", pixels), ("standardised", (pixels - pixels.mean((0, 1))) / pixels.std((0, 1)))):
        torch.manual_seed(0)
        model = nn.ModuleList([getattr(nn, kind)(3, 64, batch_first=True), nn.Linear(64, 1)])
        made[name] = fit(tmp_path / name, model, loss, (x, y), steps=60, every=10)
    assert [len(told.begun(SATURATED)) for told in made.values()] == [1, 0]
    assert made["standardised"].loss() < 0.8 * made["raw"].loss()


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_ordinary_inputs_are_no_alarm(tmp_path, kind) -> None:
    """Of size 1, and of size 10, which slows learning and does not end it."""
    for scale in (1.0, 10.0):
        assert not fit(tmp_path / str(scale), net(kind), loss, data(lambda x: scale * x)).begun(SATURATED)  # noqa: B023


def test_an_open_forget_gate_is_memory(tmp_path) -> None:
    """A forget gate at 1 everywhere is saturated as well, and is what an LSTM remembers by; an update gate near 1 likewise."""
    lstm, gru = net("LSTM"), net("GRU")
    for module, bias in ((lstm[0], 12.0), (gru[0], 4.0)):
        nn.init.constant_(module.bias_ih_l0[16:32], bias)
    for name, model in (("lstm", lstm), ("gru", gru)):
        assert not fit(tmp_path / name, model, loss, data()).begun(SATURATED)


@pytest.mark.parametrize(
    ("kind", "gate", "value", "said"),
    [("LSTM", 0, -20.0, "input gate"), ("LSTM", 3, -20.0, "output gate"), ("GRU", 1, 20.0, "update gate")],
)
def test_a_gate_held_shut_by_its_bias_is_named(tmp_path, kind, gate, value, said) -> None:
    """One-sided saturation of a gate without which nothing is learned: the biases are the cause, and not the inputs."""
    model = net(kind)
    with torch.no_grad():
        model[0].bias_ih_l0[16 * gate : 16 * (gate + 1)] = value
    (event,) = fit(tmp_path, model, loss, data()).begun(SATURATED)
    assert f"the {said} on 100 % of units and timesteps (at {1 if value > 0 else 0})" in event.message
    assert "The biases hold them there" in event.message
    assert event.remedy.startswith("Begin with smaller biases")


def test_weights_that_have_grown_are_named(tmp_path) -> None:
    """A far too large learning rate: the weights, not the inputs, and a lower rate as the remedy."""
    told = fit(tmp_path, net("LSTM"), loss, data(), lr=30.0, steps=30)
    (event,) = told.begun(SATURATED)
    assert "The weights hold them there" in event.message or "The biases hold them there" in event.message
    assert "with a lower learning rate" in event.remedy


def test_dead_relus_are_named(tmp_path) -> None:
    """All pre-activations of a relu RNN are negative: nothing is learned any more."""
    model = net("RNN", nonlinearity="relu")
    nn.init.constant_(model[0].bias_ih_l0, -30.0)
    (event,) = fit(tmp_path, model, lambda n, b: loss(n, b) + n[0](b[0])[1].sum(), data()).begun(SATURATED)
    assert "it is dead there" in event.message
    assert "Where a relu is dead" in event.remedy


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_cell_in_a_loop_is_looked_at_too(tmp_path, kind) -> None:
    """PyTorch's own cells: told with large inputs, with a share of 0 to rounding, and not with ordinary ones."""

    def in_a_loop(net, batch):
        x, y = batch
        state = None
        for t in range(x.shape[1]):
            state = net[0](x[:, t], state)
        h = state[0] if isinstance(state, tuple) else state
        return nn.functional.mse_loss(net[1](h)[:, 0], y)

    for scale in (1.0, 1e6):
        torch.manual_seed(0)
        cell = nn.ModuleList([getattr(nn, f"{kind}Cell")(3, 16), nn.Linear(16, 1)])
        told = fit(tmp_path / str(scale), cell, in_a_loop, data(lambda x: scale * x))  # noqa: B023
        assert len(told.begun(SATURATED)) == (scale > 1)
        assert ("saturated" in told.verdicts()) == (scale > 1)


class OwnCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(16, 16), nn.Linear(3, 16)

    def forward(self, x, h):
        return 0.9 * h + 0.1 * torch.tanh(self.u(x) + self.w(h))


@pytest.mark.parametrize("scale", [1.0, 1e7])
def test_of_an_own_cell_it_is_said_that_its_weights_get_nothing(tmp_path, scale) -> None:
    """Its state leaks on with a healthy gradient, while the weights' own are 0."""

    def in_a_loop(net, batch):
        x, y = batch
        h = torch.zeros(len(x), 16)
        for t in range(x.shape[1]):
            h = net[0](x[:, t], h)
        return nn.functional.mse_loss(net[1](h)[:, 0], y)

    torch.manual_seed(0)
    model = nn.ModuleList([OwnCell(), nn.Linear(16, 1)])
    told = fit(tmp_path, model, in_a_loop, data(lambda x: scale * (x.sign() + 0.5 * x.abs())), every=2)
    assert len(told.begun(SATURATED)) == (scale > 1)
    assert ("saturated" in told.verdicts()) == (scale > 1)


def test_frozen_weights_are_nobody_s_loss(tmp_path) -> None:
    """Where the recurrent weights are not trained, nothing is said of what they fail to learn."""
    model = net("LSTM")
    model[0].requires_grad_(False)
    assert not fit(tmp_path, model, loss, [t.requires_grad_() for t in data(LARGE["numbers of 1e6"])]).begun(SATURATED)


def test_of_a_stack_the_saturated_layer_is_told(tmp_path) -> None:
    """Large inputs saturate the lower layer, and what it hands up is of ordinary size."""
    told = fit(tmp_path, net("LSTM", num_layers=2), loss, data(LARGE["numbers of 1e6"]))
    assert [event.layer for event in told.begun(SATURATED)] == [0]
    assert told.verdicts()[0] == "saturated"
    assert told.verdicts()[1] != "saturated"


@pytest.mark.parametrize("masked", [False, True])
def test_a_module_fed_step_by_step_is_told(tmp_path, masked) -> None:
    """Also where something is done to the state in between, and the gates are not looked at: its weights get nothing at all."""

    def stepped(net, batch):
        x, y = batch
        state = (torch.zeros(1, len(x), 16), torch.zeros(1, len(x), 16))
        for t in range(x.shape[1]):
            _, (h, c) = net[0](x[:, t : t + 1], state)
            state = (h * 1.0, c) if masked else (h, c)
        return nn.functional.mse_loss(net[1](state[0][0])[:, 0], y)

    told = fit(tmp_path, net("LSTM"), stepped, data(lambda x: 1e7 * (x.sign() + x)))
    assert len(told.begun(SATURATED)) == 1
    assert told.verdicts() == ["saturated"]


def test_packed_sequences_and_two_directions_are_told(tmp_path) -> None:
    """Each direction by itself."""

    def both(net, batch):
        x, y = batch
        packed = nn.utils.rnn.pack_padded_sequence(
            x, torch.arange(len(x)) % 12 + 3, batch_first=True, enforce_sorted=False
        )
        return nn.functional.mse_loss(net[0](packed)[1][0].sum((0, 2)), y)

    told = fit(tmp_path, net("LSTM", bidirectional=True), both, data(LARGE["numbers of 1e6"]))
    assert [event.direction for event in told.begun(SATURATED)] == ["forward", "reverse"]


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_the_precision_does_not_matter(tmp_path, precision) -> None:
    """Large inputs are told in each, ordinary ones in none."""
    for scale in (1.0, 1e6):
        told = fit(tmp_path / str(scale), net("GRU"), loss, data(lambda x: scale * x), precision=precision)  # noqa: B023
        assert len(told.begun(SATURATED)) == (scale > 1)


def test_gates_that_close_while_the_loss_falls_are_learned(tmp_path) -> None:
    """A detector fed with a share that sinks: no event where the loss has halved since, one where it has not."""
    shares = [0.3, 0.3, 0.001, 0.001, 0.001]
    for losses, events in (([1.0, 0.8, 0.3, 0.2, 0.1], 0), ([1.0, 0.9, 1.0, 1.1, 1.0], 1)):
        detector = SaturationDetector()
        found = [
            detector(
                dataclasses.replace(profile([[1.0, 1.0]]), gate_gradient=share, saturation=SHUT),
                Moment(step, loss=value),
            )
            for step, (share, value) in enumerate(zip(shares, losses, strict=True))
        ]
        assert sum(event is not None for event in found) == events


def test_one_sample_alone_is_undecided(tmp_path) -> None:
    """It is no event yet, and no "healthy" either."""
    told = fit(tmp_path, net("LSTM"), loss, data(LARGE["numbers of 1e6"]), steps=2, every=50)
    assert not told.begun(SATURATED)
    assert told.verdicts() == ["undecided"]
