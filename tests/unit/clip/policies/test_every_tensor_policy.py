"""What holds for every hardened policy that works on tensors, whatever gradients it is given."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch.clip import AGC, AGGC, AdaGC, TensorPolicy, Value, make_policy
from lightning_gradwatch.clip.norms import global_norm
from lightning_gradwatch.clip.policies.value import clamp_at_once_
from lightning_gradwatch.clip.tensor_policy import CACHED, by_cache, measure_and_clip_
from tests.unit.clip.policies.tensors import HARDENED, NAMES, clip_all, gradients, norm, numbers_in, weights

BREAKING = [0.0, 1e-30, 1e-8, 1.0, 1e4, 1e15, 1e25, math.inf, math.nan]


@pytest.mark.parametrize("name", HARDENED)
@settings(max_examples=40, deadline=None)
@given(factors=st.lists(st.sampled_from(BREAKING), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_no_policy_ever_increases_an_entry_or_turns_it(name: str, factors: list[float], seed: int) -> None:
    """Every entry keeps its sign and grows no larger; a gradient that is not finite is left as it is."""
    steps = [[g * f for g in step] for step, f in zip(gradients(len(factors), seed), factors, strict=True)]
    for before, after in zip(steps, clip_all(HARDENED[name](), steps)[0], strict=True):
        for b, a in zip(before, after, strict=True):
            if all(g.isfinite().all() for g in before):
                assert bool((a.abs() <= b.abs()).all())
                assert bool((a * b >= 0).all())
            else:
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("name", "warm"), [("agc", 0), ("adagc", 0), ("adagc", 30), ("adagc-free", 30)])
def test_a_units_direction_is_preserved(name: str, warm: int) -> None:
    """Each row of a clipped gradient is the row before times one number."""
    policy = HARDENED[name]()
    clip_all(policy, gradients(warm, spread=0.1))
    (before,) = gradients(1, seed=5)
    ((after,), (share,)) = clip_all(policy, [[1e3 * g for g in before]])
    assert share > 0.5
    for b, a in zip(before, after, strict=True):
        for row, clipped in zip(
            b.reshape(len(b) if b.ndim > 1 else 1, -1), a.reshape(len(b) if b.ndim > 1 else 1, -1), strict=True
        ):
            cosine = torch.nn.functional.cosine_similarity(row.double(), clipped.double(), dim=0)
            assert float(cosine) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", HARDENED)
@settings(max_examples=40, deadline=None)
@given(factors=st.lists(st.sampled_from(BREAKING), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_nothing_unusable_enters_a_state(name: str, factors: list[float], seed: int) -> None:
    """No NaN, inf or zero is ever part of a history."""
    policy = HARDENED[name]()
    steps = [[g * f for g in step] for step, f in zip(gradients(len(factors), seed), factors, strict=True)]
    clip_all(policy, steps)
    state = policy.state_dict()
    assert all(math.isfinite(x) and x >= 0 for x in numbers_in(state))
    assert all(x > 0 for x in numbers_in(state.get("levels")))  # in the warm-up's norms a zero says "none"


@pytest.mark.parametrize("poison", [math.nan, math.inf, 0.0, 1e-25, 1e25])
@pytest.mark.parametrize("at", [0, 3, 9, 40])
@pytest.mark.parametrize("name", HARDENED)
def test_a_breaking_gradient_leaves_the_policy_alive(name: str, at: int, poison: float) -> None:
    """After a breaking gradient at any time an explosion is held, and an ordinary step passes as it did without."""
    steps = gradients(60, spread=0.05)
    poisoned = [*steps[:at], [g * poison for g in steps[at]], *steps[at:]]
    policy, plain = HARDENED[name](), HARDENED[name]()
    clip_all(policy, poisoned)
    clip_all(plain, steps)
    ordinary, huge = gradients(1, seed=9, spread=0.05)[0], [1e6 * g for g in steps[0]]
    ((expected,), _), ((found,), _) = clip_all(plain, [ordinary]), clip_all(policy, [ordinary])
    for e, f in zip(expected, found, strict=True):
        assert norm(f) == pytest.approx(norm(e), rel=0.5)
    ((held,), _) = clip_all(policy, [huge])
    some = [k for k, n in enumerate(NAMES) if name != "agc-exclude" or n != "embedding.weight"]
    assert all(norm(held[k]) < 10 for k in some)


@pytest.mark.parametrize("name", HARDENED)
@pytest.mark.parametrize("at", [0, 4, 9, 10, 50])
def test_a_restored_policy_decides_as_the_uninterrupted_one(name: str, at: int) -> None:
    """A state that went through a weights-only checkpoint gives the same gradients from there on, to the bit."""
    steps = gradients(90)
    whole, first, second = HARDENED[name](), HARDENED[name](), HARDENED[name]()
    expected = clip_all(whole, steps)[0][at:]
    clip_all(first, steps[:at])
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for step, other in zip(clip_all(second, steps[at:])[0], expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(step, other, strict=True))


@pytest.mark.parametrize("power", [-30, -7, 12, 30])
def test_adagc_without_a_fixed_bound_is_scale_equivariant(power: int) -> None:
    """A loss times a power of two gives gradients times it, to the bit."""
    steps, scale = gradients(80), 2.0**power
    plain, _ = clip_all(AdaGC(None, warmup_steps=10), steps)
    scaled, _ = clip_all(AdaGC(None, warmup_steps=10), [[g * scale for g in step] for step in steps])
    for a, b in zip(plain, scaled, strict=True):
        assert all(torch.equal(x * scale, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", HARDENED)
def test_a_copy_is_independent(name: str) -> None:
    """Another optimizer's copy of a policy goes its own way."""
    policy = HARDENED[name]()
    clip_all(policy, gradients(20))
    before = numbers_in(policy.state_dict())
    clip_all(copy.deepcopy(policy), gradients(20, seed=1))
    assert numbers_in(policy.state_dict()) == before


