"""What holds for every hardened policy, whatever norms it is given."""

from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.clip import ClipPolicy, Decision, StepReading, make_policy
from tests.unit.clip.policies.streams import (
    EQUIVARIANT,
    HARDENED,
    adversarial,
    assert_never_increases,
    assert_scale_equivariant,
    decide_all,
    lognormal,
    norms,
    numbers_in,
    ordinary,
)


@pytest.mark.parametrize("name", HARDENED)
@settings(max_examples=60, deadline=None)
@given(stream=norms)
def test_no_policy_ever_increases_a_norm(name: str, stream: list[float]) -> None:
    """Whatever comes, the coefficient lies in (0, 1], and what is not finite is left alone."""
    for norm, decision in zip(stream, decide_all(HARDENED[name](), stream), strict=True):
        assert_never_increases(decision)
        if not math.isfinite(norm) or norm <= 0:
            assert decision.coefficient == 1.0


@pytest.mark.parametrize("name", HARDENED)
@settings(max_examples=60, deadline=None)
@given(stream=norms)
def test_a_clipped_norm_is_at_or_under_the_threshold(name: str, stream: list[float]) -> None:
    """After the decision the norm is no longer over the threshold that is logged."""
    for norm, decision in zip(stream, decide_all(HARDENED[name](), stream), strict=True):
        if decision.threshold is not None and math.isfinite(norm):
            assert norm * decision.coefficient <= decision.threshold * (1 + 1e-12)


@pytest.mark.parametrize("name", HARDENED)
@settings(max_examples=60, deadline=None)
@given(stream=norms)
def test_nothing_unusable_enters_a_state(name: str, stream: list[float]) -> None:
    """No NaN, inf or zero is ever part of a history."""
    policy = HARDENED[name]()
    decide_all(policy, [n for n in stream if n < 1e200 or not math.isfinite(n)])
    assert all(math.isfinite(x) for x in numbers_in(policy.state_dict()))
    lists = [v for v in policy.state_dict().values() if isinstance(v, list)]
    assert all(x > 0 for values in lists for x in values)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 0.0, 1e30])
@pytest.mark.parametrize("at", [0, 3, 60])
@pytest.mark.parametrize("name", HARDENED)
def test_a_breaking_norm_leaves_the_policy_alive(name: str, at: int, poison: float) -> None:
    """After a breaking norm at any time the policy still lets ordinary steps through and holds an explosion."""
    policy = HARDENED[name]()
    stream = lognormal(300)
    decide_all(policy, [*stream[:at], poison, *stream[at:]])
    assert policy.decide(StepReading(1e6)).coefficient < 1e-4
    assert policy.decide(StepReading(0.9)).coefficient > 0.3


@pytest.mark.parametrize("name", EQUIVARIANT)
@settings(max_examples=40, deadline=None)
@given(stream=st.lists(ordinary, min_size=1, max_size=80), power=st.integers(-30, 30))
def test_policies_without_a_fixed_bound_are_scale_equivariant(name: str, stream: list[float], power: int) -> None:
    """A loss times a constant is clipped alike."""
    assert_scale_equivariant(EQUIVARIANT[name], stream, 2.0**power)


@pytest.mark.parametrize("name", HARDENED)
@pytest.mark.parametrize("at", [0, 5, 24, 25, 150])
def test_a_restored_policy_decides_as_the_uninterrupted_one(name: str, at: int) -> None:
    """A state that went through a weights-only checkpoint gives the same decisions from there on."""
    stream = [x if i % 17 else x * 1e4 for i, x in enumerate(lognormal(300))]
    whole, first, second = HARDENED[name](), HARDENED[name](), HARDENED[name]()
    expected = decide_all(whole, stream)[at:]
    decide_all(first, stream[:at])
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert decide_all(second, stream[at:]) == expected


@pytest.mark.parametrize("name", HARDENED)
def test_a_state_is_bounded(name: str) -> None:
    """However long the run, the state stops growing."""
    policy = HARDENED[name]()
    decide_all(policy, adversarial(11_000))
    size = len(numbers_in(policy.state_dict()))
    decide_all(policy, adversarial(500, seed=1))
    assert len(numbers_in(policy.state_dict())) <= max(size, 10_000)


@pytest.mark.parametrize("name", ["autoclip", "zclip", "spike"])
def test_a_threshold_falls_again(name: str) -> None:
    """After a time of large norms the threshold follows ordinary ones down: no estimate that can only rise.

    Spike knows for a thousand steps what its optimizer has taken.
    """
    policy = {"autoclip": lambda: make_policy("autoclip"), **EQUIVARIANT}[name]()
    if name == "autoclip":
        policy.window = 200  # type: ignore[attr-defined]
        policy.load_state_dict(policy.state_dict())
    high = decide_all(policy, [1000 * x for x in lognormal(300)])[-1]
    low = decide_all(policy, lognormal(1100, seed=1))[-1]
    assert high.threshold is not None
    assert low.threshold is not None
    assert low.threshold < high.threshold / 50


@pytest.mark.parametrize("name", ["norm", "autoclip", "zclip", "spike"])
def test_a_policy_is_known_by_its_name(name: str) -> None:
    """Every documented name makes a policy, in any case of letters."""
    assert type(make_policy(name)) is type(make_policy(name.upper()))


def test_an_unknown_name_is_one_clear_error() -> None:
    """The error names the argument, the choices, what was found and a remedy."""
    with pytest.raises(ValueError, match=r"`policy` must be one of .*\"spike\".*found 'sipke'.*Use"):
        make_policy("sipke")


@pytest.mark.parametrize("wrong", [3.0, None, HARDENED["norm"]])
def test_what_is_no_policy_is_one_clear_error(wrong: object) -> None:
    """A number, nothing, or a class in place of an instance is refused."""
    with pytest.raises(TypeError, match=r"`policy` must be .*found"):
        make_policy(wrong)  # type: ignore[arg-type]


def test_a_user_can_write_a_policy() -> None:
    """A class with the three methods is a policy, without inheriting anything."""

    class Half:
        def decide(self, reading: StepReading) -> Decision:
            return Decision(None, 0.5)

        def state_dict(self) -> dict[str, object]:
            return {}

        def load_state_dict(self, state_dict: dict[str, object]) -> None: ...

    policy = Half()
    assert isinstance(policy, ClipPolicy)
    assert make_policy(policy) is policy


@pytest.mark.parametrize(
    "parameters", ["norm", "norm, *, parameter_norm=None", "n, *, parameter_norm=None", "norm, **more"]
)
def test_a_policy_that_takes_a_norm_is_one_clear_error(parameters: str) -> None:
    """One whose `decide` takes a norm in place of a StepReading is refused before training, with what to write."""
    methods = {"state_dict": lambda self: {}, "load_state_dict": lambda self, state: None}
    old = type("Old", (), {**methods, "decide": eval(f"lambda self, {parameters}: None")})()
    with pytest.raises(
        TypeError, match=r"`policy` must have a `decide` that takes one StepReading; that of Old takes a norm"
    ):
        make_policy(old)
