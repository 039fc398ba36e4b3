"""AGGC: groups by function, each kept in an interval around its own norms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradwatch.clip import AGGC, TensorPolicy
from lightning_gradwatch.clip.function_groups import group_of
from lightning_gradwatch.clip.norms import global_norm
from tests.unit.clip.policies.tensors import NAMES, clip_all, gradients, norm, weights


class StatedAGGC:
    """The authors' rule for parameters that all have a group, in plain Python numbers."""

    def __init__(self, low: float, high: float, beta: float, **options: Any) -> None:
        self.early, self.beta = (low, high), beta
        self.raises, self.floor = options.get("raise_small", False), options.get("min_norm", 0.0)
        self.up, self.down = options.get("max_up"), options.get("max_down")
        self.late = options.get("low_late") or low, options.get("high_late") or high
        self.total, self.switch = options.get("total_steps"), options.get("switch", 0.5)
        self.transition = options.get("transition", 0.2)
        self.mean: dict[str, float] = {}
        self.step = 0

    def multiples(self) -> tuple[float, float]:
        progress = 0.0 if self.total is None else min(1.0, self.step / self.total)
        if progress <= self.switch:
            return self.early
        if progress >= self.switch + self.transition:
            return self.late
        part = (progress - self.switch) / self.transition
        return tuple(a + part * (b - a) for a, b in zip(self.early, self.late, strict=True))  # type: ignore[return-value]

    def scales(self, norms: dict[str, float]) -> dict[str, float]:
        out = {}
        low, high = self.multiples()
        for group, n in norms.items():
            mean = self.mean.get(group, 0.0)
            lower, upper, scale = max(self.floor, low * mean), high * mean, 1.0
            if upper > 0 and n > upper + 1e-12:
                scale = upper / (n + 1e-12)
                scale = scale if self.down is None else max(scale, self.down)
            elif self.raises and lower > 0 and n < lower - 1e-12:
                scale = lower / (n + 1e-12)
                scale = scale if self.up is None else min(scale, self.up)
            out[group] = scale
            self.mean[group] = self.beta * mean + (1 - self.beta) * n * scale
        self.step += 1
        return out


