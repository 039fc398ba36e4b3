"""Which modules are found, and under which names."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_gradwatch.recurrent.capture.modules import discover, plain_name


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("rnn", "rnn"),
        ("_orig_mod.rnn", "rnn"),
        ("net._fsdp_wrapped_module.rnn", "net.rnn"),
        ("net._checkpoint_wrapped_module._orig_mod.cells.0", "net.cells.0"),
        ("", "model"),
        ("_orig_mod", "model"),
    ],
)
def test_what_wrappers_put_into_a_name_is_left_out(name: str, plain: str) -> None:
    """Compilers and sharding wrappers leave no trace in a module's name."""
    assert plain_name(name) == plain


def test_patterns_choose_among_the_recurrent_modules() -> None:
    """Shell-style patterns match qualified names; without any, every recurrent module and cell is found."""
    model = nn.ModuleDict(
        {
            "encoder": nn.ModuleList([nn.LSTM(2, 3), nn.GRUCell(2, 3)]),
            "decoder": nn.RNN(2, 3),
            "head": nn.Linear(3, 1),
        }
    )
    assert set(discover(model)) == {"encoder.0", "encoder.1", "decoder"}
    assert set(discover(model, ["encoder.*"])) == {"encoder.0", "encoder.1"}
    assert set(discover(model, ["*der", "encoder.1"])) == {"decoder", "encoder.1"}


def test_a_pattern_may_name_a_module_of_ones_own() -> None:
    """A name that is no recurrent module of PyTorch's is taken as one's own cell, if it exists."""
    model = nn.ModuleDict({"mine": nn.Linear(3, 3)})
    assert set(discover(model, ["mine"])) == {"mine"}
    with pytest.raises(ValueError, match="'other' matches none of those there are: none"):
        discover(model, ["other"])
