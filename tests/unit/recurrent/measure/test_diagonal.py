"""Diagonal recurrences: the same by timestep and by doubling, as a CPU and a GPU run them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch.recurrent.measure.diagonal import adjoint, by_doubling, by_timestep, shrinkage


def one_by_one(factors: Tensor, values: Tensor) -> Tensor:
    states = [values[0]]
    for t in range(1, len(values)):
        states.append(factors[min(t, len(factors) - 1)] * states[-1] + values[t])
    return torch.stack(states)


@given(st.integers(1, 70), st.integers(1, 3), st.booleans(), st.booleans(), st.floats(0, 1.5), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_any_length_and_size(
    steps: int, width: int, is_complex: bool, constant: bool, largest: float, seed: int
) -> None:
    """Both ways, with exact zeros among the factors, real and complex, constant or not."""
    kind = torch.complex128 if is_complex else torch.float64
    source = torch.Generator().manual_seed(seed)
    factors = largest * torch.randn(1 if constant else steps, width, dtype=kind, generator=source)
    factors = factors * (torch.rand(factors.shape, generator=source) > 0.2)
    values = torch.randn(steps, width, dtype=kind, generator=source)
    expected = one_by_one(factors, values)
    within = 1e-12 * expected.abs().max()
    for found in (by_timestep(factors, values), by_doubling(factors, values)):
        assert (found - expected).abs().max() <= within


@pytest.mark.parametrize("run", [by_timestep, by_doubling])
def test_products_beyond_all_numbers_spoil_nothing_where_nothing_comes_in(run: Any) -> None:
    """Where the values before are 0, so is what they carry, however large the factors."""
    factors, values = torch.full((64, 1), 1e200, dtype=torch.float64), torch.zeros(64, 1, dtype=torch.float64)
    values[60] = 1e-200
    found = run(factors, values)
    assert (found[:60] == 0).all()
    assert found[60:62].flatten().tolist() == [1e-200, 1.0]


def test_the_adjoint_is_the_transposed_recurrence() -> None:
    """⟨g, S b⟩ = ⟨adjoint g, b⟩ for all g and b, complex decays included."""
    decay, b, d = (torch.randn(9, 4, dtype=torch.complex128) for _ in range(3))
    forward, back = (by_timestep(decay, b) * d.conj()).sum(), (b * adjoint(decay, d).conj()).sum()
    assert abs(complex(forward - back)) < 1e-12 * abs(complex(forward))


@pytest.mark.parametrize("constant", [True, False])
def test_shrinkage_is_the_product_of_decays(constant: bool) -> None:
    """From any timestep, 1 at lag 0; a 0 leaves zeros behind it."""
    decay = torch.tensor([0.5]) if constant else torch.tensor([7.0, 0.5, 0.0, -0.25, 2.0])
    found = shrinkage(decay[:, None].double(), 4).flatten().tolist()
    assert found == ([1, 0.5, 0.25, 0.125, 0.0625] if constant else [1, 2, 0.5, 0, 0])
    assert shrinkage(decay[:, None], 0).tolist() == [[1.0]]


class Launched(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_doubling_launches_as_the_logarithm_of_time() -> None:
    """The same number of operations a doubling, however long."""
    counts: list[int] = []
    for steps in (2**6, 2**12):
        with Launched() as launched:
            by_doubling(torch.rand(steps, 2), torch.rand(steps, 2))
        counts.append(launched.count)
    per_doubling = (counts[1] - counts[0]) / 6
    assert per_doubling <= 20
    assert counts[1] <= math.ceil(per_doubling * 12) + 5
