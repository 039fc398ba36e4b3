"""With GradWatch and without it, training is the same to the bit."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner import Tuner

from lightning_gradwatch import GradWatch, load_run
from tests.asserts import assert_identical
from tests.integration.ways import Adversarial, AnyCell, CellLoop, Fails, Fused, Manual, SkipsBatches, scaled
from tests.models import TinyLanguageModel, sentences, trainer
from tests.scan_models import SCANNED, ComplexLanguageModel, ScanLanguageModel
from tests.versions import AS_DATA, INTERRUPT_EXITS, TORCH


@dataclass
class Configuration:
    """One way to train.

    Args:
        model: arguments of ``kind``.
        fit: the Trainer's options; a function is called for its value, so that both trainings get one of their own.
        callbacks: makes callbacks besides ours.
        watches: makes ours, given the run log's folder.
        before: called with Trainer, model and data before the fit.
        onednn: whether PyTorch may use it; its half-precision recurrence does not train on every CPU.
        fails: whether the fit ends in an exception.
        first_batch: the first one with a loss, which must be measured.
        exact: whether every profile must be exact; if not, none may claim it.
    """

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    validate: bool = False
    resume: bool = False
    kind: type[pl.LightningModule] = TinyLanguageModel
    callbacks: Callable[[], list[Callback]] = list
    watches: Callable[[Path], list[Callback]] = lambda path: [
        GradWatch(every_n_steps=2, dirpath=path, keep_sequences=True)
    ]
    before: Callable[[pl.Trainer, pl.LightningModule, dict[str, Any]], object] | None = None
    onednn: bool = True
    fails: bool = False
    first_batch: int = 0
    exact: bool = True


def _each(name: str, layers: int = 2, dropout: float = 0.3, **options: Any) -> list[Configuration]:
    model = {"layers": layers, "dropout": dropout, **options.pop("model", {})}
    return [Configuration(f"{name} {cell}", {"cell": cell, **model}, **options) for cell in ("RNN", "LSTM", "GRU")]


def _way(name: str, model: dict[str, Any] | None = None, **options: Any) -> Configuration:
    return Configuration(name, {"layers": 2, "dropout": 0.2} if model is None else model, **options)


def _find_learning_rate(run: pl.Trainer, model: pl.LightningModule, data: dict[str, Any]) -> None:
    Tuner(run).lr_find(model, **data, num_training=5, update_attr=True)


MODELS = [
    *_each("one layer", 1, 0.0),
    *_each("two layers", 2, 0.0),
    Configuration("relu", {"cell": "RNN_RELU", "layers": 2}),
    *_each("dropout", 3),
    *_each("bidirectional", model={"bidirectional": True}),
]
WAYS = [
    *_each("validation", fit={"val_check_interval": 2}, validate=True),
    *_each("resume in mid-epoch", validate=True, resume=True),
    *_each(
        "influence of inputs",
        watches=lambda path: [GradWatch(every_n_steps=2, dirpath=path, keep_sequences=True, influence=True)],
    ),
    _way("accumulation", fit={"accumulate_grad_batches": 3}),
    _way("accumulation by schedule", callbacks=lambda: [GradientAccumulationScheduler({0: 1, 1: 4, 2: 3})]),
    _way("clipping by the Trainer", fit={"gradient_clip_val": 0.1}),
    _way("SGD", {"optimizer": "SGD", "lr": 0.5}),
    _way("LBFGS", {"optimizer": "LBFGS", "lr": 0.1}, fit={"max_steps": 3}),
    *_each("bf16-mixed", fit={"precision": "bf16-mixed"}, onednn=False, exact=False),
    *_each("bf16-true", fit={"precision": "bf16-true"}, onednn=False, exact=False),
    *_each("64-true", fit={"precision": "64-true"}),
    *_each("16-mixed", fit={"plugins": scaled}, onednn=False, exact=False),
    _way("16-mixed, overflowing", fit={"plugins": lambda: scaled(2.0**24)}, onednn=False, exact=False),
    _way("16-mixed, fused optimizer", kind=Fused, fit={"plugins": scaled}, onednn=False, exact=False),
    _way("16-mixed, by hand", kind=Manual, fit={"plugins": scaled}, onednn=False, exact=False),
    _way("no loss at times", {"without_loss": (0, 2)}, kind=SkipsBatches, first_batch=1),
    _way("by hand", kind=Manual),
    _way("by hand, raw backward", {"backward": "raw"}, kind=Manual),
    _way(
        "by hand, raw backward, raw optimizer",
        {"backward": "raw", "wrapped": False},
        fit={"max_epochs": 2, "max_steps": -1},
        exact=False,
        kind=Manual,
    ),
    _way("two optimizers", {}, kind=Adversarial),
    _way("two optimizers in turn", {"in_turn": True}, kind=Adversarial),
    _way("overfit_batches", fit={"overfit_batches": 2}),
    _way("fast_dev_run", fit={"fast_dev_run": 3}),
    _way("barebones", fit={"barebones": True, "num_sanity_val_steps": 0}),
    _way("limit_train_batches", fit={"limit_train_batches": 3}),
    _way("max_time", fit={"max_time": {"hours": 1}}),
    _way("detect_anomaly", fit={"detect_anomaly": True}),
    _way(
        "averaged weights",
        callbacks=lambda: [StochasticWeightAveraging(0.01, swa_epoch_start=1)],
        fit={"max_epochs": 3},
    ),
    _way("early stopping", validate=True, callbacks=lambda: [EarlyStopping("val_loss", patience=0, min_delta=1.0)]),
    _way("learning rate found first", before=_find_learning_rate),
    _way("learning rate found in the fit", callbacks=lambda: [LearningRateFinder(num_training_steps=5)]),
    _way(
        "several instances",
        {},
        kind=Adversarial,
        watches=lambda path: [
            GradWatch(["generator"], dirpath=path),
            GradWatch(["discriminator"], every_n_steps=1, dirpath=path),
        ],
    ),
    *(
        _way(f"an error in {hook}", callbacks=lambda hook=hook: [Fails(hook)], fails=True)
        for hook in ("on_train_batch_start", "on_before_backward", "on_after_backward", "on_train_batch_end")
    ),
    _way(
        "interrupted", callbacks=lambda: [Fails("on_before_zero_grad", error=KeyboardInterrupt)], fails=INTERRUPT_EXITS
    ),
]
SCANS = [
    *(
        _way(f"{name}, {how}", {}, kind=kind, fit=fit, validate=how == "validation")
        for name, kind in SCANNED.items()
        for how, fit in (
            ("validation", {"val_check_interval": 2}),
            ("accumulation", {"accumulate_grad_batches": 3}),
            ("clipped", {"gradient_clip_val": 0.1}),
        )
    ),
    _way("a scan, bf16-mixed", {}, kind=ScanLanguageModel, fit={"precision": "bf16-mixed"}, exact=False),
    _way("a complex scan, bf16-mixed", {}, kind=ComplexLanguageModel, fit={"precision": "bf16-mixed"}),
    _way("a scan, 16-mixed", {}, kind=ScanLanguageModel, fit={"plugins": scaled}, onednn=False, exact=False),
    _way("a scan, 64-true", {}, kind=ScanLanguageModel, fit={"precision": "64-true"}),
    _way("a scan, LBFGS", {"optimizer": "LBFGS", "lr": 0.1}, kind=ScanLanguageModel, fit={"max_steps": 3}),
    _way("a scan, resume in mid-epoch", {}, kind=ScanLanguageModel, validate=True, resume=True),
    *(
        _way(
            f"a scan, an error in {hook}",
            {},
            kind=ScanLanguageModel,
            callbacks=lambda hook=hook: [Fails(hook)],
            fails=True,
        )
        for hook in ("on_before_backward", "on_train_batch_end")
    ),
]
LOOPS = [
    *(
        _way(
            f"cell loop, {head} head, {name}",
            {"head": head, "every": every},
            kind=CellLoop,
            # Before PyTorch 2.10 it is not seen that the checkpoint saves nothing of the loop.
            exact=not (head == "checkpointed" and every) or TORCH >= (2, 10),
        )
        for head in ("checkpointed", "counting", "hooked")
        for name, every in (("last loss", False), ("every loss", True))
    ),
    *(_way(f"cell loop, {step} step", {"step": step}, kind=CellLoop) for step in ("checkpointed", "counting")),
    *(
        _way(f"cell loop, {step} step, every loss", {"step": step, "every": True}, kind=CellLoop, exact=False)
        for step in ("checkpointed", "counting", "hooked")
    ),
    # A cell of one's own is found in the first batch, and measured from the second one on.
    *(
        _way(f"cell of one's own, {way or 'called'}", {"way": way}, kind=AnyCell, first_batch=1)
        for way in ("", "forward", "stacked", "listed", "twice")
    ),
    *(
        _way(
            f"cell of one's own, an error in {hook}",
            {"way": "forward"},
            kind=AnyCell,
            callbacks=lambda hook=hook: [Fails(hook)],
            fails=True,
            first_batch=1,
        )
        for hook in ("on_before_backward", "on_train_batch_end")
    ),
]
CONFIGURATIONS = [*MODELS, *WAYS, *SCANS, *LOOPS]


class Recorder(Callback):
    """Keeps the metrics that the module logs at each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append({name: value.clone() for name, value in trainer.callback_metrics.items()})


