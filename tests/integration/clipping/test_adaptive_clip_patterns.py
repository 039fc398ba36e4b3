"""AdaptiveClip where parameters are excluded or have a policy of their own."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gradwatch.callbacks.adaptive_clip import AdaptiveClip
from lightning_gradwatch.clip import AGC, AdaGC, Norm, Value
from lightning_gradwatch.events import EventKind
from tests.integration.clipping.clip_models import Adversarial, Regression, finite, fit, trainer_for
from tests.integration.clipping.clip_steps import PlantHuge, frozen, gradients, kinds, rows, steps_of
from tests.unit.clip.policies.tensors import numbers_in

NAN = math.nan


def test_what_is_excluded_is_neither_measured_nor_clipped(tmp_path: Path) -> None:
    """The head's gradients are untouched to the bit, and the norm is that of the others."""
    callback = AdaptiveClip(Norm(1e-3), exclude=["net.2.*"])
    bare, found = gradients(tmp_path / "a", None), gradients(tmp_path / "b", callback)
    for before, after, record in zip(bare, found, steps_of(callback), strict=True):
        assert torch.equal(before[2], after[2])
        assert torch.equal(before[3], after[3])
        body = torch.cat([before[0].flatten(), before[1]]).norm()
        assert record["grad_norm"] == pytest.approx(float(body), rel=1e-5)
        assert float(torch.cat([after[0].flatten(), after[1]]).norm()) == pytest.approx(1e-3, rel=1e-4)


