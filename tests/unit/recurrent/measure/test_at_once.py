"""The sweep by the fused operator itself, as on a GPU: the same figures, without a loop over time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from benchmarks.cost.launches import KINDS, called, launches_of
from lightning_gradwatch.recurrent import profiles, sweep
from lightning_gradwatch.recurrent.measure import at_once as module_under_test
from lightning_gradwatch.recurrent.measure.exactness import ROUNDINGS
from tests.cases import Case, cases
from tests.sweeps import check
from tests.unit.recurrent.measure import influence


@settings(max_examples=60, deadline=None)
@given(cases())
def test_at_once_agrees_with_autograd_in_float64(case: Case) -> None:
    """Every norm agrees with autograd to 1e-10, and nothing has to be done timestep by timestep."""
    check(case, at_once=True)


@settings(max_examples=40, deadline=None)
@given(cases(dtype=torch.float32))
def test_at_once_agrees_with_autograd_in_float32(case: Case) -> None:
    """In float32 to 1e-5."""
    check(case, at_once=True)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_chunks_change_nothing(case: Case) -> None:
    """Sequences that end within a chunk, before it and behind it, and states carried from one to the next."""
    check(case, at_once=True, chunk=2)


@settings(max_examples=15, deadline=None)
@given(cases())
def test_the_inputs_gradient_too(case: Case) -> None:
    """What goes on to the module's input is what autograd says."""
    influence.check(case, at_once=True)


@pytest.mark.parametrize("kind", KINDS)
def test_launches_do_not_grow_with_time(kind: str) -> None:
    """In one chunk 10,000 timesteps launch what 100 do, but for three operations a doubling of time in the diagonal part; a layer
    launches 60 at most besides.
    """
    few, many, deep = (
        launches_of(kind, time, layers=layers, at_once=True, chunk=time)
        for time, layers in ((100, 1), (10_000, 1), (100, 2))
    )
    doublings = 0 if kind == "RNN" else 3
    assert many - few == doublings * (14 - 7)
    assert deep - few <= 60 + doublings * 7


@pytest.mark.parametrize("kind", KINDS)
def test_each_chunk_launches_the_same(kind: str) -> None:
    """In chunks launches grow with their number, whatever their length."""
    counts = [launches_of(kind, 2**6 * n, at_once=True, chunk=2**6) for n in (2, 3, 4)]
    assert counts[2] - counts[1] == counts[1] - counts[0]
    assert launches_of(kind, 2**6 * 4, at_once=False, chunk=2**6) > 2 * counts[2]


def given_to(module: nn.RNNBase, steps: int) -> torch.Tensor:
    return torch.randn(steps, 3, module.input_size, generator=torch.Generator().manual_seed(1))


def same(found: Any, expected: Any) -> None:
    for p, q in zip(found, expected, strict=True):
        assert np.array_equal(p.total, q.total, equal_nan=True)
        assert np.array_equal(p.curves, q.curves, equal_nan=True)
        assert p.inexact_reason == q.inexact_reason


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_a_chaotic_network_goes_timestep_by_timestep_and_says_so(kind: str) -> None:
    """Rounding alone takes a free replay off the recorded course: the closed forms take over, exactly, and the profile says why."""
    torch.manual_seed(0)
    module = KINDS[kind](4, 64)
    with torch.no_grad():
        module.weight_hh_l0.mul_(8.0)
    h0 = torch.randn(1, 3, 64)
    state = (h0, torch.zeros(1, 3, 64)) if kind == "LSTM" else h0
    with called(module, given_to(module, 100), state) as call:
        h0.data.mul_(1 + 1e-6)  # as another kernel's rounding would
        swept = sweep(call, at_once=True)
        found, expected = profiles(call, swept), profiles(call, sweep(call, at_once=False))
    assert swept.by_timestep is not None
    assert "differ from the recorded ones" in swept.by_timestep
    assert {p.to_record()["by_timestep"] for p in found} == {swept.by_timestep}
    assert all(p.exact for p in found)
    same(found, expected)


HALVES = [torch.bfloat16, torch.float16]


def in_half(kind: str, dtype: torch.dtype, hidden: int = 32, steps: int = 40) -> Any:
    """A call that was recorded in half precision throughout."""
    torch.manual_seed(0)
    module = KINDS[kind](4, hidden).to(dtype)
    try:
        module(torch.zeros(1, 1, 4, dtype=dtype))
    except RuntimeError:  # before PyTorch 2.2 a CPU has no products in float16
        pytest.skip(f"{kind} does not run in {dtype} here")
    h0 = torch.zeros(1, 3, hidden, dtype=dtype)
    return called(module, given_to(module, steps).to(dtype), (h0, torch.zeros_like(h0)) if kind == "LSTM" else h0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("hidden", "steps"), [(16, 10), (64, 40), (128, 150)])
