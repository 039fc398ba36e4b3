"""What breaks the originals leaves the hardened policies on tensors alive; elsewhere the two agree."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_gradwatch.clip import AGC, AdaGC, Value
from tests.unit.clip.policies.tensors import NAMES, clip_all, gradients, norm, weights


@pytest.mark.parametrize("make", [Value, AGC, AdaGC])
def test_on_ordinary_gradients_it_is_the_published_rule(make: Any) -> None:
    """On a stationary run the hardened form clips as the published one, to its constant of 1e-6."""
    steps = gradients(300)
    ours, theirs = clip_all(make(), steps)[0], clip_all(make(as_published=True), steps)[0]
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=2e-4, atol=1e-9)


def test_adagc_passes_over_a_zero_gradient_in_warm_up() -> None:
    """The original clips that tensor to zero for ever; here its other norms count."""
    steps = gradients(60, spread=0.1)
    steps[3][0] = torch.zeros_like(steps[3][0])
    published, hardened = (
        clip_all(AdaGC(warmup_steps=10, as_published=value), steps)[0][-1] for value in (True, False)
    )
    assert norm(published[0]) == 0.0
    assert norm(hardened[0]) > 0.1


def test_adagc_recovers_from_a_tiny_gradient_in_warm_up() -> None:
    """The original's level would take 100,000 steps to grow back from 1e-20; here it is left out."""
    steps = gradients(300, spread=0.1)
    steps[3] = [1e-20 * g for g in steps[3]]
    published, hardened = (
        clip_all(AdaGC(warmup_steps=10, as_published=value), steps)[0][-1] for value in (True, False)
    )
    assert all(norm(g) < 1e-18 for g in published)
    assert all(norm(g) > 0.4 for g in hardened)


def test_adagc_bounds_a_tensor_first_trained_after_warm_up() -> None:
    """Its first norm is its level, unless that is none."""
    policy = AdaGC(warmup_steps=5)
    clip_all(policy, gradients(20))
    for size in (0.0, math.nan, 1.0, 1e6):
        gradient = torch.full((4,), size / 2)
        policy.clip_([gradient], [torch.ones(4)], ["head.weight"], gradient.norm())
    assert norm(gradient) == pytest.approx(1.04, rel=1e-3)


def test_adagc_remembers_tensors_that_pause() -> None:
    """A parameter that has no gradient for some steps finds its own level again, whatever the order."""
    policy = AdaGC(warmup_steps=5)
    clip_all(policy, gradients(20, spread=0.1))
    before = dict(zip(NAMES, policy.state_dict()["levels"]["values"].tolist(), strict=True))
    (step,) = gradients(1, seed=3)
    for chosen in ([3, 1], [1], [1, 3]):
        own = [step[k].clone() for k in chosen]
        policy.clip_(own, [weights()[k] for k in chosen], [NAMES[k] for k in chosen], torch.ones(()))
    state = policy.state_dict()["levels"]
    after = dict(zip(state["names"], state["values"].tolist(), strict=True))
    assert {name for name in NAMES if after[name] == before[name]} == {NAMES[0], NAMES[2]}


def test_adagc_finds_a_tensor_by_its_name_in_any_order() -> None:
    """An optimizer that lists its parameters otherwise from some step on has them clipped alike."""
    policy, other = AdaGC(warmup_steps=5), AdaGC(warmup_steps=5)
    clip_all(policy, gradients(10, spread=1.0))
    clip_all(other, gradients(10, spread=1.0))
    for step in gradients(5, seed=1, spread=1.0):
        expected, turned = [g.clone() for g in step], [g.clone() for g in reversed(step)]
        policy.clip_(expected, weights(), NAMES, torch.ones(()))
        other.clip_(turned, weights()[::-1], NAMES[::-1], torch.ones(()))
        assert all(torch.equal(a, b) for a, b in zip(expected, reversed(turned), strict=True))


def test_adagc_does_not_forget_while_a_gradient_is_zero() -> None:
    """The original's level shrinks by 1 % at each zero, and then clips what was ordinary; here it stays."""
    (step,) = gradients(1, spread=0.0)
    silent = [torch.zeros_like(step[0]), *step[1:]]
    last = {}
    for as_published in (True, False):
        policy = AdaGC(None, warmup_steps=5, as_published=as_published)
        clip_all(policy, [step] * 10 + [silent] * 300)
        last[as_published] = norm(clip_all(policy, [step])[0][0][0])
    assert last[True] < 0.1
    assert last[False] == pytest.approx(1.0, rel=1e-5)


