"""What GradWatch says of clipping, whoever clips: where it is told, how the training ended, and that the advice helps."""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from lightning_gradwatch import AdaptiveClip, EventKind, GradWatch, Norm, load_run
from lightning_gradwatch.audit import ClipVerdict
from tests.integration.ways import Manual
from tests.models import TinyLanguageModel, sentences, trainer
from tests.versions import cpu_scaler


def fit(tmp_path: Any, model: pl.LightningModule, *, watch: GradWatch | None = None, **options: Any) -> GradWatch:
    watch = watch or GradWatch(every_n_steps=2)
    around = options.pop("callbacks", [])
    trainer(tmp_path, [watch, *around], **{"max_steps": 24, **options}).fit(model, sentences())
    return watch


def verdict(watch: GradWatch) -> ClipVerdict:
    (found,) = watch.clipping
    return found.verdict


def test_the_verdict_is_told_everywhere_alike(tmp_path, caplog) -> None:
    """On the callback, in run.json, in the closing lines, as an event, through load_run."""
    watch = fit(tmp_path, TinyLanguageModel(optimizer="SGD"), gradient_clip_val=1e-3)
    (found,) = watch.clipping
    assert (found.verdict, found.share, found.clipped_steps, found.steps) == (ClipVerdict.STEP_LIMITER, 1.0, 24, 24)
    assert found.by == ["Trainer(gradient_clip_val=0.001)"]
    assert watch.run_dir is not None
    assert json.loads((watch.run_dir / "run.json").read_text())["clipping"] == [found.to_record()]
    run = load_run(watch.run_dir)
    assert run.clipping == [found.to_record()]
    (event,) = [event for event in watch.events if event.kind == EventKind.CLIPPING_LIMITS_STEPS]
    assert found.sentence in event.message
    assert [one["kind"] for one in run.event_records].count("CLIPPING_LIMITS_STEPS") == 1
    assert f"Clipping: step limiter. {found.sentence}" in caplog.text


def test_the_norms_are_those_of_the_training(tmp_path) -> None:
    """Before and after, against a Trainer's own bound: the coefficient is bound by norm, the percentiles are the norms'."""
    norms: list[float] = []

    class Notes(pl.Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            norms.append(math.hypot(*(float(p.grad.norm()) for p in pl_module.parameters())))

    watch = fit(
        tmp_path, TinyLanguageModel(), watch=GradWatch(every_n_steps=1), callbacks=[Notes()], gradient_clip_val=0.05
    )
    (found,) = watch.clipping
    middle = sorted(norms)[len(norms) // 2 - 1 : len(norms) // 2 + 1]
    assert found.norm_percentiles is not None
    assert found.norm_percentiles["max"] == pytest.approx(max(norms), rel=1e-5)
    assert found.norm_percentiles["p50"] == pytest.approx(sum(middle) / 2, rel=1e-5)
    assert found.median_coefficient == pytest.approx(0.05 / (sum(middle) / 2), rel=1e-2)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "RMSprop"])
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_the_advised_bound_helps(tmp_path, cell: str, optimizer: str) -> None:
    """A bound too low; the one that the remedy names acts on few steps or none, and the training goes on to learn."""

    def model() -> TinyLanguageModel:
        torch.manual_seed(0)
        return TinyLanguageModel(cell, optimizer=optimizer)

    before = fit(tmp_path, model(), gradient_clip_val=1e-2)
    assert verdict(before) is ClipVerdict.STEP_LIMITER
    (advised,) = re.findall(r"gradient_clip_val to about ([\d.e-]+)", before.clipping[0].remedy)
    after = fit(tmp_path, model(), gradient_clip_val=float(advised))
    assert verdict(after) in (ClipVerdict.SAFETY_NET, ClipVerdict.NEVER_ACTED)
    assert ("times as long" in before.clipping[0].remedy) == (optimizer == "SGD")


