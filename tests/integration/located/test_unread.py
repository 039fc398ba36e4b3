"""A direction that the loss does not read at all, and timesteps behind the last one that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_gradwatch import EventKind, GradWatch, load_run
from lightning_gradwatch.runlog.summary import LayerSummary, Verdict, summarise
from tests.integration.recurrences import HIDDEN, WIDTH, ByHand, Run, series
from tests.models import trainer

Layers = dict[tuple[int | None, str | None], LayerSummary]


def fit(net: nn.Module, run: Run, tmp_path: Path, steps: int = 6, **options: Any) -> tuple[GradWatch, Layers]:
    torch.manual_seed(0)
    watch = GradWatch(dirpath=tmp_path / "run", every_n_steps=1, summary=False)
    trainer(tmp_path, [watch], max_steps=steps, **options).fit(ByHand(net, run), series(20, WIDTH))
    log = load_run(tmp_path / "run")
    return watch, {(one.layer, one.direction): one for one in summarise(log.profile_records, log.event_records)}


def rnn(kind: Any, layers: int = 1, **options: Any) -> nn.Module:
    return kind(WIDTH, HIDDEN, layers, bidirectional=True, batch_first=True, **options)


def final(net: nn.Module, x: Tensor) -> Tensor:
    """h_n[-1] of a module in both directions: the reverse one's alone, which is easily overlooked."""
    state = net(x)[1]
    return (state if isinstance(state, Tensor) else state[0])[-1].square().mean()


def packed(net: nn.Module, x: Tensor) -> Tensor:
    lengths = torch.arange(len(x)) + 5
    return net(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1][-1].square().mean()


UNREAD = {
    "an LSTM's h_n[-1]": (lambda: rnn(nn.LSTM), final, "forward"),
    "h_n[-1] of two layers": (lambda: rnn(nn.GRU, 2), final, "forward"),
    "h_n[-1] of packed sequences": (lambda: rnn(nn.RNN), packed, "forward"),
    "the first half of the output": (
        lambda: rnn(nn.GRU),
        lambda net, x: net(x)[0][..., :HIDDEN].square().mean(),
        "reverse",
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_direction_that_nothing_reads_is_told(name: str, tmp_path: Path) -> None:
    """As a warning, with the verdict "barely reached", though the other direction is as it should be."""
    make, run, direction = UNREAD[name]
    net = make()
    watch, layers = fit(net, run, tmp_path)
    (event,) = [event for event in watch.events if event.kind == EventKind.FEW_TIMESTEPS_REACHED]
    top = net.num_layers - 1
    assert (event.layer, event.direction, event.value, event.severity) == (top, direction, 0, "warning")
    assert "The other direction alone is read" in event.message
    assert "torch.cat([h_n[-2], h_n[-1]], -1)" in event.remedy
    assert layers[top, direction].verdict is Verdict.BARELY_REACHED
    assert [place for place, one in layers.items() if one.verdict is Verdict.BARELY_REACHED] == [(top, direction)]
    suffix = "_reverse" if direction == "reverse" else ""
    assert not getattr(net, f"weight_ih_l{top}{suffix}").grad.any()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_remedy_reaches_both(kind: Any, tmp_path: Path) -> None:
    """With the two final states joined no direction is called barely reached."""

    def both(net: nn.Module, x: Tensor) -> Tensor:
        state = net(x)[1]
        h_n = state if isinstance(state, Tensor) else state[0]
        return torch.cat([h_n[-2], h_n[-1]], -1).square().mean()

    watch, layers = fit(rnn(kind, 2), both, tmp_path)
    assert not [event for event in watch.events if event.kind == EventKind.FEW_TIMESTEPS_REACHED]
    assert all(one.verdict is not Verdict.BARELY_REACHED for one in layers.values())


def test_a_module_that_nothing_reads_has_no_such_event(tmp_path: Path) -> None:
    """Where neither direction gets a gradient, it is not one of them that was overlooked."""
    watch, layers = fit(rnn(nn.GRU), lambda net, x: final(net, x) * 0, tmp_path)
    assert not [event for event in watch.events if event.kind == EventKind.FEW_TIMESTEPS_REACHED]
    assert {one.verdict for one in layers.values()} == {Verdict.NOT_OBSERVED}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_horizon_is_held_against_the_timesteps_that_are_due_a_gradient(
    kind: Any, bidirectional: bool, tmp_path: Path
) -> None:
    """Read in the middle, a sequence is no longer than its half: what lies behind gets none, and is due none."""
    torch.manual_seed(0)
    net = kind(WIDTH, HIDDEN, batch_first=True, bidirectional=bidirectional)
    watch, layers = fit(net, lambda net, x: net(x)[0][:, 10].square().mean(), tmp_path)
    short, _ = fit(
        kind(WIDTH, HIDDEN, batch_first=True),
        lambda net, x: net(x[:, :11])[0][:, 10].square().mean(),
        tmp_path / "short",
    )
    told = [event.kind for event in watch.events if event.direction != "reverse"]
    assert told == [event.kind for event in short.events] == []
    layer = layers[0, "forward"]
    assert layer.verdict is Verdict.HEALTHY
    assert "of 20 timesteps (no loss reaches its last 9;" in layer.sentence


def test_what_vanishes_before_half_of_them_still_vanishes(tmp_path: Path) -> None:
    """A forgetful module read in the middle, and the event says what lies behind the loss."""
    net = nn.GRU(WIDTH, HIDDEN, batch_first=True)
    nn.init.constant_(net.bias_ih_l0[HIDDEN : 2 * HIDDEN].data, -4.0)
    watch, layers = fit(net, lambda net, x: net(x)[0][:, 14].square().mean(), tmp_path)
    (event,) = [
        event for event in watch.events if event.kind == EventKind.VANISHING_HIDDEN_GRADIENT and event.action is None
    ]
    assert event.threshold == 7.5
    assert "5 timesteps lie behind the last one that the loss reads, where no gradient is due." in event.message
    assert layers[0, "forward"].verdict is Verdict.VANISHING
