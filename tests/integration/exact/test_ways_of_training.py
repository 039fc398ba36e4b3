"""What GradWatch records is right in every way of training: which steps, which micro-batches, on which scale."""

# Over 300 lines: one table of ways to train, of which scale, steps and outputs are read.
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner

from lightning_gradwatch import AdaptiveClip, EventKind, GradWatch, load_run
from tests.integration.ways import Adversarial, Fused, InTurn, Manual, SkipsBatches, scaled
from tests.models import TinyLanguageModel, sentences, trainer
from tests.oracles import gradients, norms, unroll
from tests.versions import needs_torch

NO_OPTIMIZER_HOOKS = "calls no hook of an optimizer once something was compiled, so that its bare steps are not counted"


def watch(tmp_path: Path, model: Any, *callbacks: Callback, data: Any = None, every: int = 100, **options: Any) -> Any:
    """Fit with a GradWatch, from a fixed seed, and return it."""
    torch.manual_seed(1)
    watching = GradWatch(every_n_steps=every, max_sequences=None, dirpath=tmp_path / "run")
    trainer(tmp_path, [watching, *callbacks], **options).fit(model(), data or sentences(128))
    return watching


def profiles(watching: GradWatch, *fields: str, module: str | None = None) -> list[Any]:
    """Fields of the profiles of h in the run log, lowest layer only."""
    assert watching.run_dir is not None
    records = load_run(watching.run_dir).profile_records
    chosen = [r for r in records if r["state"] == "h" and r["layer"] == 0 and module in (None, r["module"])]
    return [tuple(record[name] for name in fields) if len(fields) > 1 else record[fields[0]] for record in chosen]


@pytest.fixture
def _no_onednn() -> Any:
    with torch.backends.mkldnn.flags(enabled=False):
        yield


class TestScale:
    """Norms are those of the loss as the user wrote it."""

    @pytest.mark.parametrize("windows", [2, 4, 3])
    def test_accumulation_is_undone(self, tmp_path: Path, windows: int) -> None:
        """The first micro-batch of four has the norms that it has alone; likewise of a last window cut short."""
        alone = watch(tmp_path / "1", TinyLanguageModel)
        among = watch(tmp_path / "n", TinyLanguageModel, accumulate_grad_batches=windows)
        short = watch(
            tmp_path / "s", TinyLanguageModel, data=sentences(8), accumulate_grad_batches=windows, max_steps=1
        )
        (expected,) = profiles(alone, "total")
        assert profiles(among, "total") == [pytest.approx(expected, rel=1e-5)]
        assert profiles(short, "total") == [pytest.approx(expected, rel=1e-5)]

    @pytest.mark.usefixtures("_no_onednn")
    @pytest.mark.parametrize("accumulate", [1, 4])
    @pytest.mark.parametrize("model", [TinyLanguageModel, Fused, Manual])
    def test_the_loss_scale_is_undone(self, tmp_path: Path, model: Any, accumulate: int) -> None:
        """Under a gradient scaler the norms are those of full precision, however the optimizer unscales."""
        if model is Manual and accumulate > 1:
            pytest.skip("Lightning does not accumulate where the module optimizes by hand")
        options = {"accumulate_grad_batches": accumulate}
        plain = watch(tmp_path / "plain", model, every=2, **options)
        mixed = watch(tmp_path / "mixed", model, every=2, plugins=scaled(2.0**16, growth_interval=1), **options)
        expected = profiles(plain, "total")
        assert len(expected) == (4 if model is Manual else 3)  # its six optimizer steps are three batches
        for found, true in zip(profiles(mixed, "total"), expected, strict=True):
            assert found == pytest.approx(true, rel=0.03)

    @pytest.mark.usefixtures("_no_onednn")
    def test_a_raw_backward_was_not_scaled(self, tmp_path: Path) -> None:
        """A loss.backward() past Lightning's scaler is taken as it is."""
        options = {"max_steps": -1, "max_epochs": 1, "data": sentences(8)}
        raw, mixed = (
            watch(
                tmp_path / name,
                lambda: Manual(backward="raw", wrapped=False, optimizer="SGD", lr=0.0),
                **more,
                **options,
            )
            for name, more in (("raw", {}), ("mixed", {"plugins": scaled(2.0**16)}))
        )
        for found, true in zip(profiles(mixed, "total"), profiles(raw, "total"), strict=True):
            assert found == pytest.approx(true, rel=0.03)