class SpoilOne(PlantHuge):
    """Writes NaN into one parameter's gradient at step 3."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 3:
            pl_module.net[2].weight.grad[0, 0] = NAN


@pytest.mark.parametrize("arguments", [{"exclude": ["net.2.*"]}, {"policies": {"net.2.*": "value"}}])
def test_a_nan_anywhere_skips_the_whole_step(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """Also what is excluded, or has a policy of its own, must be finite."""
    module, callback = Regression(), AdaptiveClip(**arguments)
    fit(trainer_for(tmp_path, SpoilOne(), callback), module)
    assert kinds(callback).count(EventKind.STEP_SKIPPED) == 1
    assert all(torch.equal(a, b) for a, b in zip(module.weights[3], module.weights[4], strict=True))
    assert finite(module)


def test_patterns_have_policies_of_their_own(tmp_path: Path) -> None:
    """Each part is clipped by its own policy alone; the first pattern that matches counts."""
    policies: dict[str, Any] = {"net.0.weight": Norm(0.02), "net.0.*": Value(0.001), "*": Norm(100.0)}
    callback = AdaptiveClip(Norm(1e-9), policies=policies)
    bare, found = gradients(tmp_path / "a", None), gradients(tmp_path / "b", callback)
    for before, after, record in zip(bare, found, steps_of(callback), strict=True):
        assert float(after[0].norm()) == pytest.approx(0.02, rel=1e-4)
        assert torch.equal(before[1].clamp(-0.001, 0.001), after[1])
        assert torch.equal(before[2], after[2])
        assert record["grad_norm"] == pytest.approx(math.hypot(*(float(g.norm()) for g in before)), rel=1e-5)
        assert record["clipped_norm"] == pytest.approx(math.hypot(*(float(g.norm()) for g in after)), rel=1e-5)


def test_a_group_can_be_named(tmp_path: Path) -> None:
    """A pattern may name a parameter group by its number or its name."""

    def make(parameters: Any) -> torch.optim.Optimizer:
        a, b, c, d = parameters
        return torch.optim.SGD([{"params": [a, b], "name": "body"}, {"params": [c, d], "name": "head"}], 1e-12)

    norms = []
    for arguments in ({"exclude": ["group:1"]}, {"exclude": ["group:head"]}, {"exclude": ["net.2.*"]}, {}):
        torch.manual_seed(0)
        callback = AdaptiveClip(**arguments)
        fit(trainer_for(tmp_path, callback), Regression(make=make))
        norms.append([record["grad_norm"] for record in steps_of(callback)])
    assert norms[0] == norms[1] == norms[2]
    assert all(a < b for a, b in zip(norms[0], norms[3], strict=True))


def test_patterns_may_name_parameters_of_any_optimizer(tmp_path: Path) -> None:
    """With several optimizers a pattern concerns those that hold such parameters."""
    callback = AdaptiveClip(Norm(1e-3), exclude=["b.*"])
    fit(trainer_for(tmp_path, callback), Adversarial())
    coefficients = {k: {r["clip_coefficient"] < 1 for r in steps_of(callback) if r["optimizer"] == k} for k in (0, 1)}
    assert coefficients == {0: {True}, 1: {False}}


def test_parameters_that_join_later_are_found(tmp_path: Path) -> None:
    """A parameter group added in mid-training falls to its pattern."""

    class Thaws(Regression):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 5:
                self.extra = torch.nn.Parameter(torch.ones(3))
                self.trainer.optimizers[0].add_param_group({"params": [self.extra], "lr": 1e-12})

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return loss + 1e6 * self.extra.sum() if batch_idx >= 5 else loss

    callback = AdaptiveClip(Norm(100.0), exclude=["*[as]"])  # "extra" and every "bias"
    module = Thaws(make=frozen)
    fit(trainer_for(tmp_path, callback), module)
    assert max(record["grad_norm"] for record in steps_of(callback)) < 1e3
    assert float(module.extra.grad.norm()) > 1e6  # type: ignore[union-attr]


# -- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"exclude": ["haed.*"]}, r"`exclude` must .*found 'haed\.\*', which matches none\. .*net\.0\.weight"),
        ({"policies": {"net.*": "norm", "encoder.*": "agc"}}, r"`policies` must .*found 'encoder\.\*'"),
        ({"policy": AGC(exclude=["net"])}, "AGC: `exclude` must .*found 'net', .* write 'head"),
        ({"exclude": ["group:1"]}, "found 'group:1'"),
    ],
)
def test_a_pattern_that_matches_nothing_is_one_clear_error(tmp_path: Path, arguments: Any, match: str) -> None:
    """It is raised before training and names argument, pattern and the names that there are."""
    module = Regression()
    with pytest.raises(ValueError, match=match):
        fit(trainer_for(tmp_path, AdaptiveClip(**arguments)), module)
    assert module.losses == []


def test_wrong_kinds_of_arguments_are_one_clear_error() -> None:
    """A pattern alone is no list, and each policy is checked as the main one is."""
    with pytest.raises(TypeError, match=r"`exclude` must be a list of patterns; found 'head\.\*'"):
        AdaptiveClip(exclude="head.*")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`policies\['head\.\*'\]` must be one of .*found 'norn'"):
        AdaptiveClip(policies={"head.*": "norn"})


def test_everything_is_built_from_yaml() -> None:
    """The types of the arguments are those that LightningCLI builds from."""
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=AdaptiveClip)
    namespace = parser.parse_object(
        {
            "callback": {
                "class_path": "lightning_gradwatch.AdaptiveClip",
                "init_args": {
                    "policy": {"class_path": "lightning_gradwatch.AdaGC", "init_args": {"warmup_steps": 7}},
                    "exclude": ["head.*"],
                    "policies": {"a.*": "norm", "b.*": {"class_path": "lightning_gradwatch.AGC"}},
                    "on_nonfinite": "shrink_recurrent",
                },
            }
        }
    )
    expected = AdaptiveClip(AdaGC(warmup_steps=7), ["head.*"], {"a.*": "norm", "b.*": AGC()}, "shrink_recurrent")
    assert parser.instantiate(namespace).callback.state_key == expected.state_key


# -- loggers and events --------------------------------------------------------------------------------------------


def test_each_pattern_is_logged_under_its_own_key(tmp_path: Path) -> None:
    """All keys of the docstring's table but the last two are there again for a pattern; excluded ones have a norm."""
    callback = AdaptiveClip(Norm(0.1), policies={"net.0.*": "agc", "net.2.weight": Norm(1e-4)}, exclude=["*.2.bias"])
    table = rows(tmp_path, callback)
    documented = set(re.findall(r"^ *``gradwatch/(\w+)`` ", AdaptiveClip.__doc__ or "", re.MULTILINE)) - {
        "through_time"
    }
    found = {key.removeprefix("gradwatch/") for key in table[0] if key.startswith("gradwatch/")}
    documented -= {"skipped_steps", "through_time"}  # these are the whole step's
    agc, norm = documented - {"clip_threshold"}, documented - {"clipped_share"}
    own = {f"net.0/{key}" for key in agc} | {f"net.2.weight/{key}" for key in norm} | {"excluded/grad_norm"}
    rest = {"grad_norm", "clip_coefficient", "clipped_norm", "clip_rate", "skipped_steps"}
    assert found == own | rest
    for row in table:
        assert float(row["gradwatch/net.2.weight/clip_threshold"]) == 1e-4
        assert float(row["gradwatch/net.2.weight/clip_rate"]) == 1.0
        assert 0.0 < float(row["gradwatch/net.0/clipped_share"]) <= 1.0


