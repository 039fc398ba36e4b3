"""AdaptiveClip in real Trainers."""

# Over 300 lines: one callback, whose promises are tried in the same small trainings.
from __future__ import annotations

import copy
import csv
import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_gradwatch import AdaptiveClip, NonFiniteGradientError
from lightning_gradwatch.clip import AutoClip, ClipPolicy, Decision, Norm, Spike, StepReading, ZClip
from lightning_gradwatch.events import Event, EventKind, Severity
from tests.integration.clipping.clip_models import Adversarial, Regression, data, finite, fit, trainer_for
from tests.integration.clipping.clip_steps import Counted, PlantHuge, kinds, steps_of
from tests.versions import cpu_scaler

INF, NAN = math.inf, math.nan


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 0.01, weight_decay=0.1)


# -- what is not finite --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [NAN, INF])
@pytest.mark.parametrize("make", [None, adamw])
def test_a_skip_moves_nothing(tmp_path: Path, make: Any, factor: float) -> None:
    """At a skipped step neither weights nor optimizer state move, momentum and weight decay included."""
    module = Regression({5: factor}, **({"make": make} if make else {}))
    callback = AdaptiveClip()
    trainer = trainer_for(tmp_path, callback)
    fit(trainer, module)
    assert all(torch.equal(a, b) for a, b in zip(module.weights[5], module.weights[6], strict=True))
    assert not torch.equal(module.weights[4][0], module.weights[5][0])
    assert not torch.equal(module.weights[6][0], module.weights[7][0])
    assert finite(module)
    if make:
        assert all(float(state["step"]) == 11 for state in trainer.optimizers[0].state.values())
    (event,) = callback.events
    assert (event.kind, event.step, event.batch_idx, event.epoch, event.action) == (
        EventKind.STEP_SKIPPED,
        5,
        5,
        0,
        "skipped",
    )
    assert [s["skipped"] for s in steps_of(callback)] == [i == 5 for i in range(12)]


def test_without_the_callback_the_same_run_is_lost(tmp_path: Path) -> None:
    """The planted NaN does end the bare run in NaN."""
    module = Regression({5: NAN})
    fit(trainer_for(tmp_path), module)
    assert not finite(module)


def test_raise_is_one_clear_error(tmp_path: Path) -> None:
    """The error names the value, the step and a remedy."""
    with pytest.raises(NonFiniteGradientError, match=r"nan at optimizer step 3 .*batch 3.*Use AdaptiveClip"):
        fit(trainer_for(tmp_path, AdaptiveClip(on_nonfinite="raise")), Regression({3: NAN}))


def test_stop_ends_training_with_finite_weights(tmp_path: Path) -> None:
    """The step is skipped and no further batch is run."""
    module, callback = Regression({3: NAN}), AdaptiveClip(on_nonfinite="stop")
    trainer = trainer_for(tmp_path, callback)
    fit(trainer, module)
    assert len(module.losses) == 4
    assert finite(module)
    assert callback.events[0].action == "stopped"


def test_ignore_leaves_the_gradient(tmp_path: Path) -> None:
    """The NaN reaches the weights as it would without us."""
    module, callback = Regression({3: NAN}), AdaptiveClip(on_nonfinite="ignore")
    fit(trainer_for(tmp_path, callback), module)
    assert not finite(module)
    assert callback.events == []


def test_too_many_skips_in_a_row_stop_the_run(tmp_path: Path) -> None:
    """After max_successive_skips the run ends with one critical event and one warning."""
    module, callback = Regression(dict.fromkeys(range(4, 99), NAN)), AdaptiveClip(max_successive_skips=3)
    messages = fit(trainer_for(tmp_path, callback), module)
    assert [e.severity for e in callback.events] == [Severity.WARNING, Severity.WARNING, Severity.CRITICAL]
    assert len(module.losses) == 7
    assert len([m for m in messages if "in succession" in m and "carries from batch to batch" in m]) == 1


def test_skips_that_are_not_in_a_row_go_on(tmp_path: Path) -> None:
    """A good step resets the count of successive skips."""
    module = Regression({1: NAN, 2: NAN, 4: NAN, 5: NAN, 7: NAN})
    callback = AdaptiveClip(max_successive_skips=3)
    fit(trainer_for(tmp_path, callback), module)
    assert len(module.losses) == 12
    assert kinds(callback) == [EventKind.STEP_SKIPPED] * 5


