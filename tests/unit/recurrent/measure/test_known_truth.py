"""Networks whose horizon and growth rate are known beforehand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_gradwatch.profile import gradient_horizon, growth_rate
from lightning_gradwatch.recurrent import Capture, profiles, sweep


def lagged(scale: float, timesteps: int = 100):
    """r_k of an nn.RNN in its linear range, W_hh = ``scale``·orthogonal, with a loss at every step."""
    torch.manual_seed(0)
    rnn = nn.RNN(4, 16)
    nn.init.orthogonal_(rnn.weight_hh_l0)
    with torch.no_grad():
        rnn.weight_hh_l0 *= scale
        rnn.weight_ih_l0 *= 1e-6
        rnn.bias_ih_l0.zero_()
        rnn.bias_hh_l0.zero_()
    capture = Capture({"rnn": rnn})
    capture.attach()
    capture.begin()
    output, _ = rnn(torch.randn(timesteps, 8, 4))
    (output * torch.randn_like(output)).sum().backward()
    (call,) = capture.read_calls()
    (profile,) = profiles(call, sweep(call))
    capture.detach()
    return profile.lagged()


@pytest.mark.parametrize("scale", [0.8, 0.95, 1.0, 1.05])
def test_the_growth_rate_is_the_logarithm_of_the_spectral_radius(scale: float) -> None:
    """W_hh = λ·orthogonal gives a growth rate of ln λ to 1e-3."""
    assert growth_rate(lagged(scale)) == pytest.approx(math.log(scale), abs=1e-3)


def test_the_horizon_of_a_known_decay() -> None:
    """λ = 0.9 falls under 1 % after 44 timesteps."""
    horizon = gradient_horizon(lagged(0.9))
    assert (horizon.lag, horizon.censored) == (44, False)


def test_a_horizon_beyond_the_sequence_is_censored() -> None:
    """With λ = 1 the gradient never falls: the horizon is the longest lag seen, and says that it was cut off."""
    horizon = gradient_horizon(lagged(1.0, timesteps=30))
    assert (horizon.lag, horizon.censored) == (29, True)
