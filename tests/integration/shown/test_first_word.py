"""The first word: how far the gradient reaches, said as soon as it has been measured."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import GradWatch
from tests.models import TinyLanguageModel, sentences, trainer


def words(caplog: Any) -> list[str]:
    return [line for line in caplog.text.splitlines() if "GradWatch, step " in line and "rnn" in line]


def fit(
    tmp_path: Any, model: pl.LightningModule, watch: GradWatch | None = None, length: int = 41, **options: Any
) -> None:
    torch.manual_seed(0)
    trainer(tmp_path, [watch or GradWatch(every_n_steps=2)], **options).fit(model, sentences(length=length))


@pytest.fixture(autouse=True)
def heard(caplog):
    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_it_comes_after_the_first_sampled_step_and_once(tmp_path, caplog, cell: str) -> None:
    """With the horizon beside the sequence length, as the run log has it, before the second sample."""
    at: list[int] = []

    class Hears(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            at.extend([trainer.global_step] * (len(words(caplog)) - len(at)))

    watch = GradWatch(every_n_steps=2)
    trainer(tmp_path, [watch, Hears()]).fit(TinyLanguageModel(cell), sentences(length=41))
    (line,) = words(caplog)
    assert at == [1]
    assert f"GradWatch, step 0: rnn, layer 0 ({cell}). " in line
    assert "of 40 timesteps" in line or "all of the 40 timesteps" in line


def test_several_layers_are_one_line(tmp_path, caplog) -> None:
    """That of the one that reaches least far, which is named, and of how many."""
    fit(tmp_path, TinyLanguageModel(layers=2, bidirectional=True))
    (line,) = words(caplog)
    assert "(LSTM; the least far-reaching of 4)" in line


@pytest.mark.parametrize("options", [{"first_word": False}, {"summary": False}, {"enabled": False}])
def test_it_can_be_switched_off(tmp_path, caplog, options: dict[str, bool]) -> None:
    """By its own argument, or with all that is said."""
    fit(tmp_path, TinyLanguageModel(), GradWatch(**options))
    assert words(caplog) == []


def test_a_resumed_training_names_its_own_step(tmp_path, caplog) -> None:
    """It is not the start of the training, and nobody says so."""
    fit(tmp_path, TinyLanguageModel(), enable_checkpointing=True)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    caplog.clear()
    trainer(tmp_path, [GradWatch()], max_steps=8).fit(TinyLanguageModel(), sentences(length=41), ckpt_path=checkpoint)
    (line,) = words(caplog)
    assert "GradWatch, step 6: rnn, layer 0" in line


def test_a_gradient_that_outlives_the_sequence_is_said_to(tmp_path, caplog) -> None:
    """No horizon is made up."""
    fit(tmp_path, TinyLanguageModel(), length=5)
    (line,) = words(caplog)
    assert "stays above 1 % for all of the 4 timesteps" in line


class Wrongly(TinyLanguageModel):
    """The loss reads an early timestep alone."""

    def loss(self, words: Tensor, batch_idx: int) -> Tensor:
        output, _ = self.rnn(self.embedding(words[:, :-1]))
        return nn.functional.cross_entropy(self.head(output[:, 1]), words[:, 2])


def test_a_loss_that_reaches_few_timesteps_is_said_to(tmp_path, caplog) -> None:
    """How far back from there it reaches is not what matters."""
    fit(tmp_path, Wrongly())
    (line,) = words(caplog)
    assert "The loss reaches it at its own first 2 steps only; the other 38 of 40 timesteps get no gradient." in line


def test_a_number_that_is_not_finite_is_said(tmp_path, caplog) -> None:
    """Nothing is said of a horizon then."""

    def spoilt(x: Tensor, _: int) -> Tensor:
        return x / 0.0

    fit(tmp_path, TinyLanguageModel(before_rnn=spoilt), max_steps=2)
    assert not any("falls under" in line or "stays above" in line for line in words(caplog))
