"""What modules carry in plain attributes from batch to batch."""

from __future__ import annotations

import torch
from torch import nn

from lightning_gradwatch.trainer.attributes import attributes, holds_tensors, may_carry


class Carries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(2, 3)
        self.scale = nn.Parameter(torch.ones(1))
        self.state = (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
        self.history = {"last": [torch.ones(2)]}
        self.nothing: list[torch.Tensor] = []
        self.name = "mine"


def test_states_are_found_and_copied() -> None:
    """Tensors in any nesting, as copies; parameters, texts and torch's own modules are left alone."""
    module = nn.ModuleDict({"inner": Carries()})
    found = attributes(module, holds_tensors)
    assert {name: set(own) for name, own in found.items()} == {"inner": {"state", "history"}}
    module["inner"].state[0].fill_(7.0)
    assert float(found["inner"]["state"][0].sum()) == 0.0


def test_a_copy_has_no_graph() -> None:
    """It keeps nothing of the step alive that made the state."""
    carries = Carries()
    carries.state = (carries.scale * 2,)
    copy = attributes(carries, holds_tensors)[""]["state"][0]
    assert copy.grad_fn is None
    assert not copy.requires_grad


def test_what_may_carry_a_state_later() -> None:
    """None and empty containers may; a leaf that trains may not, since an optimizer may hold it."""
    assert may_carry(None)
    assert may_carry((None, []))
    assert may_carry([torch.zeros(2)])
    assert not may_carry(torch.zeros(2, requires_grad=True))
    assert not may_carry("text")