TOLERANCES = {"bf16-mixed": 0.01, "bf16-true": 0.01, "16-mixed": 0.001}
RELU = 0.2
"""Of the largest norm, as docs/how-to/mixed-precision.md states it; that of a relu network in bfloat16 by itself."""


@pytest.mark.usefixtures("_no_onednn")
@pytest.mark.parametrize("cell", ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_half_precision_is_within_the_stated_tolerance(tmp_path: Path, precision: str, cell: str) -> None:
    """Under half precision the totals say that they are inexact, and lie near those of the same weights in double precision."""
    torch.manual_seed(0)
    model = TinyLanguageModel(cell, layers=2, hidden=32)
    if precision == "bf16-true":
        model = model.bfloat16().float()  # the weights that it will compute with
    double, data = copy.deepcopy(model).double(), sentences(8, length=33)
    watching = GradWatch(keep_sequences=True, max_sequences=None, dirpath=tmp_path / "run")
    options = {"plugins": scaled()} if precision == "16-mixed" else {"precision": precision}
    trainer(tmp_path, [watching], max_steps=1, **options).fit(model, data)
    (words,) = next(iter(data))
    unrolled = [unroll(double.rnn, x) for x in double.embedding(words[:, :-1]).detach()]
    logits = double.head(torch.stack([torch.cat(one.output) for one in unrolled]))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten())
    records = [record for record in load_run(tmp_path / "run").profile_records if record["state"] == "h"]
    assert [record["layer"] for record in records] == [0, 1]
    tolerance = RELU if cell == "RNN_RELU" and "bf16" in precision else TOLERANCES[precision]
    for record in records:
        true = np.array([norms(gradients(loss, one.h[record["layer"]][0])).numpy() for one in unrolled])
        found = np.array(record["total_by_sequence"])
        assert not record["exact"]
        assert 0 < np.abs(found - true).max() / true.max() < tolerance