def test_half_precision_is_replayed_at_once(kind: str, dtype: torch.dtype, hidden: int, steps: int) -> None:
    """Rounding of an ordinary network is within the tolerance, and norms are near those found timestep by timestep."""
    with in_half(kind, dtype, hidden, steps) as call:
        swept = sweep(call, at_once=True)
        found, expected = profiles(call, swept), profiles(call, sweep(call, at_once=False))
    assert swept.by_timestep is None
    assert not any(p.exact for p in found)
    for p, q in zip(found, expected, strict=True):
        assert np.allclose(p.total, q.total, rtol=0.1, atol=0)


def outputs(call: Any) -> None:
    call.output.data[5, 1, 2] += 1.5 * ROUNDINGS * torch.finfo(call.output.dtype).eps / 2


def weights(call: Any) -> None:
    call.weights[1].data.mul_(1.5)


def beginning(call: Any) -> None:
    call.h0.data.add_(0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("disturb", [outputs, weights, beginning])
def test_another_course_in_half_precision_goes_timestep_by_timestep(
    kind: str, dtype: torch.dtype, disturb: Any
) -> None:
    """A replay that is off the recorded course by more than rounding is not used, and the profile says so."""
    with in_half(kind, dtype) as call:
        disturb(call)
        swept = sweep(call, at_once=True)
        found = profiles(call, swept)
        same(found, profiles(call, sweep(call, at_once=False)))
    assert "differ from the recorded ones" in str(swept.by_timestep)
    assert {p.to_record()["by_timestep"] for p in found} == {swept.by_timestep}


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("bad", ["gradient", "input", "weight"])
def test_what_is_not_finite_is_located_timestep_by_timestep(kind: str, bad: str) -> None:
    """A NaN in the loss's gradient, the input or a weight spoils a chunk of the fused operator, so the closed forms place it."""
    torch.manual_seed(0)
    module = KINDS[kind](4, 5)
    x = torch.randn(9, 3, 4)
    if bad == "input":
        x[4, 1] = torch.nan
    if bad == "weight":
        with torch.no_grad():
            module.weight_ih_l0[0, 0] = torch.nan
    with called(module, x) as call:
        if bad == "gradient":
            call.output_gradient.value()[6, 2] = torch.nan
        swept = sweep(call, at_once=True)
        same(profiles(call, swept), profiles(call, sweep(call, at_once=False)))
    assert swept.by_timestep == "its states or gradients are not finite"


def test_auto_is_by_timestep_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where operations are cheap to launch the identity of the fused way is not paid for."""
    monkeypatch.setattr(module_under_test.AtOnce, "climb", None)
    module = nn.LSTM(4, 5)
    with called(module, given_to(module, 7)) as call:
        assert sweep(call).inexact_reason is None


@pytest.mark.parametrize("case", [Case(mode=mode, num_layers=2, dropout=0.3) for mode in ("LSTM", "GRU", "RNN_TANH")])
def test_nothing_of_the_training_is_touched(case: Case) -> None:
    """Random stream, modes, weights' gradients and the user's hooks on saved tensors are as before, and anomaly detection and
    autocast stay outside.
    """
    module = replace(case, dtype=torch.float32).module()
    packed = list[torch.Tensor]()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        packed.append(tensor)
        return tensor

    with (
        called(module, given_to(module, 6)) as call,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autograd.set_detect_anomaly(True),
        torch.autocast("cpu", torch.bfloat16),
    ):
        rng, gradients = torch.get_rng_state(), [p.grad.clone() for p in module.parameters()]
        found = profiles(call, sweep(call, at_once=True))
        assert all(p.exact for p in found)
        assert torch.equal(torch.get_rng_state(), rng)
        assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), gradients, strict=True))
        assert torch.is_anomaly_enabled()
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        assert torch.is_grad_enabled()
        assert not packed
        (torch.ones(2, requires_grad=True) ** 3).sum()
        assert packed


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_that_cannot_be_drawn_again_is_known_beforehand(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is replayed at once in vain: the closed forms are all that runs, and the profile says why."""
    module = KINDS[kind](4, 8, 2, dropout=0.3)
    with called(module, given_to(module, 6)) as call:
        call.rng_state = None  # as cuDNN leaves it
        tried = list[object]()
        monkeypatch.setattr(module_under_test.AtOnce, "climb", lambda *given: tried.append(given))
        found = profiles(call, sweep(call, at_once=True))
    assert not tried
    assert {p.by_timestep for p in found} == {"the dropout between layers is not known"}
    assert not any(p.exact for p in found)