# -- clipping ------------------------------------------------------------------------------------------------------


def test_norm_is_clip_grad_norm(tmp_path: Path) -> None:
    """With Norm the weights are those of Lightning's own gradient_clip_val."""
    ours, theirs = Regression(), Regression()
    theirs.load_state_dict(ours.state_dict())
    fit(trainer_for(tmp_path, AdaptiveClip(Norm(0.1))), ours)
    fit(trainer_for(tmp_path, gradient_clip_val=0.1), theirs)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_an_explosion_comes_back_to_the_ordinary_level(tmp_path: Path) -> None:
    """A gradient 1e6 times too large is told, and leaves the weights near where they were."""
    module, callback = Regression({8: 1e6}), AdaptiveClip()
    fit(trainer_for(tmp_path, callback), module)
    event = callback.events[0]
    assert event.kind is EventKind.GRADIENT_CLIPPED
    assert (event.step, event.action) == (8, "clipped")
    assert event.value is not None
    assert event.threshold is not None
    assert event.value > 1e4 * event.threshold
    assert "was clipped to" in event.message
    assert max(module.losses) < 20 * module.losses[0]


def test_gradients_of_1e30_have_a_true_norm(tmp_path: Path) -> None:
    """Squares that overflow float32 are neither a false inf nor a silent zero update: the step is clipped."""
    module, callback = Regression(), AdaptiveClip(Norm(0.5))
    fit(trainer_for(tmp_path, PlantHuge(), callback), module)
    record = steps_of(callback)[3]
    count = sum(p.numel() for p in module.parameters())
    assert record["grad_norm"] == pytest.approx(1e30 * math.sqrt(count), rel=1e-5)
    assert record["clipped_norm"] == pytest.approx(0.5)
    assert EventKind.STEP_SKIPPED not in kinds(callback)
    assert not torch.equal(module.weights[3][0], module.weights[4][0])
    assert finite(module)


def test_an_episode_of_clipping_is_one_event(tmp_path: Path) -> None:
    """Successive clipped steps make one event; the next episode makes another."""
    module = Regression({2: 1e4, 3: 1e4, 4: 1e4, 8: 1e4}, make=lambda p: torch.optim.SGD(p, 1e-6))
    callback = AdaptiveClip(Norm(100.0))
    fit(trainer_for(tmp_path, callback), module)
    assert [e.step for e in callback.events] == [2, 8]


def test_optimizers_do_not_share_a_policy(tmp_path: Path) -> None:
    """The other optimizer's norms and explosions leave this one's decisions alone, and keys carry the index."""
    callback = AdaptiveClip()
    trainer = trainer_for(tmp_path, callback, logger=CSVLogger(tmp_path, version=0))
    fit(trainer, Adversarial({4: NAN, 6: 1e6}))
    states = trainer.callback_metrics, callback.state_dict()["optimizers"]
    assert [s["skipped"] for s in states[1]] == [0, 1]
    assert [s["clipped"] for s in states[1]] == [0, 1]
    rows = steps_of(callback)
    assert {r["optimizer"] for r in rows if r["skipped"] or r["clip_coefficient"] < 1} == {1}
    assert all("Optimizer 1." in event.message for event in callback.events)
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        header = next(csv.reader(file))
    assert {"gradwatch/0/grad_norm", "gradwatch/1/grad_norm"} <= set(header)
    assert "gradwatch/grad_norm" not in header


@pytest.mark.parametrize("policy", ["spike", "autoclip", "zclip", "norm"])
def test_a_step_costs_at_most_one_host_sync(tmp_path: Path, policy: str) -> None:
    """Clipped or not, with a logger, an ordinary step reads the device once."""
    callback = Counted(policy)
    fit(trainer_for(tmp_path, callback, logger=CSVLogger(tmp_path), max_epochs=3), Regression({8: 1e3}))
    assert len(callback.__dict__["syncs"]) == 36
    assert max(callback.__dict__["syncs"]) <= 1


# -- mixed precision -----------------------------------------------------------------------------------------------


def mixed(scale: float = 1024.0) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", scaler=cpu_scaler(init_scale=scale))


@pytest.fixture
def _no_onednn() -> Any:
    enabled = torch.backends.mkldnn.enabled  # type: ignore[attr-defined]
    torch.backends.mkldnn.enabled = False  # type: ignore[attr-defined]
    yield
    torch.backends.mkldnn.enabled = enabled  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_no_onednn")