def train(configuration: Configuration, tmp_path: Path, watched: bool) -> dict[str, Any]:
    """Train from a fixed seed and return everything that must not differ."""
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    model = configuration.kind(**configuration.model)
    recorder = Recorder()
    watches = configuration.watches(tmp_path / "run") if watched else []
    checkpoints = (
        [ModelCheckpoint(str(tmp_path / "ckpt"), every_n_train_steps=3, save_top_k=-1)] if configuration.resume else []
    )
    options = {"max_steps": 8, "enable_checkpointing": bool(checkpoints), "num_sanity_val_steps": 1}
    options |= {name: value() if callable(value) else value for name, value in configuration.fit.items()}
    data = {
        "train_dataloaders": sentences(shuffle=True),
        "val_dataloaders": sentences(8) if configuration.validate else None,
    }
    fit = trainer(tmp_path, [recorder, *copy.deepcopy(watches), *configuration.callbacks(), *checkpoints], **options)
    raised = None
    with torch.backends.mkldnn.flags(enabled=configuration.onednn):
        if configuration.before is not None:
            configuration.before(fit, model, data)
        try:
            fit.fit(model, **data)
        except (RuntimeError, SystemExit) as error:
            raised = repr(error)
    assert (raised is not None) == configuration.fails, raised
    if configuration.resume:
        path = next((tmp_path / "ckpt").glob("*step=3.ckpt"))
        torch.manual_seed(8)
        model = configuration.kind(**configuration.model)
        fit = trainer(tmp_path, [recorder, *copy.deepcopy(watches)], **{**options, "enable_checkpointing": False})
        fit.fit(model, **data, ckpt_path=path, **AS_DATA)
    if watched:
        _check_what_was_measured(configuration, fit, tmp_path / "run")
    return {
        "weights": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in fit.optimizers],
        "metrics": recorder.seen,
        "raised": raised,
        "steps": (fit.global_step, fit.current_epoch),
        "torch rng": torch.get_rng_state(),
        "python rng": random.getstate(),
        "numpy rng": np.random.get_state()[1],
    }