def test_adagc_squares_its_norms_before_it_adds_them() -> None:
    """In warm-up the norm over all tensors becomes c: a sum without squares and root would give another."""
    ((after,), _) = clip_all(AdaGC(max_norm=0.25), [[100 * g for g in gradients(1)[0]]])
    assert math.hypot(*(norm(g) for g in after)) == pytest.approx(0.25, rel=1e-6)


def test_agc_lets_a_unit_of_zero_weights_learn() -> None:
    """By ε its gradient has a length."""
    parameters = [torch.zeros_like(w) for w in weights()]
    ((after,), _) = clip_all(AGC(), gradients(1), parameters)
    assert norm(after[0][0]) == pytest.approx(0.01 * 1e-3, rel=1e-5)


def test_agc_scales_short_gradients_to_their_bound() -> None:
    """The original divides a gradient of 5e-7 by 1e-6, and so halves it more than its bound asks."""
    w, g = [torch.full((1,), 1e-3)], torch.full((1,), 5e-7)
    published, hardened = g.clone(), g.clone()
    AGC(1e-4, as_published=True).clip_([published], w, ["w"], g.norm())
    AGC(1e-4).clip_([hardened], w, ["w"], g.norm())
    assert float(published) == pytest.approx(5e-8, rel=1e-5)
    assert float(hardened) == pytest.approx(1e-7, rel=1e-5)


def test_agc_reduces_over_the_right_axis() -> None:
    """A unit is a row: one long row is brought down, and the rows beside it are untouched."""
    g = torch.full((3, 4), 1e-4)
    g[1] = 100.0
    before = g.clone()
    AGC().clip_([g], [torch.ones(3, 4)], ["w"], g.norm())
    assert torch.equal(g[[0, 2]], before[[0, 2]])
    assert norm(g[1]) == pytest.approx(0.02, rel=1e-6)


def test_agc_leaves_out_what_is_excluded() -> None:
    """Excluded names keep their gradients to the bit, and the share counts the units of the others."""
    steps = [[1e3 * g for g in gradients(1)[0]]]
    ((after,), (share,)) = clip_all(AGC(exclude=["embedding.*", "conv.weight"]), steps)
    assert [torch.equal(a, b) for a, b in zip(after, steps[0], strict=True)] == [True, False, True, False]
    assert share == 1.0


def test_value_does_not_hide_an_inf() -> None:
    """The original turns an inf into an ordinary entry, and nobody learns of it."""
    (step,) = gradients(1)
    step[1][2] = math.inf
    ((published,), _), ((hardened,), _) = clip_all(Value(as_published=True), [step]), clip_all(Value(), [step])
    assert float(published[1][2]) == 1.0
    assert float(hardened[1][2]) == math.inf


def test_the_share_is_that_of_what_was_clipped() -> None:
    """Value counts tensors with an entry beyond the bound; AGC counts units."""
    step = [torch.zeros(shape) for shape in ((6, 3), (5,), (3, 2, 2), ())]
    step[0][2, 1] = step[0][4, 0] = 9.0
    assert clip_all(Value(), [step])[1] == [0.25]
    assert clip_all(AGC(), [step])[1] == [pytest.approx(2 / 11)]


@pytest.mark.parametrize(
    ("make", "arguments", "match"),
    [
        (Value, {"max_value": 0.0}, "Value: `max_value` must be finite and > 0; found 0.0. Use"),
        (AGC, {"clip_factor": math.inf}, "AGC: `clip_factor` must be finite and > 0; found inf"),
        (AGC, {"eps": 0.0}, "`eps` must be > 0, or a unit that starts at zero never learns; found 0.0"),
        (AGC, {"exclude": "head.*"}, r"`exclude` must be a list of patterns; found 'head\.\*'. Write"),
        (AdaGC, {"max_norm": -1.0}, "AdaGC: `max_norm` must be finite and > 0; found -1.0. Use None"),
        (AdaGC, {"clip_factor": 0.9}, "`clip_factor` must be ≥ 1"),
        (AdaGC, {"beta": 1.0}, r"`beta` must be in \[0, 1\)"),
        (AdaGC, {"warmup_steps": 0}, "`warmup_steps` must be ≥ 1"),
        (AdaGC, {"eps": -1.0}, "`eps` must be ≥ 0"),
    ],
)
def test_bad_arguments_are_one_clear_error(make: Any, arguments: dict[str, Any], match: str) -> None:
    """Each error names the policy, the argument, the rule and what was found."""
    with pytest.raises(ValueError, match=match):
        make(**arguments)
