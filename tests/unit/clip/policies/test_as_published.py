"""As published: the originals' own decisions, from their own code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from zclip import ZClip as PublishedZClip

from lightning_gradwatch.clip import AutoClip, StepReading, ZClip
from tests.unit.clip.policies.streams import adversarial, lognormal

STREAMS = {
    "random": lognormal(3000, spread=0.5),
    "adversarial": adversarial(3000),
    "constant": [0.7] * 200 + [0.71] * 50,
    "zeros first": [0.0] * 30 + lognormal(100),
}


@pytest.mark.parametrize("percentile", [0.0, 10.0, 37.5, 50.0, 99.9, 100.0])
@pytest.mark.parametrize("stream", ["random", "adversarial", "constant"])
def test_autoclip_is_numpys_percentile(stream: str, percentile: float) -> None:
    """The threshold is the percentile of all norms so far, to float rounding, and the scaling is clip_grad_norm_'s."""
    norms = STREAMS[stream][:1200]
    policy = AutoClip(percentile, as_published=True)
    for step, norm in enumerate(norms):
        decision = policy.decide(StepReading(norm))
        if step % 7 == 0 or step < 20:
            expected = float(np.percentile(norms[: step + 1], percentile))
            assert decision.threshold == pytest.approx(expected, rel=1e-14, abs=0)
            assert decision.coefficient == pytest.approx(min(1.0, expected / (norm + 1e-6)), rel=1e-12)


def test_autoclip_as_published_breaks_as_published() -> None:
    """A NaN makes the percentile NaN for ever, as numpy's is."""
    policy = AutoClip(as_published=True)
    norms = [1.0, math.nan, 2.0, 3.0]
    thresholds = [policy.decide(StepReading(norm)).threshold for norm in norms]
    assert thresholds[0] == 1.0
    assert np.isnan(np.percentile(norms, 10))
    assert all(t is not None and math.isnan(t) for t in thresholds[1:])


@pytest.mark.parametrize("max_norm", [1.0, 0.3, None])
@pytest.mark.parametrize("mode", ["adaptive_scaling", "mean", "percentile"])
@pytest.mark.parametrize("stream", STREAMS)
def test_zclip_is_the_published_package(stream: str, mode: str, max_norm: float | None) -> None:
    """Gradients after clipping, mean and variance agree with PyPI's zclip to rounding at every step."""
    model = torch.nn.Linear(3, 1, bias=False, dtype=torch.float64)
    options = {"mode": "percentile"} if mode == "percentile" else {"mode": "zscore", "clip_option": mode}
    published = PublishedZClip(max_grad_norm=max_norm, **options)
    policy = ZClip(mode, max_norm=max_norm, as_published=True)  # type: ignore[arg-type]
    direction = torch.tensor([[2.0, 3.0, 6.0]], dtype=torch.float64) / 7
    for norm in STREAMS[stream][:800]:
        model.weight.grad = direction * norm
        measured = float(model.weight.grad.norm())
        published.step(model)
        decision = policy.decide(StepReading(measured))
        assert measured * decision.coefficient == pytest.approx(float(model.weight.grad.norm()), rel=1e-12, abs=0)
        state = policy.state_dict()
        if published.mean is not None:
            assert state["mean"] == pytest.approx(published.mean, rel=1e-12, abs=0)
            assert state["variance"] == pytest.approx(published.var, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("factor", [0.5, 0.9])
@pytest.mark.parametrize("skip", [False, True])
def test_zclips_other_arguments_are_the_packages(factor: float, skip: bool) -> None:
    """alpha, z, warm-up, factor and skip_update_on_spike mean what they mean in the package."""
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    published = PublishedZClip(0.9, 1.5, 2.0, 1e-3, 7, clip_factor=factor, skip_update_on_spike=skip)
    policy = ZClip("adaptive_scaling", 0.9, 1.5, 2.0, 7, 1e-3, factor, skip, as_published=True)
    clipped = 0
    for norm in lognormal(500, spread=1.0):
        model.weight.grad = torch.full((1, 1), norm, dtype=torch.float64)
        published.step(model)
        decision = policy.decide(StepReading(norm))
        clipped += decision.coefficient < 1
        assert norm * decision.coefficient == pytest.approx(model.weight.grad.item(), rel=1e-12)
    assert clipped > 20


def test_zclip_as_published_breaks_as_published() -> None:
    """A NaN in warm-up poisons the mean for good in both."""
    policy = ZClip(as_published=True)
    for norm in [1.0, math.nan, *lognormal(60)]:
        policy.decide(StepReading(norm))
    assert math.isnan(policy.state_dict()["mean"])