def _check_what_was_measured(configuration: Configuration, fit: pl.Trainer, folder: Path) -> None:
    """Otherwise there would be nothing to compare."""
    assert all(callback.lagged for callback in fit.callbacks if isinstance(callback, GradWatch))
    if fit.fast_dev_run:
        return
    records = load_run(folder).profile_records
    assert (records[0]["step"], records[0]["batch_idx"]) == (configuration.first_batch,) * 2
    assert {record["exact"] for record in records} == {configuration.exact}


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: c.name)
def test_training_is_identical_to_the_bit(configuration: Configuration, tmp_path, record_property) -> None:
    """Weights, optimizer state, logged metrics and random streams are the same with GradWatch and without it."""
    bare = train(configuration, tmp_path / "bare", watched=False)
    watched = train(configuration, tmp_path / "watched", watched=True)
    assert_identical(bare, watched)
    if (tmp_path / "watched" / "run").exists():  # what the table in the documentation is made of
        records = load_run(tmp_path / "watched" / "run").profile_records
        record_property("observation", "exact" if all(record["exact"] for record in records) else "inexact")


def test_the_comparison_can_fail(tmp_path) -> None:
    """A difference in the last bit of one weight is found."""
    one = train(CONFIGURATIONS[0], tmp_path, watched=False)
    other = copy.deepcopy(one)
    weight = other["weights"]["rnn.weight_hh_l0"]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(1e9))
    with pytest.raises(AssertionError):
        assert_identical(one, other)
