"""Calls of cells that nobody asks for."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch.recurrent import Capture, Loop
from lightning_gradwatch.recurrent.capture.slots import Slots
from lightning_gradwatch.recurrent.capture.unread import HOOKED_LATE


class OwnCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(2 + 3, 3)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.both(torch.cat((x, h), -1)))


CELLS: dict[str, Callable[[], nn.Module]] = {
    "LSTMCell": lambda: nn.LSTMCell(2, 3),
    "GRUCell": lambda: nn.GRUCell(2, 3),
    "own cell": OwnCell,
}


def watched(cell: nn.Module) -> Capture:
    capture = Capture({"cell": cell})
    if isinstance(cell, OwnCell):
        capture.loops.slots["cell"] = Slots(("h",), ("h",), ("",), ("x", "h"))
    capture.attach()
    return capture


def states(cell: nn.Module, timesteps: int) -> list[Tensor]:
    """The leading state at each timestep."""
    zeros = torch.zeros(4, 3)
    state, made = (zeros, zeros) if isinstance(cell, nn.LSTMCell) else zeros, []
    for _ in range(timesteps):
        state = cell(torch.ones(4, 2), state)
        made.append(state[0] if isinstance(state, tuple) else state)
    return made


def ours(run: Callable[[], object]) -> Counter[str]:
    """How often a function of GradWatch's was called in it, by its file."""
    seen: Counter[str] = Counter()

    def look(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and "lightning_gradwatch" in frame.f_code.co_filename:
            seen[frame.f_code.co_filename.rsplit("/", 1)[1]] += 1

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(before)
    return seen


@pytest.mark.parametrize("name", CELLS)
def test_a_call_costs_a_few_function_calls_and_no_walk(name: str) -> None:
    """On a step that is not measured, a call is put by: no sequence is made and no graph read, and what is done to it
    does not depend on how many went before.
    """
    cell = CELLS[name]()
    capture = watched(cell)

    def step(timesteps: int) -> Counter[str]:
        capture.begin(announced=True)
        seen = ours(lambda: states(cell, timesteps)[-1])
        capture.listen()
        return seen

    first, second = step(20), step(40)
    per_call = {file: (second[file] - first[file]) / 20 for file in second}
    assert sum(per_call.values()) <= 16, per_call
    assert not {"loop.py", "gradient_slot.py", "edges.py", "ways_up.py"} & set(second)
    capture.detach()


@pytest.mark.parametrize("name", CELLS)
def test_what_was_put_by_has_the_gradients_that_flowed(name: str) -> None:
    """Asked for after the backward pass, the sequence is there, with autograd's own gradients."""
    cell = CELLS[name]()
    capture = watched(cell)
    for _ in range(3):  # what listens is put onto another graph each time
        capture.begin(announced=True)
        made = states(cell, 6)
        for state in made:
            state.retain_grad()
        loss = sum(state.square().sum() for state in made[::2])
        capture.listen()
        loss.backward()
        taken = capture.take_heard()
        assert taken.modules == {"cell"}
        (loop,) = taken.calls
        assert isinstance(loop, Loop)
        for kept, state in zip(loop.h, made, strict=True):
            value = kept.slot.value()
            assert (value is None) == (state.grad is None)
            assert value is None or torch.equal(value, state.grad)
        taken.release()
    capture.detach()


def test_a_hook_of_the_models_comes_before_ours() -> None:
    """What a hook on a state makes of its gradient is what flows on, and what is kept."""
    cell = OwnCell()
    capture = watched(cell)
    capture.begin(announced=True)
    made = states(cell, 4)
    made[2].register_hook(lambda gradient: 10 * gradient)
    capture.listen()
    made[2].sum().backward()
    (loop,) = capture.take_heard().calls
    assert isinstance(loop, Loop)
    assert loop.doubt is None
    assert torch.equal(loop.h[2].slot.value(), torch.full((4, 3), 10.0))
    capture.detach()


def test_a_hook_put_on_too_late_leaves_a_doubt() -> None:
    """It may change what flows on after ours saw it, so the sequence is not said to be exact."""
    cell = OwnCell()
    capture = watched(cell)
    capture.begin(announced=True)
    made = states(cell, 4)
    capture.listen()
    made[2].register_hook(lambda gradient: 10 * gradient)
    made[-1].sum().backward()
    (loop,) = capture.take_heard().calls
    assert isinstance(loop, Loop)
    assert loop.doubt == HOOKED_LATE
    capture.detach()


def test_a_graph_that_is_kept_writes_into_no_later_step() -> None:
    """A second backward pass through the graph of an earlier step is none of the present one."""
    cell = OwnCell()
    capture = watched(cell)

    def forward() -> Tensor:
        capture.begin(announced=True)
        loss = states(cell, 4)[-1].sum()
        capture.listen()
        return loss

    kept = forward()
    kept.backward(retain_graph=True)
    capture.take_heard().release()
    forward()
    kept.backward()
    assert not capture.arrived()
    capture.detach()


def test_what_no_loss_reached_is_told() -> None:
    """A module that was called, and whose states got no gradient, is not among those that were reached."""
    cell = OwnCell()
    capture = watched(cell)
    capture.begin(announced=True)
    states(cell, 3)
    capture.listen()
    taken = capture.take_heard()
    assert (taken.modules, taken.unreached) == (set(), {"cell"})
    taken.release()
    capture.detach()


def test_a_forward_that_was_replaced_is_heard_from_the_next_step_on() -> None:
    """Somebody gives a cell another forward while it trains: its calls are heard, each once."""
    cell = OwnCell()
    capture = watched(cell)
    mine = OwnCell.forward.__get__(cell)
    cell.forward = lambda x, h: mine(x, h)  # type: ignore[method-assign]
    capture.begin(announced=True)
    states(cell, 3)
    (loop,) = capture.read_calls()
    assert isinstance(loop, Loop)
    assert len(loop.steps) == 3
    capture.detach()
    assert not hasattr(cell.forward, "all_calls")