@pytest.mark.parametrize("fused", [False, True])
def test_the_norm_is_unscaled(tmp_path: Path, fused: bool) -> None:
    """Under a gradient scaler the norm is that of the full-precision run, fused optimizer or not."""
    plain, scaled = Regression(), Regression(make=lambda p: torch.optim.Adam(p, 0.01, fused=fused))
    plain.make = lambda p: torch.optim.Adam(p, 0.01)
    scaled.load_state_dict(plain.state_dict())
    callbacks = AdaptiveClip(Norm(0.5)), AdaptiveClip(Norm(0.5))
    fit(trainer_for(tmp_path / "a", callbacks[0]), plain)
    fit(trainer_for(tmp_path / "b", callbacks[1], plugins=mixed()), scaled)
    expected, found = ([s["grad_norm"] for s in steps_of(c)] for c in callbacks)
    assert found == pytest.approx(expected, rel=0.02)
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=2e-3)


@pytest.mark.usefixtures("_no_onednn")
@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_is_left_to_the_scaler(tmp_path: Path, fused: bool) -> None:
    """The scaler skips the step and lowers its scale; we only make a note."""
    module = Regression({4: INF}, make=lambda p: torch.optim.Adam(p, 0.01, fused=fused))
    callback, plugin = AdaptiveClip(), mixed()
    fit(trainer_for(tmp_path, callback, plugins=plugin), module)
    assert kinds(callback) == [EventKind.AMP_OVERFLOW]
    assert callback.events[0].value == 1024.0
    assert callback.state_dict()["optimizers"][0]["skipped"] == 0
    assert plugin.scaler is not None
    assert plugin.scaler.get_scale() == 512.0
    assert all(torch.equal(a, b) for a, b in zip(module.weights[4], module.weights[5], strict=True))
    assert finite(module)


# -- others that clip ----------------------------------------------------------------------------------------------


class ClipsItself(Regression):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.01, gradient_clip_algorithm="norm")


def test_both_act_and_it_is_said_once(tmp_path: Path) -> None:
    """By default we clip first, then the Trainer, and one line says so with the remedy."""
    callback = AdaptiveClip(Norm(0.1))
    messages = fit(trainer_for(tmp_path, callback, gradient_clip_val=0.05), Regression())
    (message,) = messages
    assert "gradient_clip_val=0.05" in message
    assert "on_conflict" in message
    assert "\n" not in message
    assert min(s["clip_coefficient"] for s in steps_of(callback)) < 1


@pytest.mark.parametrize("where", ["class", "instance", "trainer"])
def test_defer_leaves_clipping_to_the_other(tmp_path: Path, where: str) -> None:
    """With defer the weights are those of a run without us, and a NaN is skipped all the same."""
    results = []
    for callback in (None, AdaptiveClip(Norm(1e-3), on_conflict="defer")):
        torch.manual_seed(3)
        module = ClipsItself() if where == "class" else Regression()
        if where == "instance":
            module.configure_gradient_clipping = ClipsItself.configure_gradient_clipping.__get__(module)  # type: ignore[method-assign]
        options = {"gradient_clip_val": 0.01} if where == "trainer" else {}
        fit(trainer_for(tmp_path, *([callback] if callback else []), **options), module)
        results.append(module)
    assert all(torch.equal(a, b) for a, b in zip(results[0].parameters(), results[1].parameters(), strict=True))
    module = ClipsItself({3: NAN})
    fit(trainer_for(tmp_path, AdaptiveClip(on_conflict="defer")), module)
    assert finite(module)


@pytest.mark.parametrize("module", [ClipsItself, Regression])
def test_raise_on_conflict_ends_before_training(tmp_path: Path, module: type[Regression]) -> None:
    """One clear error, and no batch is run."""
    net = module()
    options = {"gradient_clip_val": 1.0} if module is Regression else {}
    with pytest.raises(MisconfigurationException, match="both clip the gradients"):
        fit(trainer_for(tmp_path, AdaptiveClip(on_conflict="raise"), **options), net)
    assert net.losses == []


def test_without_a_conflict_nothing_is_said(tmp_path: Path) -> None:
    """No other clipping, no message, also with on_conflict=raise."""
    assert fit(trainer_for(tmp_path, AdaptiveClip(on_conflict="raise")), Regression()) == []


