"""As published: policies on tensors against an independent statement of each rule."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gradwatch.clip import AGC, AdaGC, Value
from tests.unit.clip.policies.tensors import NAMES, clip_all, gradients, norm, timm_agc, weights


def adversarial(count: int, seed: int = 0) -> list[list[Tensor]]:
    """Sizes over 24 orders of magnitude, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    steps = gradients(count, seed, dtype=torch.float64)
    return [[g * 10 ** (24 * torch.rand((), generator=generator).item() - 12) for g in step] for step in steps]


STREAMS = {
    "random": gradients(1500, spread=1.0, dtype=torch.float64),
    "adversarial": adversarial(1500),
    "drift": [[g * math.exp(0.01 * i) for g in s] for i, s in enumerate(gradients(600, dtype=torch.float64))],
}


class StatedAdaGC:
    """Algorithm 1 of Wang et al. (2025), version 2, in plain Python numbers."""

    def __init__(
        self, c: float = 1.0, lam: float = 1.04, beta: float = 0.99, warmup: int = 100, eps: float = 1e-6
    ) -> None:
        self.c, self.lam, self.beta, self.warmup, self.eps = c, lam, beta, warmup, eps
        self.gamma, self.step = dict[str, float](), 0

    def coefficients(self, norms: dict[str, float]) -> dict[str, float]:
        out = {}
        total = math.sqrt(math.fsum(n * n for n in norms.values()))
        for name, n in norms.items():
            if self.step < self.warmup:
                h = min(1.0, self.c / (total + self.eps))
                self.gamma[name] = min(self.gamma.get(name, math.inf), h * n)
            else:
                self.gamma.setdefault(name, n)
                bound = self.lam * self.gamma[name]
                h = bound / (n + self.eps) if n > bound else 1.0
                self.gamma[name] = self.beta * self.gamma[name] + (1 - self.beta) * min(n, bound)
            out[name] = h
        self.step += 1
        return out


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("options", [{}, {"c": 5.0, "lam": 1.5, "beta": 0.9, "warmup": 7, "eps": 1e-3}])
def test_adagc_is_the_stated_rule(stream: str, options: dict[str, Any]) -> None:
    """Every clipped norm and every γ agree to rounding, over the whole sequence."""
    stated = StatedAdaGC(**options)
    policy = AdaGC(stated.c, stated.lam, stated.beta, stated.warmup, stated.eps, as_published=True)
    clipped = 0
    for step in STREAMS[stream]:
        expected = stated.coefficients({name: norm(g) for name, g in zip(NAMES, step, strict=True)})
        ((after,), (share,)) = clip_all(policy, [step])
        for before, own, h in zip(step, after, expected.values(), strict=True):
            torch.testing.assert_close(own, before * h, rtol=1e-11, atol=0)
        assert share == sum(h < 1 for h in expected.values()) / len(NAMES)
        clipped += share > 0
    state = policy.state_dict()["levels"]
    assert state["names"] == NAMES
    assert state["values"].tolist() == pytest.approx(list(stated.gamma.values()), rel=1e-9, abs=0)
    assert clipped > 200


@pytest.mark.parametrize(
    ("poison", "at", "late"),
    [(math.nan, 2, 0.5), (math.nan, 12, 1e6), (0.0, 2, 0.0)],
)
def test_adagc_as_published_breaks_as_published(poison: float, at: int, late: float) -> None:
    """A NaN in warm-up enters nothing, after it nothing is clipped again; a zero gradient makes every later one zero."""
    policy = AdaGC(warmup_steps=5, as_published=True)
    steps = gradients(30, spread=0.0)
    steps[at] = [g * poison for g in steps[at]]
    after, _ = clip_all(policy, [*steps, [1e6 * g for g in steps[0]]])
    assert norm(after[-1][0]) == pytest.approx(late, rel=0.1)


def test_adagc_takes_the_first_norm_of_a_tensor_trained_late() -> None:
    """As the authors' code does, where it begins after warm-up."""
    policy, stated = AdaGC(warmup_steps=5, as_published=True), StatedAdaGC(warmup=5)
    clip_all(policy, gradients(20))
    stated.step = 20
    for size in (1.0, 1e6, 3.0):
        gradient = torch.full((4,), size / 2, dtype=torch.float64)
        expected = stated.coefficients({"late": norm(gradient)})["late"] * norm(gradient)
        policy.clip_([gradient], [torch.ones(4)], ["late"], gradient.norm())
        assert norm(gradient) == pytest.approx(expected, rel=1e-11)


def stated_agc(w: Tensor, g: Tensor, lam: float, eps: float) -> Tensor:
    """Each unit by itself: eq. 3 of Brock et al. (2021) with timm's guard against division by zero."""
    if w.ndim <= 1:
        c = lam * max(norm(w), eps)
        return g.clone() if norm(g) < c else g * (c / max(norm(g), 1e-6))
    return torch.stack(
        [stated_agc(a.flatten(), b.flatten(), lam, eps).reshape(b.shape) for a, b in zip(w, g, strict=True)]
    )


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("lam", "eps"), [(0.01, 1e-3), (0.5, 0.2), (1e-7, 1e-3)])
def test_agc_is_the_stated_rule(stream: str, lam: float, eps: float) -> None:
    """Row by row, filter by filter, a vector as one unit, and a unit of zero weights by ε."""
    parameters = [w.detach().clone() for w in weights(dtype=torch.float64)]
    parameters[0][2] = 0.0
    for step in STREAMS[stream][:150]:
        ((after,), _) = clip_all(AGC(lam, eps, as_published=True), [step], parameters)
        for w, g, own in zip(parameters, step, after, strict=True):
            torch.testing.assert_close(own, stated_agc(w, g, lam, eps), rtol=1e-12, atol=0)


def test_agc_is_timms_to_the_bit() -> None:
    """Where timm lies on this machine, its own code gives the same gradients in each precision."""
    timm = timm_agc()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        ours = weights(dtype=dtype)
        ours = [w.detach().requires_grad_() for w in ours]
        for step in gradients(50, spread=3.0, dtype=dtype):
            theirs = copy.deepcopy(ours)
            for parameter, gradient in zip(theirs, step, strict=True):
                parameter.grad = gradient.clone()
            timm.adaptive_clip_grad(theirs)
            ((after,), _) = clip_all(AGC(as_published=True), [step], ours)
            assert all(p.grad is not None and torch.equal(p.grad, a) for p, a in zip(theirs, after, strict=True))


def test_value_is_clip_grad_value() -> None:
    """torch's own function gives the same gradients to the bit, an inf included."""
    for step in [*gradients(20, spread=2.0), [g * math.inf for g in gradients(1)[0]]]:
        parameters = weights()
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_value_(parameters, 0.7)
        ((after,), _) = clip_all(Value(0.7, as_published=True), [step])
        assert all(p.grad is not None and torch.equal(p.grad, a) for p, a in zip(parameters, after, strict=True))
