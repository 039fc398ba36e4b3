"""What breaks the originals leaves the hardened form alive; elsewhere the two agree."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_gradwatch.clip import AutoClip, Norm, StepReading, ZClip
from tests.unit.clip.policies.streams import decide_all, lognormal


@pytest.mark.parametrize(
    "make", [AutoClip, ZClip, lambda **k: ZClip("mean", **k), lambda **k: ZClip("percentile", **k)]
)
def test_on_ordinary_norms_it_is_the_published_rule(make: Any) -> None:
    """On a stationary run the hardened form decides as the published one, to its constant of 1e-6."""
    stream = lognormal(500)
    for ours, theirs in zip(decide_all(make(), stream), decide_all(make(as_published=True), stream), strict=True):
        assert ours.coefficient == pytest.approx(theirs.coefficient, rel=2e-5)


def test_zclip_survives_an_all_zero_warm_up() -> None:
    """The original clips every later gradient to 0; zeros are no warm-up here."""
    zeros = [0.0] * 25
    published, hardened = ZClip(as_published=True), ZClip()
    decide_all(published, zeros)
    decide_all(hardened, zeros)
    stream = [0.5 * n for n in lognormal(100)]
    assert max(d.coefficient for d in decide_all(published, stream)) < 1e-3
    assert min(d.coefficient for d in decide_all(hardened, stream)) > 0.2


def test_zclip_recovers_from_a_constant_warm_up() -> None:
    """The original holds every later norm at the warm-up's for ever; here the bound rises to the new level."""
    published, hardened = ZClip(as_published=True), ZClip()
    for policy in (published, hardened):
        decide_all(policy, [0.5] * 25)
    stream = [0.7 * n for n in lognormal(1000, spread=0.02)]
    assert max(n * d.coefficient for n, d in zip(stream, decide_all(published, stream), strict=True)) < 0.501
    assert sum(d.coefficient < 1 for d in decide_all(hardened, stream)[800:]) == 0


def test_zclip_leaves_an_absurd_norm_out_of_its_statistics() -> None:
    """1e30 in warm-up blinds the original for hundreds of steps; here the mean is the ordinary one."""
    hardened, published = ZClip(max_norm=None), ZClip(max_norm=None, as_published=True)
    stream = [*lognormal(10), 1e30, *lognormal(14)]
    decide_all(hardened, stream)
    decide_all(published, stream)
    assert 0.5 < hardened.state_dict()["mean"] < 2.0
    assert hardened.decide(StepReading(1e3)).coefficient < 0.01
    assert published.decide(StepReading(1e3)).coefficient == 1.0


def test_autoclip_winsorizes_an_absurd_norm() -> None:
    """One norm of 1e30 enters the history as a hundred medians."""
    policy = AutoClip(percentile=100.0)
    decide_all(policy, [1.0, 1.0, 1e30])
    assert policy.state_dict()["history"] == [1.0, 1.0, 100.0]


def test_autoclip_keeps_its_window() -> None:
    """The oldest norms go, in the order that they came."""
    policy = AutoClip(window=3)
    decide_all(policy, [5.0, 3.0, 4.0, 1.0, 2.0])
    assert policy.state_dict()["history"] == [4.0, 1.0, 2.0]


def test_zclip_shows_its_bound_on_ordinary_steps() -> None:
    """The threshold that is logged is μ + z₀σ, not the norm itself."""
    policy = ZClip(max_norm=None)
    decide_all(policy, lognormal(25))
    state = policy.state_dict()
    decision = policy.decide(StepReading(0.9))
    assert decision.coefficient == 1.0
    assert decision.threshold == pytest.approx(state["mean"] + 2.5 * math.sqrt(state["variance"]))


@pytest.mark.parametrize(
    ("make", "arguments", "match"),
    [
        (Norm, {"max_norm": 0.0}, "Norm: `max_norm` must be finite and > 0; found 0.0. Use"),
        (Norm, {"max_norm": math.nan}, "`max_norm` must be finite"),
        (AutoClip, {"percentile": 101.0}, "AutoClip: `percentile` must be between 0 and 100; found 101.0"),
        (AutoClip, {"window": 0}, "`window` must be ≥ 1; found 0"),
        (ZClip, {"mode": "median"}, "ZClip: `mode` must be one of .*found 'median'"),
        (ZClip, {"alpha": 1.0}, r"`alpha` must be in \[0, 1\); found 1.0"),
        (ZClip, {"z_threshold": 0.0}, "`z_threshold` must be > 0"),
        (ZClip, {"max_norm": -1.0}, "`max_norm` must be finite and > 0; found -1.0. Use None"),
        (ZClip, {"warmup_steps": 0}, "`warmup_steps` must be ≥ 1"),
        (ZClip, {"eps": -1.0}, "`eps` must be ≥ 0"),
        (ZClip, {"factor": 1.5}, r"`factor` must be in \(0, 1\]"),
    ],
)
def test_bad_arguments_are_one_clear_error(make: Any, arguments: dict[str, Any], match: str) -> None:
    """Each error names the policy, the argument, the rule and what was found."""
    with pytest.raises(ValueError, match=match):
        make(**arguments)