# -- loggers -------------------------------------------------------------------------------------------------------


def logged(tmp_path: Path, every: int, policy: Any = None) -> list[dict[str, str]]:
    # Fresh norms of 1 and more make Norm(0.1) clip; NaN at 3 is skipped.
    callback = AdaptiveClip(policy or Norm(0.1))
    logger = CSVLogger(tmp_path, version=0)
    fit(trainer_for(tmp_path, callback, logger=logger, log_every_n_steps=every), Regression({3: NAN}))
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["gradwatch/grad_norm"]]


def test_the_docstring_tabulates_what_is_logged(tmp_path: Path) -> None:
    """The keys in the class docstring are those that one policy or another logs, no more and no fewer."""
    rows = [logged(tmp_path / "norm", 1)[0], logged(tmp_path / "agc", 1, "agc")[0]]
    documented = set(re.findall(r"^ *``(gradwatch/\w+)`` ", AdaptiveClip.__doc__ or "", re.MULTILINE))
    with_recurrence = "gradwatch/through_time"  # test_clip_through_time.py
    assert documented - {with_recurrence} == {key for row in rows for key in row if key.startswith("gradwatch/")}
    assert len(documented) == 8


def test_norms_and_thresholds_are_a_figure_where_the_logger_takes_one(tmp_path: Path) -> None:
    """Beside a CSV file it is a PNG at the end of each epoch; without the argument there is none."""
    for name, figures in (("without", False), ("with", True)):
        logger = CSVLogger(tmp_path / name, name="", version=0)
        fit(trainer_for(tmp_path / name, AdaptiveClip(figures=figures), logger=logger, max_epochs=2), Regression())
    assert not list((tmp_path / "without").rglob("*.png"))
    made = sorted((tmp_path / "with").rglob("*.png"))
    assert [path.parent.name for path in made] == ["clipping", "clipping"]
    assert all(path.stat().st_size > 5_000 for path in made)


def test_each_step_is_one_row_that_agrees_with_itself(tmp_path: Path) -> None:
    """Norm, coefficient, norm after, rate and skips of one step stand in one row under its step."""
    rows = logged(tmp_path, 1)
    assert [int(row["step"]) for row in rows] == list(range(12))
    clipped = 0
    for index, row in enumerate(rows):
        if index == 3:
            assert row["gradwatch/grad_norm"] == "nan"
            continue
        norm, coefficient = float(row["gradwatch/grad_norm"]), float(row["gradwatch/clip_coefficient"])
        clipped += coefficient < 1
        assert float(row["gradwatch/clip_threshold"]) == pytest.approx(0.1)
        assert float(row["gradwatch/clipped_norm"]) == pytest.approx(norm * coefficient)
        assert float(row["gradwatch/clip_rate"]) == pytest.approx(clipped / (index + 1))
        assert float(row["gradwatch/skipped_steps"]) == (index > 3)
    assert clipped > 5


def test_the_trainers_cadence_is_kept(tmp_path: Path) -> None:
    """With log_every_n_steps=5 steps 4 and 9 are logged."""
    assert [int(row["step"]) for row in logged(tmp_path, 5)] == [4, 9]


