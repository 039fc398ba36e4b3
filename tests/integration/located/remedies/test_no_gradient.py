"""The remedies of NO_GRADIENT_THROUGH_TIME and NOT_OBSERVED, applied to what provoked the event: it is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import EventKind, GradWatch, load_run, tap
from tests.integration.recurrences import (
    HIDDEN,
    WIDTH,
    ByHand,
    OwnCell,
    Run,
    WithStart,
    cell,
    fused,
    lstm_cell,
    series,
    zeros,
)
from tests.models import trainer


def kinds_and_lengths(net: nn.Module, run: Run, folder: Path) -> tuple[set[EventKind], set[int]]:
    """The kinds of events of a short training, and the lengths of the sequences that were measured."""
    torch.manual_seed(0)
    watch = GradWatch(dirpath=folder, every_n_steps=1, summary=False)
    trainer(folder, [watch], max_steps=3).fit(ByHand(net, run), series())
    return {event.kind for event in watch.events}, {r["timesteps"] for r in load_run(folder).profile_records}


def detached(state: Any) -> Any:
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


def passed_on(state: Any) -> Any:
    return state


def begins(net: WithStart, x: Tensor, anew: bool) -> Tensor:
    """With a trained state: at every step, or at the first alone."""
    state, total = net.begin(x), 0
    for t in range(x.shape[1]):
        output, made = net.rnn(x[:, t : t + 1], state)
        state = net.begin(x) if anew else made
        total = total + output.square().mean()
    return total


def tapped(net: nn.ModuleList, x: Tensor, pass_on: Callable[[Tensor], Tensor], after: bool) -> Tensor:
    h, total = zeros(x), 0
    for t in range(x.shape[1]):
        out = torch.tanh(net[0](x[:, t]) + net[1](h))
        h = tap(pass_on(out), "mine") if after else pass_on(tap(out, "mine"))
        total = total + out.square().mean()
    return total


def two_layers() -> nn.Module:
    return nn.ModuleList([nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, HIDDEN)])


def gru() -> nn.Module:
    return nn.GRU(WIDTH, HIDDEN, batch_first=True)


SEVERED: dict[str, tuple[Callable[[], nn.Module], Run, Run]] = {
    "nn.LSTMCell, detached": (lambda: nn.LSTMCell(WIDTH, HIDDEN), lstm_cell(torch.detach), lstm_cell(passed_on)),
    "nn.GRUCell, reset": (lambda: nn.GRUCell(WIDTH, HIDDEN), cell(torch.zeros_like), cell(passed_on)),
    "a cell of one's own, detached": (OwnCell, cell(torch.detach), cell(passed_on)),
    "nn.GRU, detached": (gru, fused(detached), fused(passed_on)),
    "nn.LSTM, detached": (lambda: nn.LSTM(WIDTH, HIDDEN, 2, batch_first=True), fused(detached), fused(passed_on)),
    "nn.GRU, no state": (gru, fused(lambda h: None), fused(passed_on)),
    "nn.GRU, masked, detached": (gru, fused(lambda h: h.detach() * 0.9), fused(lambda h: h * 0.9)),
    "nn.GRU, a trained state": (lambda: WithStart(gru()), lambda n, x: begins(n, x, True), lambda n, x: begins(n, x, False)),
    "a tap after the detach": (
        two_layers,
        lambda net, x: tapped(net, x, torch.detach, True),
        lambda net, x: tapped(net, x, passed_on, True),
    ),
    "a tap before the detach": (
        two_layers,
        lambda net, x: tapped(net, x, torch.detach, False),
        lambda net, x: tapped(net, x, passed_on, False),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", SEVERED)
def test_to_pass_the_state_on(form: str, tmp_path: Path) -> None:
    """Without detach() and without a new initial state the event is gone, and all timesteps are one sequence."""
    make, broken, mended = SEVERED[form]
    assert kinds_and_lengths(make(), broken, tmp_path / "broken")[0] == {EventKind.NO_GRADIENT_THROUGH_TIME}
    events, lengths = kinds_and_lengths(make(), mended, tmp_path / "mended")
    assert EventKind.NO_GRADIENT_THROUGH_TIME not in events
    assert EventKind.NOT_OBSERVED not in events
    assert lengths == {12}


class WithHead(nn.Module):
    """A recurrent module beside a linear one."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(HIDDEN, 1)


def to_the_loss(used: bool) -> Run:
    def run(net: WithHead, x: Tensor) -> Tensor:
        output, _ = net.rnn(x)
        return net.head(output if used else output.detach()).square().mean()

    return run


def without_no_grad(used: bool) -> Run:
    def run(net: WithHead, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(used):
            output, _ = net.rnn(x)
        return net.head(output).square().mean()

    return run


def cell_to_the_loss(used: bool) -> Run:
    def run(net: WithHead, x: Tensor) -> Tensor:
        h = zeros(x)
        for t in range(x.shape[1]):
            h = net.rnn(x[:, t], h)
        return net.head(h if used else h.detach()).square().mean()

    return run


@pytest.mark.parametrize(
    ("make", "run"),
    [(gru, to_the_loss), (gru, without_no_grad), (lambda: nn.GRUCell(WIDTH, HIDDEN), cell_to_the_loss)],
    ids=["detached", "no_grad", "a cell"],
)
def test_to_let_the_output_reach_the_loss(make: Any, run: Callable[[bool], Run], tmp_path: Path) -> None:
    """A module whose output the loss does not reach is not observed; once it does, it is."""
    events, lengths = kinds_and_lengths(WithHead(make()), run(False), tmp_path / "broken")
    assert (events, lengths) == ({EventKind.NOT_OBSERVED}, set())
    events, lengths = kinds_and_lengths(WithHead(make()), run(True), tmp_path / "mended")
    assert EventKind.NOT_OBSERVED not in events
    assert lengths == {12}


def by_weights(mark: Callable[[Tensor], Tensor]) -> Run:
    """A recurrence over bare weights, which is no module."""

    def run(net: nn.ModuleList, x: Tensor) -> Tensor:
        h = zeros(x)
        for t in range(x.shape[1]):
            h = mark(torch.tanh(net[0](x[:, t]) + h @ net[1].weight))
        return h.square().mean()

    return run


def test_to_mark_the_states(tmp_path: Path) -> None:
    """Where no recurrent module is found, the states that tap() marks are measured."""
    with pytest.warns(UserWarning, match="found no recurrent module"):
        _, lengths = kinds_and_lengths(two_layers(), by_weights(passed_on), tmp_path / "broken")
    assert not lengths
    events, lengths = kinds_and_lengths(two_layers(), by_weights(tap), tmp_path / "mended")
    assert EventKind.NOT_OBSERVED not in events
    assert lengths == {12}