def test_patterns_that_look_alike_have_different_keys(tmp_path: Path) -> None:
    """What is left of a pattern without its special characters is made unique."""
    callback = AdaptiveClip(policies={"net.0.????": "norm", "net.0.??????": "norm"})  # bias, weight
    found = {key for key in rows(tmp_path, callback)[0] if key.endswith("/grad_norm") and key.count("/") == 2}
    assert found == {"gradwatch/net.0/grad_norm", "gradwatch/net.0_1/grad_norm"}


def test_an_event_names_the_pattern(tmp_path: Path) -> None:
    """An explosion of one part is told from that of another."""
    callback = AdaptiveClip(Norm(1e9), policies={"net.2.*": Norm(100.0)})
    fit(trainer_for(tmp_path, callback), Regression({6: 1e4}, make=frozen))
    (event,) = callback.events
    assert (event.kind, event.step, event.threshold) == (EventKind.GRADIENT_CLIPPED, 6, pytest.approx(100.0))
    assert "net.2.*" in event.message


# -- state ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"policy": AdaGC(0.5, warmup_steps=5)},
        {"policy": AdaGC(0.5, warmup_steps=20)},
        {"policy": "spike", "policies": {"net.0.*": AdaGC(0.5, warmup_steps=5), "net.2.bias": "zclip"}},
    ],
)
def test_a_resumed_run_decides_as_an_uninterrupted_one(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """Records of steps and final weights after a resume are identical to those of the run in one go."""
    spoil = {4: NAN, 7: 1e4, 14: 1e4, 17: NAN, 20: 30.0}

    def start() -> Regression:
        torch.manual_seed(1)
        return Regression(spoil)

    whole, interrupted, resumed = (AdaptiveClip(**arguments) for _ in range(3))
    expected, first, second = start(), start(), start()
    fit(trainer_for(tmp_path / "whole", whole, max_epochs=2), expected)
    trainer = trainer_for(tmp_path / "half", interrupted, max_epochs=1)
    fit(trainer, first)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    fit(trainer_for(tmp_path / "half", resumed, max_epochs=2), second, ckpt_path=tmp_path / "half.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), second.parameters(), strict=True))
    assert steps_of(resumed) == steps_of(whole)
    assert numbers_in(resumed.state_dict()["optimizers"]) == numbers_in(whole.state_dict()["optimizers"])


def test_different_patterns_are_different_states(tmp_path: Path) -> None:
    """Instances that differ in a pattern only can stand in one Trainer; without patterns the key is what it was."""
    some = [
        AdaptiveClip(),
        AdaptiveClip(exclude=["net.0.*"]),
        AdaptiveClip(policies={"net.0.*": "norm"}),
        AdaptiveClip(policies={"net.0.*": Norm(2.0)}),
        AdaptiveClip(AGC(exclude=["net.0.*"])),
    ]
    assert len({callback.state_key for callback in some}) == len(some)
    assert "exclude" not in some[0].state_key
    trainer_for(tmp_path, *some)


def test_a_copy_holds_no_module(tmp_path: Path) -> None:
    """After a fit with patterns the callback pickles small, and works again in another fit."""
    callback = AdaptiveClip("adagc", policies={"net.0.*": "agc"})
    fit(trainer_for(tmp_path, callback), Regression())
    again = pickle.loads(pickle.dumps(callback))
    assert len(pickle.dumps(callback)) < 20_000
    fit(trainer_for(tmp_path, again), Regression())
    assert len(steps_of(again)) == 12