# -- state ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy", [Spike(), AutoClip(), ZClip(warmup_steps=5), ZClip(mode="percentile", warmup_steps=5)]
)
def test_a_resumed_run_decides_as_an_uninterrupted_one(tmp_path: Path, policy: ClipPolicy) -> None:
    """Records of steps and final weights after a resume are identical to those of the run in one go."""
    spoil = {4: NAN, 7: 1e4, 14: 1e4, 17: NAN, 20: 30.0}

    def start() -> Regression:
        torch.manual_seed(1)
        return Regression(spoil)

    whole, interrupted, resumed = AdaptiveClip(policy), AdaptiveClip(policy), AdaptiveClip(policy)
    expected, first, second = start(), start(), start()
    fit(trainer_for(tmp_path / "whole", whole, max_epochs=2), expected)
    trainer = trainer_for(tmp_path / "half", interrupted, max_epochs=1)
    fit(trainer, first)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    fit(trainer_for(tmp_path / "half", resumed, max_epochs=2), second, ckpt_path=tmp_path / "half.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), second.parameters(), strict=True))
    assert steps_of(resumed) == steps_of(whole)
    assert resumed.run_dir == interrupted.run_dir
    assert resumed.state_dict()["optimizers"] == whole.state_dict()["optimizers"]


def test_a_second_fit_starts_afresh(tmp_path: Path) -> None:
    """One instance in two fits: counts, history, events and folder of the first don't reach the second."""
    callback = AdaptiveClip()
    fit(trainer_for(tmp_path, callback), Regression({8: 1e6}))
    first = callback.run_dir
    fit(trainer_for(tmp_path, callback), Regression())
    state = callback.state_dict()["optimizers"][0]
    assert (state["steps"], state["clipped"]) == (12, 0)
    assert callback.events == []
    assert callback.run_dir != first


class CopyMidway(pl.Callback):
    """Deep-copies and pickles the callback in the middle of a step."""

    def __init__(self, target: AdaptiveClip) -> None:
        self.target = target
        self.copies: list[tuple[AdaptiveClip, bytes]] = []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 6:
            self.copies.append((copy.deepcopy(self.target), pickle.dumps(self.target)))


def test_it_can_be_copied_and_pickled_in_mid_fit(tmp_path: Path) -> None:
    """A copy has the state, and neither module, trainer nor run log."""
    callback = AdaptiveClip()
    midway = CopyMidway(callback)
    fit(trainer_for(tmp_path, callback, midway), Regression())
    ((copied, pickled),) = midway.copies
    for other in (copied, pickle.loads(pickled)):
        assert other.state_dict()["optimizers"][0]["steps"] == 6
        assert not any(isinstance(value, (pl.LightningModule, pl.Trainer)) for value in vars(other).values())
        assert other.events == []
        assert other._recorder.sink.log is None
    assert b"Regression" not in pickled
    assert len(pickled) < 5_000


@pytest.mark.parametrize("arguments", [{}, {"exclude": ["net.0.*"]}, {"policies": {"net.0.*": "spike"}}])
def test_the_default_is_called_in_a_checkpoint_as_0_1_0_called_it(arguments: dict[str, Any]) -> None:
    """So that its state is found, whatever its arguments are called today; others have names of their own."""
    first = "Spike(least_factor=30.0, peak_factor=8.0, most_factor=100.0, window=20, longest_step=0.2)"
    key = AdaptiveClip(**arguments).state_key
    assert f"'policy': '{first}'" in key
    assert key == AdaptiveClip(Spike(), **arguments).state_key
    assert key.count(first) == 1 + ("policies" in arguments)
    others = [Spike(factor=5.0), Spike(memory=500), Spike(window=40), Spike(longest_step=0.2)]
    assert len({key, *(AdaptiveClip(policy, **arguments).state_key for policy in others)}) == 5


def test_different_arguments_are_different_states(tmp_path: Path) -> None:
    """Two instances with different policies can stand in one Trainer and one checkpoint."""
    a, b, c = AdaptiveClip(Norm(1.0)), AdaptiveClip(Norm(2.0)), AdaptiveClip("spike")
    assert len({a.state_key, b.state_key, c.state_key}) == 3
    assert a.state_key == AdaptiveClip(Norm(1.0)).state_key
    trainer_for(tmp_path, a, b, c)


# -- what must not harm a run --------------------------------------------------------------------------------------


def test_events_reach_callable_and_run_log(tmp_path: Path) -> None:
    """The list, the callable and the file have the same events."""
    seen: list[Event] = []
    callback = AdaptiveClip(on_event=seen.append)
    fit(trainer_for(tmp_path, callback), Regression({5: NAN}))
    assert callback.run_dir is not None
    lines = [json.loads(line) for line in (callback.run_dir / "events.jsonl").read_text().splitlines()]
    assert seen == callback.events
    assert [line["kind"] for line in lines if "kind" in line] == [e.kind for e in seen] == ["STEP_SKIPPED"]


def test_a_failing_on_event_is_said_once(tmp_path: Path) -> None:
    """An exception in the user's callable harms neither the run nor the record."""

    def fail(event: Event) -> None:
        raise RuntimeError("no network")

    module, callback = Regression({5: NAN, 7: NAN}), AdaptiveClip(on_event=fail)
    messages = fit(trainer_for(tmp_path, callback), module)
    assert len([m for m in messages if "no network" in m]) == 1
    assert len(callback.events) == 2
    assert len(module.losses) == 12


class Broken(Norm):
    def decide(self, reading: StepReading) -> Decision:
        raise ZeroDivisionError("a bug")


def test_a_failure_of_our_own_lets_training_go_on(tmp_path: Path) -> None:
    """One warning, then the run is the run without us."""
    bare, module = Regression(), Regression()
    module.load_state_dict(bare.state_dict())
    fit(trainer_for(tmp_path), bare)
    messages = fit(trainer_for(tmp_path, AdaptiveClip(Broken())), module)
    assert len([m for m in messages if "a bug" in m]) == 1
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), module.parameters(), strict=True))