GROUPS = {"tables": ["embedding.*", "conv.*"], "vectors": ["rnn.*", "scale"]}
PLACES = ["tables", "vectors", "tables", "vectors"]
SETTINGS = {
    "code": {"low": 1.0, "high": 1.0, "beta": 0.98},
    "lora": {"low": 0.95, "high": 0.6, "beta": 0.95, "min_norm": 0.01, "max_down": 0.9, "max_up": 1.1}
    | {"total_steps": 150, "switch": 0.4, "transition": 0.3, "low_late": 0.98, "high_late": 0.7},
    "grpo": {"low": 0.98, "high": 0.7, "beta": 0.99, "raise_small": True, "max_down": 0.9, "max_up": 1.1}
    | {"total_steps": 150, "switch": 0.6, "transition": 0.2, "high_late": 0.999},
    "wide": {"low": 0.5, "high": 2.0, "beta": 0.9, "raise_small": True, "max_up": None},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_it_is_the_stated_rule(setting: str) -> None:
    """With the code's own defaults, both of the authors' scripts' settings, and a wide interval."""
    options: dict[str, Any] = {"max_up": None, **SETTINGS[setting]}
    stated, policy = StatedAGGC(**options), AGGC(GROUPS, as_published=True, **options)
    changed = 0
    for step in gradients(200, spread=1.0, dtype=torch.float64):
        norms = {
            group: math.hypot(*(norm(g) for g, own in zip(step, PLACES, strict=True) if own == group))
            for group in GROUPS
        }
        expected = stated.scales(norms)
        ((after,), (share,)) = clip_all(policy, [step])
        for before, own, group in zip(step, after, PLACES, strict=True):
            torch.testing.assert_close(own, before * expected[group], rtol=1e-9, atol=0)
        assert share == sum(scale < 1 for scale in expected.values()) / 2
        changed += any(scale != 1 for scale in expected.values())
    means = policy.state_dict()["means"]
    assert means["values"].tolist() == pytest.approx(list(stated.mean.values()), rel=1e-9)
    assert changed > 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_group_is_scaled_as_one(dtype: torch.dtype) -> None:
    """Its gradient keeps its direction, and the other group is left alone to the bit."""
    policy = AGGC(GROUPS)
    clip_all(policy, gradients(20, spread=0.1, dtype=dtype), weights(dtype=dtype))
    (before,) = gradients(1, seed=3, spread=0.1, dtype=dtype)
    before[0] *= 100
    ((after,), (share,)) = clip_all(policy, [before], weights(dtype=dtype))
    assert share == 0.5
    assert torch.equal(after[1], before[1])
    assert torch.equal(after[3], before[3])
    factors = [norm(after[k]) / norm(before[k]) for k in (0, 2)]
    assert factors[0] == pytest.approx(factors[1], rel=1e-6)
    assert factors[0] < 0.05


def test_as_published_the_mean_begins_at_zero_and_may_never_rise() -> None:
    """With the code's multiples of 1 everything is cut to 2 % for good; hardened, ordinary steps pass."""
    steps = gradients(100, spread=0.0)
    published = clip_all(AGGC(low=1.0, high=1.0, as_published=True), steps)[0]
    hardened = clip_all(AGGC(), steps)[0]
    assert norm(published[-1][0]) == pytest.approx(0.02, rel=1e-3)
    assert norm(hardened[-1][0]) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_enters_the_published_mean_for_ever(poison: float) -> None:
    """The group is never clipped again; hardened, it is."""
    steps = gradients(20, spread=0.0)
    steps[5] = [g * poison for g in steps[5]]
    huge = [1e6 * g for g in steps[0]]
    published = clip_all(AGGC(as_published=True), [*steps, huge])[0][-1]
    hardened = clip_all(AGGC(), [*steps, huge])[0][-1]
    assert norm(published[0]) == pytest.approx(1e6, rel=1e-6)
    assert norm(hardened[0]) < 3


def test_zero_gradients_do_not_wear_the_mean_down() -> None:
    """The published mean has gone to next to nothing after 300 of them."""
    (step,) = gradients(1, spread=0.0)
    silent = [torch.zeros_like(g) for g in step]
    last = {}
    for as_published in (True, False):
        policy = AGGC(as_published=as_published)
        clip_all(policy, [step] * 10 + [silent] * 300)
        last[as_published] = norm(clip_all(policy, [step])[0][0][0])
    assert last[True] < 0.01
    assert last[False] == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("short", [1e-20, 1e-3, 0.3])
def test_a_short_gradient_is_raised_a_little_at_most(short: float) -> None:
    """With ``raise_small`` by a tenth; without it, not at all."""
    steps = gradients(20, spread=0.0)
    for policy, factor in ((AGGC(raise_small=True), 1.1), (AGGC(), 1.0)):
        clip_all(policy, steps)
        ((after,), (share,)) = clip_all(policy, [[short * g for g in steps[0]]])
        assert norm(after[0]) == pytest.approx(short * factor, rel=1e-5)
        assert share == 0


@pytest.mark.parametrize(
    ("name", "hardened", "published"),
    [
        ("encoder.layers.3.self_attn.q_proj.lora_A.weight", "q_proj", "q_proj"),
        ("rnn.weight_hh_l0", "rnn", "rnn"),
        ("net.0.weight", "net", None),
        ("encoder.layers.weight", "encoder", None),
        ("weight", "", None),
        ("lm_head.weight", "lm_head", "lm_head"),
        ("a.tables.b", "mine", "mine"),
    ],
)
def test_parameters_of_one_function_are_a_group(name: str, hardened: str, published: str | None) -> None:
    """By the name of their module, whatever the layer; the published code leaves some out."""
    patterns = {"mine": ["*.tables.*"]}
    assert group_of(name, patterns, outwards=True) == hardened
    assert group_of(name, patterns, outwards=False) == published


def test_published_leaves_alone_what_has_no_group() -> None:
    """However large it becomes."""
    policy = AGGC(as_published=True)
    names = ["0.weight", "rnn.weight"]
    for size in (1.0, 1.0, 1e6):
        own = [torch.full((4,), size), torch.full((4,), size)]
        policy.clip_(own, [torch.ones(4)] * 2, names, global_norm(own))
    assert float(own[0][0]) == 1e6
    assert float(own[1][0]) < 1


@pytest.mark.parametrize("poison", [0.0, math.nan])
def test_a_scaled_loss_is_clipped_alike(poison: float) -> None:
    """Times a power of two, to the bit, also after what enters nothing."""
    steps = gradients(60, spread=1.0)
    steps[7] = [g * poison for g in steps[7]]
    plain, _ = clip_all(AGGC(high=1.1), steps)
    scaled, _ = clip_all(AGGC(high=1.1), [[g * 2.0**-20 for g in step] for step in steps])
    for a, b in zip(plain, scaled, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x * 2.0**-20, y, rtol=0, atol=0, equal_nan=True)


def test_patterns_and_other_parameters_may_come_and_go() -> None:
    """A group that pauses finds its mean again."""
    policy = AGGC(GROUPS)
    clip_all(policy, gradients(20, spread=0.1))
    before = dict(zip(policy.state_dict()["means"]["names"], policy.state_dict()["means"]["values"], strict=True))
    own = [gradients(1)[0][0]]
    policy.clip_(own, [weights()[0]], [NAMES[0]], global_norm(own))
    after = dict(zip(policy.state_dict()["means"]["names"], policy.state_dict()["means"]["values"], strict=True))
    assert torch.equal(before["vectors"], after["vectors"])
    assert not torch.equal(before["tables"], after["tables"])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"low": 3.0}, "AGGC: `low` must be ≤ the multiple above it, 2; found 3.0. Lower it"),
        ({"low_late": 0.9, "high_late": 0.8}, "`low_late` must be ≤ the multiple above it, 0.8; found 0.9"),
        ({"groups": ["rnn.*"]}, r"`groups` must be a dict of lists of patterns; found \['rnn"),
        ({"groups": {"rnn": "rnn.*"}}, "`groups` must be a dict of lists"),
        ({"max_down": 2.0}, r"`max_down` must be in \(0, 1\], or None; found 2.0"),
        ({"max_up": 0.5}, "`max_up` must be ≥ 1"),
        ({"switch": 1.5}, r"`switch` must be in \[0, 1\]"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments: dict[str, Any], match: str) -> None:
    """Each error names the policy, the argument, the rule and what was found."""
    with pytest.raises(ValueError, match=match):
        AGGC(**arguments)


def test_it_is_a_policy_on_tensors() -> None:
    """And a parameter of a real module always has a group."""
    assert isinstance(AGGC(), TensorPolicy)
    names = [name for name, _ in nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 2)).named_parameters()]
    assert all(group_of(name, {}, outwards=True) is not None for name in names)
