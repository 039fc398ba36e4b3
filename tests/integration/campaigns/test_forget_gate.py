"""When the horizon that is predicted from an LSTM's forget gate is the one that is measured, on inputs that are noise."""

from __future__ import annotations

import math

import pytest

from benchmarks.starts.forget_gate import expected, measured
from lightning_gradwatch.profile import gradient_horizon

TIMESTEPS = 120


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("bias", [0.0, 1.0, 2.0, 3.0])
def test_without_recurrent_weights_the_gate_alone_says_it(bias: float, seed: int) -> None:
    """From the second timestep back on: the first step is from h and c to c alone, of which the gate knows nothing."""
    row = measured(bias, 0.0, timesteps=TIMESTEPS, seed=seed)
    keep = 1 / (1 + math.exp(-bias))
    assert row.predicted is not None
    assert gradient_horizon(row.lagged / row.lagged[1] * keep).lag == pytest.approx(row.predicted, rel=0.05)
    assert row.horizon < row.predicted


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("bias", "factor"), [(0, 0), (0, 0.25), (0, 1), (1, 0), (1, 0.25), (1, 0.5), (2, 0), (2, 0.25)]
)
def test_with_them_the_closed_form_does(bias: float, factor: float, seed: int) -> None:
    """Near rest, the path through the candidate included: within 10 % or one timestep."""
    row = measured(bias, factor, timesteps=TIMESTEPS, seed=seed)
    assert not row.censored
    assert row.horizon == pytest.approx(expected(bias, factor), rel=0.1, abs=1.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_with_pytorchs_own_at_bias_1_it_is_nearer_than_the_gate_alone(seed: int) -> None:
    """Within 15 %, where the gate alone is off by two fifths."""
    row = measured(1, 1, timesteps=TIMESTEPS, seed=seed)
    assert row.horizon == pytest.approx(expected(1, 1), rel=0.15)
    assert row.predicted is not None
    assert row.horizon > 1.5 * row.predicted


def test_where_the_gates_stand_open_it_predicts_no_end() -> None:
    """With a bias of 2 and PyTorch's own recurrent weights the two paths together keep more than the whole."""
    assert expected(2, 1) is None
    row = measured(2, 1, timesteps=TIMESTEPS)
    assert row.censored
    assert row.predicted == 37
