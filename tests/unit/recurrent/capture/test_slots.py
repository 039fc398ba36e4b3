"""What the states of a cell are called."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from lightning_gradwatch.recurrent.capture.slots import Slots


class Cell(nn.Module):
    """Its states go in together."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return x + state[0], state[1]


@pytest.mark.parametrize(
    ("returns", "names"),
    [
        ({("", "h"): 5}, ("h",)),
        ({("[1]", "memory"): 5}, ("h",)),
        ({("[0]", "state[0]"): 5}, ("h",)),
        ({("[1]", "argument 1"): 5}, ("h",)),
        ({("[1]", "state[1]"): 5}, ("state[1]",)),
        ({(".c", "state.c"): 5}, ("c",)),
        ({("[0]", "c"): 5, ("[1]", "h"): 5}, ("h", "c")),
        ({("[0]", "state[0]"): 5, ("[1]", "state[1]"): 5}, ("state[0]", "state[1]")),
        ({("[0]", "c_prev"): 5, ("[1]", "h_prev"): 5, ("[2]", "prev_n"): 5}, ("h", "c", "n")),
        ({("[0]", "c_prev"): 5, ("[1]", "c"): 5}, ("c_prev", "c")),
    ],
    ids=str,
)
def test_a_state_alone_is_called_h_unless_it_goes_in_behind_another(returns, names) -> None:
    """As an LSTM's c does where something between the calls makes its h anew."""
    assert Slots.from_returns(Cell(), returns).names == names