class ClipsScaled(Manual):
    """Between ``manual_backward`` and the step, where a gradient scaler's factor is still in the gradients."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch[0], batch_idx))
        self.clips()
        optimizer.step()

    def clips(self) -> None:
        clip_grad_norm_(self.parameters(), 1.0)


class ClipsUnscaled(ClipsScaled):
    """As the remedy has it."""

    def clips(self) -> None: ...

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        clip_grad_norm_(self.parameters(), 1.0)


def scaled() -> Any:
    scaler = cpu_scaler(init_scale=2.0**14)
    return pl.plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler)


def test_clipping_before_unscaling_is_found_and_its_remedy_helps(tmp_path) -> None:
    """A bound of 1 is one of 6e-5 there. In on_before_optimizer_step it is 1."""
    with torch.backends.mkldnn.flags(enabled=False):
        before = fit(tmp_path, ClipsScaled(), plugins=scaled())
        after = fit(tmp_path, ClipsUnscaled(), watch=GradWatch(every_n_steps=1), plugins=scaled())
    found = before.clipping[0]
    assert found.verdict is ClipVerdict.STEP_LIMITER
    assert "before the gradient scaler had taken its factor of 16,384 out" in found.sentence
    assert found.median_coefficient is not None
    assert found.median_coefficient < 1e-3
    assert "on_before_optimizer_step" in found.remedy
    assert verdict(after) is ClipVerdict.NEVER_ACTED


class InStep(TinyLanguageModel):
    """Clips before Lightning's backward pass."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        clip_grad_norm_(self.parameters(), 1e-2)
        return loss


class InHook(TinyLanguageModel):
    """As the remedy has it."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        clip_grad_norm_(self.parameters(), 1e-2)


@pytest.mark.parametrize("remedy", [{"model": InHook}, {"gradient_clip_val": 1e-2}])
def test_clipping_before_the_backward_pass_is_found_and_its_remedy_helps(tmp_path, remedy: dict[str, Any]) -> None:
    """In training_step it acts on the gradients of the step before; both ways that the remedy names act on the new ones."""
    before = fit(tmp_path, InStep())
    assert verdict(before) is ClipVerdict.NO_EFFECT
    assert [event.kind for event in before.events].count(EventKind.CLIPPING_WITHOUT_EFFECT) == 1
    assert "on_before_optimizer_step" in before.clipping[0].remedy
    assert "gradient_clip_val" in before.clipping[0].remedy
    after = fit(tmp_path, remedy.pop("model", TinyLanguageModel)(), **remedy)
    assert verdict(after) is ClipVerdict.STEP_LIMITER


def test_one_step_of_many_is_said_to_be_one(tmp_path) -> None:
    """A short run and the default sampling: the sentence says how many steps were looked at."""
    watch = fit(tmp_path, TinyLanguageModel(), watch=GradWatch())
    assert "On the one step looked at, of 24," in watch.clipping[0].sentence


@pytest.mark.parametrize("model", [Manual(backward="raw"), Manual(backward="raw", wrapped=False)])
def test_raw_backward_passes_are_not_judged(tmp_path, model: Manual) -> None:
    """A backward pass of which nobody said anything leaves no norm to compare with: undecided, with the reason."""
    watch = fit(tmp_path, model, max_steps=-1, max_epochs=3)  # Lightning does not count a bare optimizer's steps
    assert verdict(watch) is ClipVerdict.UNDECIDED
    assert "use self.manual_backward(loss)" in watch.clipping[0].sentence


def test_a_bare_optimizer_is_looked_at(tmp_path) -> None:
    """It calls no hook of Lightning's; its own is enough."""
    watch = fit(tmp_path, Manual(wrapped=False), max_steps=-1, max_epochs=3)
    assert verdict(watch) is ClipVerdict.NONE
    assert (watch.clipping[0].samples, watch.clipping[0].steps) == (12, 24)  # two steps a batch, four batches an epoch