class TestWhich:
    """Each record says which step and which micro-batch it is of."""

    def test_accumulation_by_schedule(self, tmp_path: Path) -> None:
        """As the number of micro-batches changes, step and micro-batch go on counting rightly."""
        schedule = GradientAccumulationScheduler({0: 1, 1: 4})
        found = watch(tmp_path, TinyLanguageModel, schedule, data=sentences(64), every=2, max_steps=-1, max_epochs=3)
        assert profiles(found, "step", "epoch", "batch_idx", "micro_batch") == [
            *((step, 0, step, 0) for step in (0, 2, 4, 6)),
            (8, 1, 0, 0),
            (10, 2, 0, 0),
        ]

    def test_lbfgs_is_measured_once_a_step(self, tmp_path: Path) -> None:
        """However often LBFGS evaluates the loss, a sampled step leaves one record, of the first evaluation."""
        found = watch(tmp_path, lambda: TinyLanguageModel(optimizer="LBFGS", lr=0.1), every=1, max_steps=3)
        assert profiles(found, "step", "call") == [(0, 0), (1, 0), (2, 0)]

    def test_a_batch_without_loss_is_made_up_for(self, tmp_path: Path) -> None:
        """Where the batch to be sampled returns no loss, the next one that does is measured."""
        found = watch(tmp_path, lambda: SkipsBatches(without_loss=(0, 4)), every=4, max_steps=9)
        assert profiles(found, "batch_idx") == [1, 5, 8]

    @pytest.mark.parametrize("backward", ["lightning", "raw"])
    def test_several_steps_a_batch(self, tmp_path: Path, backward: str) -> None:
        """Each part of a batch that is optimized by hand is measured exactly, with either way of calling backward."""
        found = watch(tmp_path, lambda: Manual(backward=backward), every=2, max_steps=6)
        assert profiles(found, "batch_idx", "timesteps", "exact") == [
            (0, 4, True), (0, 3, True), (2, 4, True), (2, 3, True),
        ]  # fmt: skip

    @pytest.mark.parametrize("wrapped", [True, False])
    @pytest.mark.parametrize("backward", ["lightning", "raw"])
    def test_steps_within_a_batch_are_counted(self, tmp_path: Path, backward: str, wrapped: bool) -> None:
        """Each part of a batch that makes several optimizer steps carries the number of steps done when its forward ran."""
        if not wrapped:
            needs_torch(2, 3, NO_OPTIMIZER_HOOKS)
        model = lambda: Manual(backward=backward, wrapped=wrapped)  # noqa: E731
        found = watch(tmp_path, model, every=1, data=sentences(24), max_steps=-1, max_epochs=1)
        assert profiles(found, "step", "batch_idx", "timesteps") == [
            (0, 0, 4), (1, 0, 3), (2, 1, 4), (3, 1, 3), (4, 2, 4), (5, 2, 3),
        ]  # fmt: skip

    @pytest.mark.parametrize("wrapped", [True, False])
    def test_an_event_names_the_step_within_the_batch(self, tmp_path: Path, wrapped: bool) -> None:
        """What goes wrong in the second part of the third batch happened after five optimizer steps."""
        if not wrapped:
            needs_torch(2, 3, NO_OPTIMIZER_HOOKS)

        class Spoilt(Manual):
            def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
                self.parts = 0
                super().training_step(batch, batch_idx)

            def manual_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
                bad = self.current_epoch == 0 and self.parts == 1 and self.trainer.fit_loop.batch_idx == 2
                self.parts += 1
                super().manual_backward(loss * float("nan") if bad else loss, *args, **kwargs)

        found = watch(tmp_path, lambda: Spoilt(wrapped=wrapped), data=sentences(32), max_steps=-1, max_epochs=1)
        assert [event.step for event in found.events if event.kind == EventKind.NONFINITE_LOSS] == [5]

    def test_bare_steps_are_counted_on_in_a_resumed_run(self, tmp_path: Path) -> None:
        """Steps of which Lightning knows nothing are in the checkpoint, so that a resumed run counts on."""
        needs_torch(2, 3, NO_OPTIMIZER_HOOKS)
        options = {"data": sentences(16), "max_steps": -1}
        model = lambda: Manual(wrapped=False)  # noqa: E731
        watching = GradWatch(every_n_steps=1, dirpath=tmp_path / "first")
        run = trainer(tmp_path, [watching], max_epochs=1, max_steps=-1)
        run.fit(model(), options["data"])
        run.save_checkpoint(tmp_path / "last.ckpt")
        again = GradWatch(every_n_steps=1, dirpath=tmp_path / "first")
        more = trainer(tmp_path, [again], max_epochs=2, max_steps=-1)
        more.fit(model(), options["data"], ckpt_path=tmp_path / "last.ckpt")
        assert profiles(again, "step") == list(range(8))

    def test_weights_stepped_before_we_could_look_are_said(self, tmp_path: Path) -> None:
        """A raw backward with a raw optimizer calls no hook: what is measured after it says that it is not exact."""
        found = watch(tmp_path, lambda: Manual(backward="raw", wrapped=False), max_steps=-1, max_epochs=1)
        reasons = profiles(found, "inexact_reason")
        assert reasons == ["the weight was changed in place after the forward"] * len(reasons)
        assert len(reasons) >= 1

    def test_two_networks_are_both_measured(self, tmp_path: Path) -> None:
        """Of a generator and a discriminator each backward pass of a sampled batch is measured, exactly."""
        found = watch(tmp_path, Adversarial, max_steps=6)
        assert profiles(found, "batch_idx", "exact", module="generator") == [(0, True)]
        # once while the generator is trained through it, and at its own two steps on real and on made sentences
        assert profiles(found, "batch_idx", "exact", module="discriminator") == [(0, True)] * 5
        assert profiles(found, "step", module="discriminator") == [0, 1, 1, 2, 2]

    @pytest.mark.parametrize("critic", [1, 3])
    def test_a_forward_before_another_networks_step_keeps_its_number(self, tmp_path: Path, critic: int) -> None:
        """Where a critic steps several times between the generator's forward and its backward, each profile has its forward's step."""

        class CriticFirst(Adversarial):
            def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
                words = batch[0]
                for_generator, for_critic = self.optimizers()
                fake = self.readout(self.generator(torch.randn(*words.shape, 4))[0]).softmax(-1)
                for _ in range(critic):
                    self._step(for_critic, self._judge(fake.detach(), 0.0))
                self._step(for_generator, self._judge(fake, 1.0))

        found = watch(tmp_path, CriticFirst, data=sentences(16), every=1, max_steps=-1, max_epochs=1)
        batches = range(0, 2 * (critic + 1), critic + 1)
        assert profiles(found, "step", module="generator") == list(batches)
        assert profiles(found, "step", module="discriminator") == [n + k for n in batches for k in range(critic + 1)]

    def test_networks_in_turn_are_both_measured(self, tmp_path: Path) -> None:
        """Where a network trains at odd batches only and every second one is sampled, it is measured all the same."""
        found = watch(tmp_path, InTurn, every=2)
        assert profiles(found, "batch_idx", module="rnn") == [0, 2, 4]
        assert profiles(found, "batch_idx", module="other") == [1, 3, 5]


