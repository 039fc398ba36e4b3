"""The first word: how far the gradient reaches, said as soon as it has been measured."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

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


class Reads(pl.LightningModule):
    """A recurrent layer over ``(examples, timesteps, 3)``, or over what ``turn`` makes of it."""

    def __init__(self, rnn: nn.Module, read: Any, turn: Any = lambda x: x) -> None:
        super().__init__()
        self.rnn, self.head, self.read, self.turn = rnn, nn.Linear(8, 1), read, turn

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.head(self.read(self.rnn(self.turn(batch[0]))[0])).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def mean_over_time(states: Tensor) -> Tensor:
    return states.mean(1)


def every_timestep(states: Tensor) -> Tensor:
    return states


def train_reads(folder: Any, model: Reads, timesteps: int, batch: int = 16, **options: Any) -> None:
    data = TensorDataset(torch.randn(3 * batch, timesteps, 3))
    trainer(folder, [GradWatch(dirpath=folder / "run")]).fit(model, DataLoader(data, batch, **options))


def time_first(rows: list[tuple[Tensor]]) -> list[Tensor]:
    return [torch.stack([row for (row,) in rows], 1)]


@pytest.mark.parametrize("read", [mean_over_time, every_timestep])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("timesteps", [20, 48])
def test_a_forgotten_batch_first_is_named_though_all_sequences_are_reached(
    tmp_path: Any, caplog: Any, kind: Any, read: Any, timesteps: int
) -> None:
    """By the loader's examples, which are counted as timesteps; at once, and when the training ends."""
    train_reads(tmp_path, Reads(kind(3, 8), read), timesteps)
    took = f"rnn has batch_first=False and took its input for 16 timesteps of {timesteps} sequences: "
    said = f"{took}if {timesteps} is the number of timesteps, batch_first=True was forgotten."
    at_once, at_end = (line for line in caplog.text.splitlines() if said in line)
    assert "GradWatch, step 0: The loader puts 16 examples into a batch. " in at_once
    assert at_end.startswith("  The loader puts 16 examples into a batch. ")


def test_batches_with_time_first_in_a_module_with_batch_first(tmp_path: Any, caplog: Any) -> None:
    """The mirror image."""
    train_reads(tmp_path, Reads(nn.GRU(3, 8, batch_first=True), every_timestep), 20, collate_fn=time_first)
    assert "took its input for 16 timesteps of 20 sequences: if 20 is the number of timesteps, its input" in caplog.text


@pytest.mark.parametrize(
    ("rnn", "turn", "timesteps", "options"),
    [
        (nn.GRU(3, 8, batch_first=True), lambda x: x, 20, {}),
        (nn.GRU(3, 8, batch_first=True), lambda x: x, 16, {}),
        (nn.GRU(3, 8), lambda x: x.transpose(0, 1), 20, {}),
        (nn.GRU(3, 8), lambda x: x.transpose(0, 1), 16, {}),
        (nn.GRU(3, 8), lambda x: x, 20, {"collate_fn": time_first}),
        (nn.GRU(3, 8), lambda x: x, 16, {"collate_fn": time_first}),
        (nn.GRU(3, 8, batch_first=True), lambda x: x.repeat(3, 1, 1), 16, {}),
        (nn.GRU(3, 8, batch_first=True), lambda x: x[:7], 16, {}),
    ],
)
def test_where_the_axes_lie_as_they_should_nothing_is_said_of_them(
    tmp_path: Any, caplog: Any, rnn: nn.Module, turn: Any, timesteps: int, options: dict[str, Any]
) -> None:
    """Whichever comes first, also with as many timesteps as examples, and with more or fewer sequences than these."""
    train_reads(tmp_path, Reads(rnn, every_timestep, turn), timesteps, **options)
    assert "GradWatch, step 0: rnn" in caplog.text
    assert "batch_first" not in caplog.text
    assert "examples" not in caplog.text