def test_a_healthy_run_is_untouched_to_the_bit(tmp_path: Path) -> None:
    """With the default policy, an ordinary run ends in the weights of the run without us."""
    slow = lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9)  # noqa: E731
    bare, module, callback = Regression(make=slow), Regression(make=slow), AdaptiveClip()
    module.load_state_dict(bare.state_dict())
    fit(trainer_for(tmp_path, max_epochs=4), bare)
    assert sum(bare.losses[-12:]) < 0.2 * sum(bare.losses[:12])
    fit(trainer_for(tmp_path, callback, max_epochs=4), module)
    assert callback.events == []
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), module.parameters(), strict=True))


def test_the_run_log_is_closed_on_an_exception(tmp_path: Path) -> None:
    """Whatever ends the fit, what was written is there, and the writer is let go."""

    class Fails(Regression):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            if batch_idx == 4:
                raise KeyError("broken batch")
            return super().training_step(batch, batch_idx)

    callback = AdaptiveClip()
    trainer = trainer_for(tmp_path, callback)
    with pytest.raises(KeyError):
        trainer.fit(Fails(), data())
    assert callback._recorder.sink.log is None
    assert len(steps_of(callback)) == 4


def test_a_step_without_gradients_is_passed_over(tmp_path: Path) -> None:
    """training_step may return None; such a step is neither counted nor an error."""

    class Sparse(Regression):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return None if batch_idx == 2 else super().training_step(batch, batch_idx)

    callback = AdaptiveClip()
    assert fit(trainer_for(tmp_path, callback), Sparse()) == []
    assert len(steps_of(callback)) == 11


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"on_nonfinite": "skipp"}, "`on_nonfinite` must be one of .*found 'skipp'"),
        ({"on_conflict": "x"}, "`on_conflict` must be one of"),
        ({"max_successive_skips": 0}, "`max_successive_skips` must be ≥ 1; found 0"),
        ({"max_successive_skips": 2.5}, "`max_successive_skips` must be a whole number ≥ 1; found 2.5"),
        ({"policy": "nonsense"}, "`policy` must be one of"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments: dict[str, Any], match: str) -> None:
    """Each error names the argument, the rule and what was found."""
    with pytest.raises(ValueError, match=match):
        AdaptiveClip(**arguments)


# -- what it is for ------------------------------------------------------------------------------------------------


class Unstable(pl.LightningModule):
    """A ReLU network whose spectral radius and learning rate are too high; it predicts a repeating sequence."""

    def __init__(self, radius: float, rate: float) -> None:
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(16, 16), torch.nn.Linear(32, 16)
        self.rnn = torch.nn.RNN(16, 32, nonlinearity="relu")
        torch.nn.init.orthogonal_(self.rnn.weight_hh_l0, gain=radius)
        self.rate, self.losses = rate, list[float]()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        tokens = ((batch[:, :1] * 97).long() + torch.arange(41)).remainder(16).T
        out, _ = self.rnn(self.embedding(tokens[:-1]))
        loss = torch.nn.functional.cross_entropy(self.head(out).flatten(0, 1), tokens[1:].flatten())
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.rate)


@pytest.mark.parametrize(("radius", "rate"), [(1.6, 0.3), (1.0, 2.0)])
def test_a_run_that_explodes_learns(tmp_path: Path, radius: float, rate: float) -> None:
    """From the first step on: without the callback the run is lost, with it the loss falls far below chance."""
    torch.manual_seed(2)
    bare = Unstable(radius, rate)
    held, callback = copy.deepcopy(bare), AdaptiveClip()
    fit(trainer_for(tmp_path), bare, batches=150)
    fit(trainer_for(tmp_path, callback), held, batches=150)
    assert not finite(bare)
    assert finite(held)
    assert EventKind.STEP_SKIPPED not in kinds(callback)
    assert sum(held.losses[-10:]) / 10 < 0.5 * math.log(16)