@pytest.mark.parametrize("name", HARDENED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_clipped_alike(name: str, dtype: torch.dtype) -> None:
    """Half and double precision give what float32 gives, to their own rounding."""
    steps = [[g.to(dtype) for g in step] for step in gradients(40)]
    own, _ = clip_all(HARDENED[name](), steps, [w.to(dtype) for w in weights()])
    single, _ = clip_all(
        HARDENED[name](), [[g.float() for g in step] for step in steps], [w.to(dtype).float() for w in weights()]
    )
    for a, b in zip(own, single, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.dtype == dtype
            torch.testing.assert_close(x.float(), y, rtol=4 * torch.finfo(dtype).eps + 1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["value", "agc", "adagc", "aggc"])
def test_a_sparse_gradient_is_clipped_as_the_dense_one(name: str) -> None:
    """Duplicate rows are summed first, as the optimizer will do; a row of an embedding is a unit."""
    table = torch.ones(6, 3, requires_grad=True)
    sparse = torch.sparse_coo_tensor(torch.tensor([[1, 1, 4]]), torch.full((3, 3), 2.0), (6, 3))
    dense = sparse.to_dense()
    for gradient in (sparse, dense):
        policy = HARDENED[name]()
        policy.clip_([0.1 * dense], [table], ["embedding.weight"], 0.1 * dense.norm())
        policy.clip_([gradient], [table], ["embedding.weight"], dense.norm())
    torch.testing.assert_close(sparse.to_dense(), dense)
    assert float(dense.norm()) < 6


class CountSyncs(TorchDispatchMode):
    """Counts the operators that wait for the device."""

    syncs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.syncs += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", HARDENED)
def test_nothing_is_read_from_the_device(name: str) -> None:
    """Clipping does not wait, in warm-up or after it."""
    policy = HARDENED[name]()
    for step in gradients(15):
        total = torch.cat([g.flatten() for g in step]).norm()
        with CountSyncs() as count:
            policy.clip_(step, weights(), NAMES, total)
        assert count.syncs == 0


@pytest.mark.parametrize("name", HARDENED)
def test_no_gradients_are_no_error(name: str) -> None:
    """An optimizer without gradients has nothing clipped."""
    assert float(HARDENED[name]().clip_([], [], [], torch.zeros(()))) == 0.0


@pytest.mark.parametrize("name", ["value", "agc", "adagc", "aggc"])
def test_a_policy_is_known_by_its_name(name: str) -> None:
    """Every documented name makes a policy that works on tensors."""
    assert isinstance(make_policy(name), TensorPolicy)


def test_a_user_can_write_a_policy() -> None:
    """A class with the three methods is a policy, without inheriting anything."""

    class Nothing:
        def clip_(self, gradients: list[Tensor], parameters: list[Tensor], names: list[str], norm: Tensor) -> Tensor:
            return torch.zeros(())

        def state_dict(self) -> dict[str, object]:
            return {}

        def load_state_dict(self, state_dict: dict[str, object]) -> None: ...

    policy = Nothing()
    assert make_policy(policy) is policy  # type: ignore[arg-type]


@pytest.mark.parametrize("name", HARDENED)
@pytest.mark.parametrize("kind", ["plain", "mixed", "half", "sparse", "empty"])
def test_one_pass_gives_what_measuring_and_clipping_give(name: str, kind: str) -> None:
    """The gradients to the bit, the norms before and after and the share, whatever the tensors are."""
    other, own = HARDENED[name](), HARDENED[name]()
    for count, step in enumerate(gradients(30, spread=1.0)):
        steps = [_of_kind(kind, step) for _ in range(2)]
        parameters = [torch.ones(g.shape, dtype=g.dtype) for g in steps[0]]
        before = global_norm(steps[0])
        share = other.clip_(steps[0], parameters, NAMES, before)
        clipped = measure_and_clip_(own, steps[1], parameters, NAMES)
        after = global_norm(steps[0])
        for a, b in zip(*steps, strict=True):
            assert torch.equal(a.to_dense(), b.to_dense()), count
        for expected, found in zip((before, after, share), clipped, strict=True):
            assert float(found) == pytest.approx(float(expected), rel=1e-3 if kind == "half" else 1e-6), count


def _of_kind(kind: str, step: list[Tensor]) -> list[Tensor]:
    dtypes = {"mixed": [torch.float32, torch.float64, torch.float32, torch.float16], "half": [torch.bfloat16] * 4}
    if kind == "sparse":
        return [step[0].to_sparse(1), *(g.clone() for g in step[1:])]
    if kind == "empty":
        return [step[0].clone(), torch.zeros(0), *(g.clone() for g in step[2:])]
    return [g.clone().to(dtype) for g, dtype in zip(step, dtypes.get(kind, [torch.float32] * 4), strict=True)]


class CountOperations(TorchDispatchMode):
    """Counts the operators, but for views and questions about types, which launch nothing."""

    launched = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.launched += not func.is_view and func is not torch.ops.aten.promote_types.default
        return func(*args, **(kwargs or {}))


def launched(policy: TensorPolicy, tensors: int) -> int:
    """Operators of a step after the first, on as many matrices."""
    parameters = [torch.ones(4, 3) for _ in range(tensors)]
    names = [f"layers.{k}.weight" for k in range(tensors)]
    for step in range(2):
        own = [torch.full((4, 3), 0.1 + step) for _ in range(tensors)]
        with CountOperations() as count:
            measure_and_clip_(policy, own, parameters, names)
    return count.launched


@pytest.mark.parametrize(
    ("make", "a_tensor"), [(lambda: AdaGC(warmup_steps=1), 0), (AdaGC, 0), (AGGC, 0), (AGC, 2), (Value, 1)]
)
def test_operators_are_launched_for_all_tensors_at_once(make: Any, a_tensor: int) -> None:
    """AGC needs two norms of each tensor, and on the CPU Value clamps each by itself; the rest does not grow."""
    few, many = launched(make(), 8), launched(make(), 40)
    assert many - few == a_tensor * 32
    assert few - 8 * a_tensor < 80


def test_a_clamp_without_a_look_at_its_limit_is_the_same() -> None:
    """As it is done where the limit lies on another device, an inf of it included."""
    for limit in (0.3, math.inf):
        expected, found = gradients(1)[0], gradients(1)[0]
        for gradient in expected:
            gradient.clamp_(-limit, limit)
        clamp_at_once_(found, torch.tensor(limit))
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("entries", [1, 100_000, 200_000])
def test_batches_hold_every_tensor_once(entries: int) -> None:
    """In their order, none larger than the cache unless a tensor is."""
    tensors = [torch.zeros(entries) for _ in range(7)]
    batches = list(by_cache(tensors))
    assert [id(t) for batch in batches for t in batch] == [id(t) for t in tensors]
    assert all(len(batch) == 1 or sum(t.numel() for t in batch) <= CACHED for batch in batches)
