"""The sweep against models unrolled with PyTorch's own cells and autograd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.cases import LOSSES, Case, cases
from tests.sweeps import check, measure


@settings(max_examples=50, deadline=None)
@given(cases())
def test_sweep_agrees_with_autograd_in_float64(case: Case) -> None:
    """Total, direct and lagged gradients of every layer, direction, state and sequence agree with autograd to 1e-10."""
    check(case)


@settings(max_examples=50, deadline=None)
@given(cases(dtype=torch.float32))
def test_sweep_agrees_with_autograd_in_float32(case: Case) -> None:
    """In float32 they agree to 1e-5."""
    check(case)


@settings(max_examples=50, deadline=None)
@given(cases())
def test_chunks_change_nothing(case: Case) -> None:
    """A sweep in chunks of two timesteps finds the same."""
    check(case, chunk=2)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mode", ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_kind_and_loss(mode: str, loss: str, bidirectional: bool) -> None:
    """Every kind agrees with autograd under a loss on all outputs, the last, one in the middle, h_n, c_n and all of them."""
    if loss == "c_n" and mode != "LSTM":
        loss = "h_n"
    check(Case(mode=mode, loss=loss, bidirectional=bidirectional, num_layers=2, layout="packed", lengths=(3, 7, 5)))


def test_some_sequences_of_a_batch_are_exact_too() -> None:
    """Sweeping 2 of 5 sequences gives those two as a sweep of all does."""
    case = Case(lengths=(6,) * 5, num_layers=2, dropout=0.3)
    _, whole, _, _, _ = measure(case)
    _, some, _, _, _ = measure(case, max_sequences=2)
    assert some[0].sequences == (0, 4)
    for p, q in zip(whole, some, strict=True):
        assert np.allclose(p.total[[0, 4]], q.total, rtol=1e-12)


def test_the_hook_on_the_output_sees_only_the_direct_gradient() -> None:
    """With a loss on the last step the direct gradient is 0 everywhere else, while the total is not."""
    _, found, _, _, _ = measure(replace(Case(), loss="last"))
    h = found[0]
    assert (h.direct[:, :-1] == 0).all()
    assert (h.total[:, :-1] > 1e-4).all()
