"""AdaptiveClip with policies on tensors."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_gradwatch.callbacks.adaptive_clip import AdaptiveClip
from lightning_gradwatch.clip import AGC, AGGC, AdaGC, TensorPolicy, Value
from lightning_gradwatch.events import EventKind
from tests.integration.clipping.clip_models import Regression, finite, fit, trainer_for
from tests.integration.clipping.clip_steps import Counted, PlantHuge, gradients, kinds, steps_of

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("policy", ["spike", "norm", "autoclip", "zclip"])
def test_policies_of_the_global_norm_preserve_direction(tmp_path: Path, policy: str) -> None:
    """At every step the optimizer gets the gradient times one number, which is at most 1."""
    bare = gradients(tmp_path / "a", None, {8: 1e12})
    found = gradients(tmp_path / "b", AdaptiveClip(policy), {8: 1e12})
    ratios = []
    for before, after in zip(bare, found, strict=True):
        a, b = torch.cat([g.flatten() for g in before]).double(), torch.cat([g.flatten() for g in after]).double()
        assert float(torch.nn.functional.cosine_similarity(a, b, dim=0)) == pytest.approx(1.0, abs=1e-9)
        ratios.append(float(b.norm() / a.norm()))
    assert max(ratios) <= 1.0 + 1e-6
    assert ratios[8] < 1e-2


@pytest.mark.parametrize("policy", [Value(0.01), AGC(), AdaGC(0.1, warmup_steps=4), AGGC(high=1.01)])
def test_the_optimizer_gets_what_the_policy_makes(tmp_path: Path, policy: TensorPolicy) -> None:
    """Every step's gradients are those of the policy called by hand, and norms and coefficient agree with them."""
    names = [name for name, _ in Regression().named_parameters()]
    torch.manual_seed(0)
    parameters = list(Regression().parameters())
    bare, callback = gradients(tmp_path / "a", None), AdaptiveClip(policy)
    found = gradients(tmp_path / "b", callback)
    own = copy.deepcopy(policy)
    for before, after, record in zip(bare, found, steps_of(callback), strict=True):
        norm = torch.cat([g.flatten() for g in before]).norm()
        own.clip_(before, parameters, names, norm)
        clipped = torch.cat([g.flatten() for g in before]).norm()
        for a, b in zip(before, after, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)
        assert record["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
        assert record["clipped_norm"] == pytest.approx(float(clipped), rel=1e-5)
        assert record["clip_coefficient"] == pytest.approx(float(clipped / norm), rel=1e-5)
        assert record["clip_threshold"] is None


@pytest.mark.parametrize("policy", ["value", "agc", "adagc", "aggc"])
def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path, policy: str) -> None:
    """NaN and inf move nothing, and later steps go on."""
    module, callback = Regression({5: NAN, 8: INF}), AdaptiveClip(policy)
    fit(trainer_for(tmp_path, callback), module)
    assert all(torch.equal(a, b) for a, b in zip(module.weights[5], module.weights[6], strict=True))
    assert not torch.equal(module.weights[9][0], module.weights[10][0])
    assert kinds(callback).count(EventKind.STEP_SKIPPED) == 2
    assert finite(module)


@pytest.mark.parametrize("policy", ["value", "agc", "adagc", "aggc"])
def test_gradients_of_1e30_have_a_true_norm(tmp_path: Path, policy: str) -> None:
    """Squares that overflow float32 are neither a skip nor a zero update: the policy clips, and the log has the norm."""
    module, callback = Regression(), AdaptiveClip(policy)
    fit(trainer_for(tmp_path, PlantHuge(), callback), module)
    record = steps_of(callback)[3]
    count = sum(p.numel() for p in module.parameters())
    assert record["grad_norm"] == pytest.approx(1e30 * math.sqrt(count), rel=1e-5)
    assert 0 < record["clipped_norm"] <= math.sqrt(count) * 1.0001
    assert not record["skipped"]
    assert not torch.equal(module.weights[3][0], module.weights[4][0])
    assert finite(module)


@pytest.mark.parametrize(
    "arguments",
    [
        {"policy": "value"},
        {"policy": "agc"},
        {"policy": "adagc"},
        {"policy": "aggc"},
        {"policy": "spike", "policies": {"net.0.*": "agc", "net.2.weight": "spike"}, "exclude": ["net.2.bias"]},
    ],
)
def test_a_step_costs_at_most_one_host_sync(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """Whatever the number of policies, an ordinary step reads the device once."""
    callback = Counted(**arguments)
    fit(trainer_for(tmp_path, callback, logger=CSVLogger(tmp_path)), Regression({8: 1e3}))
    assert len(callback.__dict__["syncs"]) == 12
    assert max(callback.__dict__["syncs"]) <= 1


def test_a_conflict_may_leave_the_gradients_to_the_trainer(tmp_path: Path) -> None:
    """With defer a policy on tensors only measures."""
    results = []
    for callbacks in ([], [AdaptiveClip("agc", on_conflict="defer")]):
        torch.manual_seed(3)
        module = Regression()
        fit(trainer_for(tmp_path, *callbacks, gradient_clip_val=0.01), module)
        results.append(module)
    assert all(torch.equal(a, b) for a, b in zip(results[0].parameters(), results[1].parameters(), strict=True))
