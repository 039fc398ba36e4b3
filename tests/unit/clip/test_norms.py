"""The norm of many tensors, and their scaling."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_gradwatch.clip.norms import global_norm, scale_, true_norm


def assert_direction_preserved(before: list[Tensor], after: list[Tensor]) -> None:
    """All tensors together point where they pointed."""
    a, b = torch.cat([t.double().flatten() for t in before]), torch.cat([t.double().flatten() for t in after])
    assert float((a / a.norm()) @ (b / b.norm())) == pytest.approx(1.0, abs=1e-6)


def tensors(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=generator) * scale).to(dtype) for shape in ((3, 4), (7,), (2, 2, 2))]


def exact(of: list[Tensor]) -> float:
    return math.sqrt(sum(math.fsum(float(x) ** 2 for x in t.flatten().double()) for t in of))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norm_is_that_of_all_entries(dtype: torch.dtype) -> None:
    """Each precision gives the root of the sum of squares; half precision is summed in float32."""
    some = tensors(100.0, dtype)
    assert float(global_norm(some)) == pytest.approx(exact(some), rel=1e-6)
    assert true_norm(some) == pytest.approx(exact(some), rel=1e-6)


def test_precisions_may_be_mixed() -> None:
    """A half-precision tensor among others neither rounds nor overflows them."""
    some = [torch.full((4,), 6e4, dtype=torch.float16), torch.full((3,), 1e5), torch.full((2,), 1e-3).double()]
    assert float(global_norm(some)) == pytest.approx(exact(some), rel=1e-6)


@pytest.mark.parametrize(("value", "dtype"), [(1e30, torch.float32), (3e38, torch.float32), (1e200, torch.float64)])
def test_squares_that_overflow_have_a_true_norm(value: float, dtype: torch.dtype) -> None:
    """Where the fast norm is inf, the true one is finite."""
    some = [torch.full((3, 3), value, dtype=dtype), torch.ones(2, dtype=dtype)]
    assert float(global_norm(some)) == math.inf
    assert true_norm(some) == pytest.approx(3 * value, rel=1e-6)


@pytest.mark.parametrize("where", [0, 1])
def test_what_is_not_finite_stays_so(where: int) -> None:
    """An inf gives inf, a NaN gives NaN even beside an inf."""
    some = tensors()
    some[where][0] = math.inf
    assert true_norm(some) == math.inf
    some[1 - where][0] = math.nan
    assert math.isnan(true_norm(some))
    assert math.isnan(float(global_norm(some)))


def test_nothing_has_norm_zero() -> None:
    """No tensors, an empty one, and zeros."""
    assert float(global_norm([])) == float(global_norm([torch.empty(0)])) == float(global_norm([torch.zeros(3)])) == 0.0
    assert true_norm([]) == true_norm([torch.empty(0)]) == true_norm([torch.zeros(3)]) == 0.0


def test_a_sparse_gradient_counts_as_its_optimizer_sums_it() -> None:
    """Duplicate rows are added first, and scaling reaches them."""
    sparse = torch.sparse_coo_tensor(torch.tensor([[1, 1, 3]]), torch.tensor([[1.0], [2.0], [4.0]]), (5, 1))
    assert float(global_norm([sparse, torch.zeros(2)])) == pytest.approx(5.0)
    scale_([sparse], 0.5)
    assert sparse.to_dense().flatten().tolist() == [0.0, 1.5, 0.0, 2.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(coefficient=st.floats(1e-6, 1.0), scale=st.floats(1e-3, 1e6))
def test_scaling_preserves_direction(coefficient: float, scale: float) -> None:
    """Every tensor is multiplied alike."""
    some = tensors(scale)
    before = [t.clone() for t in some]
    scale_(some, coefficient)
    assert_direction_preserved(before, some)
    assert exact(some) == pytest.approx(coefficient * exact(before), rel=1e-5)


def test_a_tiny_coefficient_keeps_its_precision() -> None:
    """1e38 comes down to 1e-3 although the coefficient is denormal in float32."""
    some = [torch.tensor([1.2345e38])]
    scale_(some, 1e-41)
    assert float(some[0]) == pytest.approx(1.2345e-3, rel=1e-5)
