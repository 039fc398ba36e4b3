"""With GradWatch and without it, training is the same to the bit."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_gradwatch import GradWatch
from tests.models import TinyLanguageModel, sentences, trainer


@dataclass
class Configuration:
    """One way to train."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    validate: bool = False
    resume: bool = False


def _each(name: str, layers: int = 2, dropout: float = 0.3, **options: Any) -> list[Configuration]:
    model = {"layers": layers, "dropout": dropout, **options.pop("model", {})}
    return [Configuration(f"{name} {cell}", {"cell": cell, **model}, **options) for cell in ("RNN", "LSTM", "GRU")]


CONFIGURATIONS = [
    *_each("one layer", 1, 0.0),
    *_each("two layers", 2, 0.0),
    Configuration("relu", {"cell": "RNN_RELU", "layers": 2}),
    *_each("dropout", 3),
    *_each("bidirectional", model={"bidirectional": True}),
    *_each("validation", fit={"val_check_interval": 2}, validate=True),
    *_each("resume", validate=True, resume=True),
    Configuration("accumulation", {"layers": 2}, {"accumulate_grad_batches": 3}),
    Configuration("clipping by the Trainer", {"layers": 2}, {"gradient_clip_val": 0.1}),
    Configuration("SGD", {"optimizer": "SGD", "lr": 0.5}),
]


class Recorder(Callback):
    """Keeps the metrics that the module logs at each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append({name: value.clone() for name, value in trainer.callback_metrics.items()})


def train(configuration: Configuration, tmp_path, watched: bool) -> dict[str, Any]:
    """Train from a fixed seed and return everything that must not differ."""
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    model = TinyLanguageModel(**configuration.model)
    recorder = Recorder()
    watch = [GradWatch(every_n_steps=2, dirpath=tmp_path / "run", keep_sequences=True)] if watched else []
    checkpoints = (
        [ModelCheckpoint(tmp_path / "ckpt", every_n_train_steps=3, save_top_k=-1)] if configuration.resume else []
    )
    options = {
        "max_steps": 8,
        "enable_checkpointing": bool(checkpoints),
        "num_sanity_val_steps": 1,
        **configuration.fit,
    }
    data = {
        "train_dataloaders": sentences(shuffle=True),
        "val_dataloaders": sentences(8) if configuration.validate else None,
    }
    fit = trainer(tmp_path, [recorder, *copy.deepcopy(watch), *checkpoints], **options)
    fit.fit(model, **data)
    if configuration.resume:
        path = next((tmp_path / "ckpt").glob("*step=3.ckpt"))
        torch.manual_seed(8)
        model = TinyLanguageModel(**configuration.model)
        fit = trainer(tmp_path, [recorder, *copy.deepcopy(watch)], **{**options, "enable_checkpointing": False})
        fit.fit(model, **data, ckpt_path=path, weights_only=True)
    for callback in fit.callbacks:
        if isinstance(callback, GradWatch):
            assert callback.lagged, "GradWatch measured nothing, so there is nothing to compare"
    return {
        "weights": model.state_dict(),
        "optimizer": fit.optimizers[0].state_dict(),
        "metrics": recorder.seen,
        "torch rng": torch.get_rng_state(),
        "python rng": random.getstate(),
        "numpy rng": np.random.get_state()[1],
    }


def assert_identical(one: Any, other: Any, path: str = "") -> None:
    """Equal to the bit, whatever is nested."""
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), path
        assert torch.equal(one.isnan(), other.isnan()), path
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_identical(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_identical(a, b, f"{path}/{i}")
    else:
        assert one == other, path


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: c.name)
def test_training_is_identical_to_the_bit(configuration: Configuration, tmp_path) -> None:
    """Weights, optimizer state, logged metrics and random streams are the same with GradWatch and without it."""
    bare = train(configuration, tmp_path / "bare", watched=False)
    watched = train(configuration, tmp_path / "watched", watched=True)
    assert_identical(bare, watched)


def test_the_comparison_can_fail(tmp_path) -> None:
    """A difference in the last bit of one weight is found."""
    one = train(CONFIGURATIONS[0], tmp_path, watched=False)
    other = copy.deepcopy(one)
    weight = other["weights"]["rnn.weight_hh_l0"]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(1e9))
    with pytest.raises(AssertionError):
        assert_identical(one, other)
