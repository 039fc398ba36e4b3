"""Calls of ``forward`` that go around a module's hooks."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch
from torch import nn

from lightning_gradwatch.recurrent.capture.direct_calls import Direct, hear_direct_calls
from lightning_gradwatch.recurrent.capture.inner_calls import has_own_forward


def heard(module: nn.Module) -> tuple[list, object]:
    seen: list = []
    return seen, hear_direct_calls(module, lambda m, inputs, kwargs, outputs: seen.append((m, outputs)))


def test_only_calls_that_go_around_are_told() -> None:
    """A call of the module itself is left to its hooks; one of its forward is told, with its result."""
    cell, x, h = nn.GRUCell(2, 3), torch.ones(1, 2), torch.zeros(1, 3)
    seen, end = heard(cell)
    cell(x, h)
    assert not seen
    made = cell.forward(x, hx=h)
    assert [(m, o is made) for m, o in seen] == [(cell, True)]
    end()
    cell.forward(x, h)
    assert len(seen) == 1
    assert "forward" not in vars(cell)


def test_two_listeners_leave_in_either_order() -> None:
    """The module gets its own forward back when the last one leaves, also the one that was put onto it."""
    cell = nn.RNNCell(2, 3)
    mine = vars(cell)["forward"] = lambda x: x
    ends = [heard(cell)[1] for _ in range(2)]
    for end in ends:
        assert isinstance(vars(cell)["forward"], Direct)
        end()
    assert vars(cell)["forward"] is mine


def test_what_somebody_put_in_front_stays() -> None:
    """A forward that was replaced meanwhile is left alone, and what is beneath it still runs."""
    cell, x, h = nn.RNNCell(2, 3), torch.ones(1, 2), torch.zeros(1, 3)
    _, end = heard(cell)
    beneath = cell.forward
    replaced = vars(cell)["forward"] = lambda x, h: beneath(x, h) + 1
    end()
    assert vars(cell)["forward"] is replaced
    assert torch.equal(cell(x, h), nn.RNNCell.forward(cell, x, h) + 1)


@pytest.mark.parametrize("how", ["copied", "pickled"])
def test_a_copy_computes_with_its_own_weights(how: str) -> None:
    """And nobody hears it."""
    cell, x, h = nn.GRUCell(2, 3), torch.ones(1, 2), torch.zeros(1, 3)
    seen: list = []
    end = hear_direct_calls(cell, seen.append)  # cannot be told of a call: it would fail
    if how == "copied":
        other = copy.deepcopy(cell)
    else:
        file = io.BytesIO()
        torch.save(cell, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    end()
    nn.init.zeros_(other.weight_ih)
    assert torch.equal(other.forward(x, h), nn.GRUCell.forward(other, x, h))
    assert not torch.equal(other.forward(x, h), cell(x, h))
    assert not seen


def test_it_looks_like_what_it_stands_for() -> None:
    """Signature, name and function of a forward are the same as without it."""
    cell = nn.GRUCell(2, 3)
    before = inspect.signature(cell.forward)
    _, end = heard(cell)
    assert inspect.signature(cell.forward) == before
    assert cell.forward.__name__ == "forward"
    assert cell.forward.__func__ is nn.GRUCell.forward
    end()


def test_a_fused_module_has_no_forward_of_its_own_by_it() -> None:
    """What listens to a forward is not taken for a subclass's own."""
    rnn = nn.LSTM(2, 3)
    _, end = heard(rnn)
    assert not has_own_forward(rnn)
    assert not has_own_forward(copy.deepcopy(rnn))
    end()


def test_a_compiled_model_goes_past_it() -> None:
    """torch.compile traces the forward itself, without a break in the graph."""
    cell, x, h = nn.GRUCell(2, 3), torch.ones(1, 2), torch.zeros(1, 3)
    seen, end = heard(cell)
    torch._dynamo.reset()
    made = torch.compile(lambda x, h: cell.forward(x, h), backend="eager", fullgraph=True)(x, h)
    end()
    assert torch.equal(made, cell(x, h))
    assert not seen