def test_a_training_that_breaks_off_has_its_verdict(tmp_path) -> None:
    """What was seen until then; no hook is left on the optimizer."""

    class Breaks(TinyLanguageModel):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            if self.trainer.global_step == 15:
                raise RuntimeError("enough")
            return super().training_step(batch, batch_idx)

    watch, model = GradWatch(every_n_steps=1), Breaks()
    with pytest.raises(RuntimeError, match="enough"):
        fit(tmp_path, model, watch=watch, gradient_clip_val=1e-3)
    assert verdict(watch) is ClipVerdict.STEP_LIMITER
    assert watch.clipping[0].steps == 15
    optimizer = model.optimizers(use_pl_optimizer=False)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_resumed_training_says_where_it_began(tmp_path) -> None:
    """Its verdict is on the steps of its own."""
    options = {"enable_checkpointing": True, "gradient_clip_val": 1e-3}
    fit(tmp_path, TinyLanguageModel(), **options)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    watch, resumed = GradWatch(every_n_steps=2), trainer(tmp_path, max_steps=40, gradient_clip_val=1e-3)
    resumed.callbacks.append(watch)
    resumed.fit(TinyLanguageModel(), sentences(), ckpt_path=checkpoint)
    (found,) = watch.clipping
    assert (found.first_step, found.steps, found.clipped_steps) == (24, 16, 16)


def test_adaptive_clip_is_counted_by_its_own_count(tmp_path) -> None:
    """A spike between two samples: it is clipped, and nobody says that it never acted."""

    class Spikes(TinyLanguageModel):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (100.0 if self.trainer.global_step == 13 else 1.0)

    watch = fit(tmp_path, Spikes(), watch=GradWatch(every_n_steps=8), callbacks=[AdaptiveClip(Norm(5.0))])
    (found,) = watch.clipping
    assert (found.verdict, found.clipped_steps, found.share) == (ClipVerdict.SAFETY_NET, 1, 0.0)
    assert found.sentence.startswith("AdaptiveClip (Norm) made the gradient smaller on 1 of 24 steps.")
    assert watch.run_dir is not None
    largest = max(record["grad_norm"] for record in load_run(watch.run_dir).step_records)
    assert found.norm_percentiles is not None
    assert found.norm_percentiles["max"] == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("name", ["head.bias", "head.weight", "rnn.weight_hh_l0"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_step_with_a_gradient_that_is_not_finite_is_no_sample(tmp_path, name: str, value: float) -> None:
    """The norm of the others alone is not that of the step."""

    class Breaks(TinyLanguageModel):
        def on_after_backward(self) -> None:
            if self.trainer.global_step == 3:
                self.get_parameter(name).grad[0] = value

    watch = fit(tmp_path, Breaks(), watch=GradWatch(every_n_steps=1))
    (found,) = watch.clipping
    assert found.samples == 3


@pytest.mark.parametrize("bad", [{3}, {3, 4, 5}, {0, 9}])
def test_adaptive_clip_that_skipped_has_acted(tmp_path, bad: set[int]) -> None:
    """Gradients that are not finite at some steps, and no explosion: nobody says that it never acted."""

    steps = itertools.count()

    class Breaks(TinyLanguageModel):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (torch.nan if next(steps) in bad else 1.0)

    watch = fit(tmp_path, Breaks(), callbacks=[AdaptiveClip(Norm(50.0))])
    (found,) = watch.clipping
    assert (found.verdict, found.clipped_steps) == (ClipVerdict.SAFETY_NET, 0)
    assert found.sentence.startswith(f"AdaptiveClip (Norm) skipped {len(bad)} of 24 steps, and clipped none.")


@pytest.mark.parametrize("every", [5, 8, 11])
def test_the_largest_norm_is_that_of_the_steps_looked_at_where_others_are_not_known(tmp_path, every: int) -> None:
    """In a training that steps by hand."""
    watch = fit(tmp_path, Manual(), watch=GradWatch(every_n_steps=every))
    (found,) = watch.clipping
    assert re.search(r"The gradient norm of the \d+ steps looked at: median", found.sentence)


def test_damage_in_run_json_is_passed_over(tmp_path) -> None:
    """Whatever stands there, load_run gives entries that have their fields, and nothing else."""
    watch = fit(tmp_path, TinyLanguageModel(), max_steps=2)
    assert watch.run_dir is not None
    file = watch.run_dir / "run.json"
    meta = json.loads(file.read_text())
    good = meta["clipping"][0]
    meta["clipping"] = [good, 3, {}, {**good, "verdict": 7}, {**good, "norm_percentiles": {"p50": "much"}}]
    file.write_text(json.dumps(meta))
    assert load_run(watch.run_dir).clipping == [good]
    file.write_text(json.dumps({**meta, "clipping": "none"}))
    assert load_run(watch.run_dir).clipping == []
