"""Each start writes what its publication says, and nothing where it does not fit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_gradwatch import initialise_
from tests.asserts import assert_identical

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
KEEPS = {"LSTM": 1, "GRU": 1}  # the second block of rows in both


def made(kind: str, **options) -> nn.RNNBase:
    return getattr(nn, kind)(3, 16, **options)


def gate_biases(module: nn.Module, ending: str) -> Tensor:
    """The sum of both biases, a row a gate."""
    both = getattr(module, f"bias_ih{ending}") + getattr(module, f"bias_hh{ending}")
    return both.detach().view(-1, 16)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_gate_that_keeps_gets_the_logarithm_of_the_length(kind: str) -> None:
    """In every layer and direction, as the sum of the two biases; other gates stay."""
    module = made(kind, num_layers=2, bidirectional=True)
    before = copy.deepcopy(module)
    assert initialise_(module, "gate_bias", timesteps=50) is module
    for ending in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        new, old = gate_biases(module, ending), gate_biases(before, ending)
        assert torch.allclose(new[KEEPS[kind]], torch.full((16,), math.log(50)))
        others = [gate for gate in range(GATES[kind]) if gate != KEEPS[kind]]
        assert_identical(new[others], old[others])
        assert_identical(getattr(module, f"weight_hh{ending}"), getattr(before, f"weight_hh{ending}"))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "LSTMCell", "GRUCell"])
def test_chrono_has_a_unit_for_each_time_scale(kind: str) -> None:
    """1 + exp(b) lies within 2 and T; an LSTM's input gate has the opposite bias."""
    module = initialise_(made(kind), "chrono", timesteps=300)
    biases = gate_biases(module, "" if "Cell" in kind else "_l0")
    scales = 1 + biases[1].exp()
    assert ((scales >= 2 - 1e-4) & (scales <= 300 + 1e-2)).all()
    assert scales.std() > 10
    if "LSTM" in kind:
        assert torch.allclose(biases[0], -biases[1])


def test_uniform_gates_are_spread_evenly() -> None:
    """σ(b) lies within 1/d and 1 − 1/d, on either side of a half."""
    gates = gate_biases(initialise_(made("LSTM"), "uniform_gates", timesteps=9), "_l0")[1].sigmoid()
    assert ((gates >= 1 / 16 - 1e-6) & (gates <= 15 / 16 + 1e-6)).all()
    assert (gates < 0.5).any()
    assert (gates > 0.5).any()


@pytest.mark.parametrize("kind", list(GATES))
def test_each_gate_turns_and_keeps_the_norm(kind: str) -> None:
    """WᵀW is the identity, gate by gate."""
    module = initialise_(made(kind), "orthogonal", timesteps=9)
    for block in module.weight_hh_l0.detach().split(16):
        assert torch.allclose(block.T @ block, torch.eye(16), atol=1e-5)


def test_a_projected_state_has_orthogonal_columns() -> None:
    """With proj_size the weights are no square."""
    module = initialise_(made("LSTM", proj_size=4), "orthogonal", timesteps=9)
    for block in module.weight_hh_l0.detach().split(16):
        assert torch.allclose(block.T @ block, torch.eye(4), atol=1e-5)


def test_a_relu_network_repeats_itself() -> None:
    """Without input, a state that is not negative comes out as it went in."""
    module = initialise_(made("RNN", nonlinearity="relu"), "identity", timesteps=9)
    h = torch.rand(1, 2, 16)
    assert torch.equal(module(torch.zeros(5, 2, 3), h)[1], h)


@pytest.mark.parametrize(
    ("module", "start", "says"),
    [
        (nn.RNN(3, 16), "chrono", "it is for LSTM and GRU"),
        (nn.RNN(3, 16), "identity", 'it is for nonlinearity="relu"'),
        (nn.LSTM(3, 16), "identity", "it is for RNN"),
        (nn.LSTM(3, 16, bias=False), "gate_bias", "bias=False has none"),
        (nn.Linear(3, 3), "orthogonal", "There is no nn.RNN"),
        (nn.LSTM(3, 16), "best", "must be one of"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_written(module: nn.Module, start: str, says: str) -> None:
    """The error names the rule."""
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="`start` must be") as error:
        initialise_(module, start, timesteps=9)
    assert says in str(error.value)
    assert_identical(dict(module.state_dict()), dict(before))


def test_weights_that_are_computed_are_refused() -> None:
    """What would be written would be lost at the next forward."""
    with pytest.raises(ValueError, match="holds its weights itself"):
        initialise_(weight_norm(nn.LSTM(3, 16), "weight_hh_l0"), "orthogonal", timesteps=9)


def test_in_a_model_only_what_it_fits_changes() -> None:
    """A start for gates passes over the plain RNN."""
    model = nn.ModuleDict({"plain": nn.RNN(3, 16), "gated": nn.GRU(3, 16)})
    before = copy.deepcopy(model)
    initialise_(model, "gate_bias", timesteps=20)
    assert_identical(dict(model["plain"].state_dict()), dict(before["plain"].state_dict()))
    assert torch.allclose(gate_biases(model["gated"], "_l0")[1], torch.full((16,), math.log(20)))