class TestOutput:
    """What is written, and where."""

    def test_barebones_logs_nothing_and_measures(self, tmp_path: Path) -> None:
        """A barebones Trainer has no loggers; both callbacks work and keep their run log."""
        clip = AdaptiveClip(dirpath=tmp_path / "run")
        found = watch(tmp_path, TinyLanguageModel, clip, barebones=True)
        assert profiles(found, "step") == [0]
        assert len(load_run(tmp_path / "run").step_records) == 6

    def test_fast_dev_run_writes_nothing(self, tmp_path: Path) -> None:
        """A dry run measures, and leaves no file."""
        clip = AdaptiveClip()
        found = watch(tmp_path, TinyLanguageModel, clip, fast_dev_run=2)
        assert found.lagged
        assert (found.run_dir, clip.run_dir, list(tmp_path.rglob("*.json*"))) == (None, None, [])

    def test_the_tuner_leaves_nothing(self, tmp_path: Path) -> None:
        """The learning-rate search is not watched; the fit after it has the run log's own folder and the first step."""
        watching, model = GradWatch(), TinyLanguageModel()
        run = trainer(tmp_path, [watching, AdaptiveClip()], max_steps=3, enable_checkpointing=False)
        Tuner(run).lr_find(model, sentences(), num_training=5)
        assert not model.rnn._forward_hooks
        assert watching.run_dir is None
        run.fit(model, sentences())
        assert watching.run_dir == tmp_path / "gradwatch"
        assert profiles(watching, "step") == [0]
        assert not (tmp_path / "gradwatch-1").exists()

    def test_optimizers_count_together(self, tmp_path: Path) -> None:
        """With two optimizers a sampled batch is one row of the logger, and AdaptiveClip numbers them."""
        logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
        watch(tmp_path, Adversarial, AdaptiveClip(), logger=logger, log_every_n_steps=1, max_steps=6)
        header, *_ = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
        names = set(header.split(","))
        assert {"gradwatch/0/grad_norm", "gradwatch/1/grad_norm"} <= names
        assert {"gradwatch/generator/l0/horizon", "gradwatch/discriminator/l0/horizon"} <= names


@pytest.mark.usefixtures("_no_onednn")
class TestScaler:
    """Events under a gradient scaler."""

    def test_a_growing_scale_is_no_explosion(self, tmp_path: Path) -> None:
        """A scale that doubles every step for 24 steps is not mistaken for gradients that grow."""
        plugin = scaled(2.0**-8, growth_interval=1)
        found = watch(tmp_path, TinyLanguageModel, data=sentences(512), plugins=plugin, max_steps=24)
        assert plugin.scaler.get_scale() == 2.0**16
        assert [event for event in found.events if event.kind == EventKind.EXPLODING_GRADIENT] == []

    def test_a_jump_is_told_unscaled(self, tmp_path: Path) -> None:
        """The norm that an EXPLODING_GRADIENT event names is that of the true gradients."""

        class Jumps(TinyLanguageModel):
            def loss(self, words: torch.Tensor, batch_idx: int) -> torch.Tensor:
                return super().loss(words, batch_idx) * (
                    1000.0 if batch_idx == 20 else 1.0
                )  # 5000 overflow fp16 in the head

        def jump(name: str, **options: Any) -> Any:
            found = watch(tmp_path / name, Jumps, data=sentences(512), max_steps=22, **options)
            (event, end) = [event for event in found.events if event.kind == EventKind.EXPLODING_GRADIENT]
            assert end.action == "ongoing"
            return event

        plain, mixed = jump("plain"), jump("mixed", plugins=scaled(256.0, growth_interval=1000))
        assert mixed.value == pytest.approx(plain.value, rel=0.1)
        assert mixed.threshold == pytest.approx(plain.threshold, rel=0.1)

    @pytest.mark.parametrize("windows", [1, 4])
    def test_an_overflow_names_the_loss_scale(self, tmp_path: Path, windows: int) -> None:
        """AMP_OVERFLOW carries the scale that was in force, whatever is accumulated."""
        found = watch(
            tmp_path, TinyLanguageModel, plugins=scaled(2.0**40), max_steps=2, accumulate_grad_batches=windows
        )
        overflows = [event for event in found.events if event.kind == EventKind.AMP_OVERFLOW]
        assert [event.value for event in overflows] == [2.0**40]
