"""The remedies of a bad input, of a parameter whose gradient is spoilt, and of a norm that jumps, each tried on what provoked it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_gradwatch import AdaptiveClip, Event, EventKind
from tests.integration.located.remedies.test_nonfinite import data, fit, kinds, squared


def only(events: list[Event], kind: EventKind) -> Event:
    (event,) = [event for event in events if event.kind == kind and event.action is None]
    return event


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_bad_input_is_named_and_mended_in_the_data(cell: type[nn.RNNBase], bad: float, tmp_path) -> None:
    """Sequence and timestep are those of the data; with a number put there the event is gone."""
    x, y = data().tensors
    x[41, 3, 1] = bad
    net = lambda: cell(3, 8, batch_first=True)  # noqa: E731
    watch = fit(tmp_path / "a", squared, dataset=TensorDataset(x, y), net=net())
    event = only(watch.events, EventKind.NONFINITE_INPUT)
    assert (event.step, event.sequence, event.timestep) == (2, 41 - 32, 3)
    assert "Look at this sequence of this batch in the data" in event.remedy
    mended = x.clone()
    mended[41, 3, 1] = 0.0
    assert not kinds(fit(tmp_path / "b", squared, dataset=TensorDataset(mended, y), net=net()))


PENALTIES = {
    "a root": (lambda w: w.square().sum().sqrt(), lambda w: (w.square().sum() + 1e-12).sqrt(), "under the root"),
    "a logarithm": (
        lambda w: (w * (w * 0).log()).nan_to_num().sum(),
        lambda w: (w * (w * 0 + 1e-6).log()).sum(),
        "away from 0",
    ),
    "a power": (lambda w: w.abs().sum() ** 0.5, lambda w: (w.abs().sum() + 1e-12) ** 0.5, "under the root"),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_parameters_gradient_is_mended_at_the_operation_that_it_enters(name: str, tmp_path) -> None:
    """A penalty on the head is NaN at its start of zeros: the head's weight is named; mended there, the event is gone."""

    def penalised(penalty):
        def loss(m, b, i):
            if i == 0:
                nn.init.zeros_(m.head.weight)
            return squared(m, b, i) + 1e-3 * penalty(m.head.weight)

        return loss

    broken, mended, advice = PENALTIES[name]
    watch = fit(tmp_path / "a", penalised(broken))
    event = only(watch.events, EventKind.NONFINITE_GRADIENT)
    assert (event.step, event.parameter) == (0, "head.weight")
    assert advice in event.remedy
    assert not kinds(fit(tmp_path / "b", penalised(mended)))


@pytest.mark.parametrize("at", [30, 45, 60])
def test_a_jump_of_the_norm_is_mended_in_its_batch_or_held(at: int, tmp_path) -> None:
    """The batch that is named holds the outlier; without it the event is gone, and with AdaptiveClip the training is as good."""

    def outlier(m, b, i):
        return squared(m, (b[0], b[1] + 1e4 * (i == at)), i)

    options = {"dataset": TensorDataset(*(torch.cat([t] * 20) for t in data().tensors)), "steps": 80, "rate": 0.05}
    watch = fit(tmp_path / "a", outlier, **options)
    event = only(watch.events, EventKind.EXPLODING_GRADIENT)
    assert (event.step, event.batch_idx) == (at, at)
    assert f"Look at batch {at} of epoch 0 for an outlier" in event.remedy
    assert "AdaptiveClip()" in event.remedy
    assert EventKind.EXPLODING_GRADIENT not in kinds(fit(tmp_path / "b", squared, **options))
    clip = AdaptiveClip()
    held = fit(tmp_path / "c", outlier, clip, **options)
    assert next(e.step for e in clip.events if e.kind == EventKind.GRADIENT_CLIPPED) == at
    assert EventKind.DIVERGED not in kinds(held)
