"""Where a number that is not finite began, beyond what the fault campaign plants."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_gradwatch.detect import CallSource, LoopSource, locate_nonfinite
from lightning_gradwatch.detect.nonfinite import bad_weight
from lightning_gradwatch.events import EventKind, Moment
from lightning_gradwatch.recurrent import Capture, Loop, sweep
from lightning_gradwatch.recurrent.measure.anchors import norm


def places_of(module: nn.Module, run) -> tuple[list[LoopSource | CallSource], torch.Tensor]:
    """What a forward and backward of ``run(module)`` leave, and the loss."""
    capture = Capture({"rnn": module})
    capture.attach()
    try:
        capture.begin()
        loss = run(module)
        loss.backward()
        calls = capture.take()
    finally:
        capture.detach()
    names = [f"rnn.{name}" for name, _ in module.named_parameters()]
    return [
        LoopSource(call) if isinstance(call, Loop) else CallSource(call, sweep(call, anchors=0), names)
        for call in calls
    ], loss


@pytest.mark.parametrize("kind", [nn.GRU, nn.GRUCell])
def test_weights_spoilt_after_the_forward_are_no_cause(kind) -> None:
    """A weight that became NaN after the forward, as an optimizer step with a NaN gradient makes it, is not named as the cause."""
    x = torch.randn(4, 2, 3)
    x[1, 1, 0] = math.nan
    module = kind(3, 5)

    def run(module):
        if isinstance(module, nn.GRU):
            return module(x)[0].sum()
        h = torch.zeros(2, 5)
        for step in x:
            h = module(step, h)
        return h.sum()

    places, loss = places_of(module, run)
    with torch.no_grad():
        module.weight_hh_l0.fill_(math.nan) if kind is nn.GRU else module.weight_hh.fill_(math.nan)
    named = [(f"rnn.{name}", parameter) for name, parameter in module.named_parameters()]
    event = locate_nonfinite(places, float(loss.detach()), named, Moment(0))
    assert event is not None
    assert (event.kind, event.timestep, event.sequence, event.parameter) == (EventKind.NONFINITE_INPUT, 1, 1, None)


def test_a_head_that_spoils_the_loss_is_named() -> None:
    """Behind finite states, a weight of another module that is not finite is named as the cause of the loss."""
    head = nn.Linear(5, 1)
    with torch.no_grad():
        head.weight[0, 2] = math.inf
    places, loss = places_of(nn.LSTM(3, 5), lambda rnn: head(rnn(torch.randn(4, 2, 3))[0]).sum())
    event = locate_nonfinite(places, float(loss.detach()), [("head.weight", head.weight)], Moment(0))
    assert event is not None
    assert (event.kind, event.parameter) == (EventKind.NONFINITE_LOSS, "head.weight")
    assert "The cause is head.weight[0, 2] = inf." in event.message
    assert event.remedy.startswith("The weight was spoilt before this step")


def test_an_infinite_cell_gradient_is_of_the_cell_state() -> None:
    """What arrives at c_n alone is located at the cell state of the last step, one step before it shows in h."""

    def run(rnn):
        _, (_, c_n) = rnn(torch.randn(4, 2, 3))
        c_n.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
        return c_n.sum()

    places, _ = places_of(nn.LSTM(3, 5), run)
    event = locate_nonfinite(places, 0.0, [], Moment(0))
    assert event is not None
    assert (event.kind, event.state, event.timestep) == (EventKind.NONFINITE_HIDDEN_GRADIENT, "c", 3)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_norm_is_finite_exactly_where_all_entries_are(bad: float) -> None:
    """Squares of large float64 numbers overflow, their norm does not; a row with a bad entry keeps a norm that is not finite."""
    rows = torch.tensor([[3e200, 4e200], [bad, 1.0], [0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    found = norm(rows)
    assert torch.allclose(found[[0, 2, 3]], torch.tensor([5e200, 0.0, 5.0], dtype=torch.float64))
    assert not found[1].isfinite()


BAD = {
    "NaN": (torch.ones(3, 4), (1, 2), math.nan),
    "inf": (torch.ones(3, 4), (2, 0), math.inf),
    "beside numbers whose squares overflow": (torch.full((3, 4), 1e30), (0, 1), -math.inf),
    "float64": (torch.full((5,), 1e200, dtype=torch.float64), (4,), math.nan),
    "bfloat16": (torch.ones(3, 4, dtype=torch.bfloat16), (1, 1), math.nan),
    "float16": (torch.ones(3, 4, dtype=torch.float16), (1, 3), math.inf),
    "a parameter": (nn.Parameter(torch.ones(2, 2)), (0, 0), math.nan),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_entry_of_a_weight_is_found(name: str) -> None:
    """With its place; the same weight without it is found sound, whatever its squares come to."""
    weight, place, value = BAD[name]
    assert bad_weight([("w", weight)]) is None
    spoilt = weight.detach().clone()
    spoilt[place] = value
    found = bad_weight([("sound", weight), ("w", nn.Parameter(spoilt))])
    assert found is not None
    assert found[:2] == ("w", ", ".join(map(str, place)))
    assert math.isnan(found[2]) if math.isnan(value) else found[2] == value
    assert found[3] == 1
