"""Recurrences that a model runs by itself, in a real training: what is out of the ordinary leaves the rest watched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch import EventKind, GradWatch, load_run
from lightning_gradwatch.recurrent.measure import by_kind as measure
from tests.models import TinyLanguageModel, sentences, trainer


class Loop(TinyLanguageModel):
    """A GRU cell in a loop, whose last state predicts the last word."""

    def __init__(self) -> None:
        super().__init__("GRU")
        self.rnn = nn.GRUCell(6, 8)

    def last(self, words: Tensor) -> Tensor:
        h = torch.zeros(len(words), 8)
        for x in self.embedding(words[:, :-1]).unbind(1):
            h = self.rnn(x, h)
        return h

    def loss(self, words: Tensor, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.last(words)), words[:, -1])


def watch(tmp_path: Path, **options: Any) -> GradWatch:
    return GradWatch(dirpath=tmp_path / "run", summary=False, max_sequences=None, keep_sequences=True, **options)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_between_a_loop_and_its_loss(tmp_path: Path, reentrant: bool) -> None:
    """A loop whose loss is recomputed in the backward pass is measured exactly."""

    class Checkpointed(Loop):
        def loss(self, words: Tensor, batch_idx: int) -> Tensor:
            logits = checkpoint(self.head, self.last(words), use_reentrant=reentrant)
            return nn.functional.cross_entropy(logits, words[:, -1])

    for name, model in (("plain", Loop), ("checkpointed", Checkpointed)):
        torch.manual_seed(0)
        trainer(tmp_path, [watch(tmp_path / name)], max_steps=1).fit(model(), sentences())
    plain, checkpointed = (load_run(tmp_path / name / "run").profile_records for name in ("plain", "checkpointed"))
    for record in (*plain, *checkpointed):
        assert (record["exact"], len(record["lagged"])) == (True, 8)
    assert checkpointed[0]["total_by_sequence"] == plain[0]["total_by_sequence"]
    assert checkpointed[0]["lagged"] == plain[0]["lagged"]


class Vector(Loop):
    """Optimizes by hand, with a loss of each sequence.

    Args:
        spoilt: the batch in which one of them is infinite.
    """

    def __init__(self, spoilt: int = -1) -> None:
        super().__init__()
        self.automatic_optimization, self.spoilt = False, spoilt

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        words, optimizer = batch[0], self.optimizers()
        losses = nn.functional.cross_entropy(self.head(self.last(words)), words[:, -1], reduction="none")
        if batch_idx == self.spoilt:
            losses = losses * torch.tensor([1.0] * (len(words) - 1) + [torch.inf])
        optimizer.zero_grad()
        self.manual_backward(losses, gradient=torch.full_like(losses, 1 / len(losses)))
        optimizer.step()


def test_a_loss_that_is_a_vector(tmp_path: Path) -> None:
    """``manual_backward`` of one loss a sequence gives what the mean of them would."""
    for name, model in (("mean", Loop), ("vector", Vector)):
        torch.manual_seed(0)
        trainer(tmp_path, [watch(tmp_path / name)], max_steps=1).fit(model(), sentences())
    (mean,), (vector,) = (load_run(tmp_path / name / "run").profile_records for name in ("mean", "vector"))
    assert vector["exact"]
    assert vector["total"] == pytest.approx(mean["total"], rel=1e-5)
    assert vector["lagged"] == pytest.approx(mean["lagged"], rel=1e-5)


def test_a_vector_of_losses_of_which_one_is_not_finite(tmp_path: Path) -> None:
    """It is told as the loss that it is."""
    own = watch(tmp_path)
    trainer(tmp_path, [own], max_steps=3).fit(Vector(spoilt=1), sentences())
    assert [(event.kind, event.step) for event in own.events][:1] == [(EventKind.NONFINITE_LOSS, 1)]


class Two(Loop):
    """The loop, and a fused module beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = nn.GRU(6, 8, batch_first=True)

    def last(self, words: Tensor) -> Tensor:
        return super().last(words) + self.beside(self.embedding(words[:, :-1]))[0][:, -1]


@pytest.mark.parametrize("where", ["measuring", "following"])
def test_an_error_about_one_loop_leaves_the_others_watched(tmp_path: Path, monkeypatch, where: str) -> None:
    """It is one warning and a module not observed; the fused module beside is measured to the end."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(GradWatch, "raise_own_errors", False)
    if where == "measuring":
        monkeypatch.setattr(measure, "loop_profiles", fail)
    else:
        monkeypatch.setattr("lightning_gradwatch.engine.measuring.measure_lags", fail)
    own = watch(tmp_path, every_n_steps=2)
    with pytest.warns(UserWarning, match=r"could not measure rnn \(ZeroDivisionError: planted\) and goes on") as caught:
        trainer(tmp_path, [own], max_steps=6).fit(Two(), sentences(64))
    assert sum("could not measure" in str(warning.message) for warning in caught) == 1
    records = load_run(tmp_path / "run").profile_records
    assert {record["step"] for record in records if record["module"] == "beside"} == {0, 2, 4}
    told = [(event.kind, event.module) for event in own.events]
    if where == "measuring":
        assert told == [(EventKind.NOT_OBSERVED, "rnn")]
        assert "planted" in own.events[0].message
    else:  # the total gradients are there all the same
        assert {record["step"] for record in records if record["module"] == "rnn"} == {0, 2, 4}


def test_an_error_in_the_search_for_cells_does_not_reach_the_forward(tmp_path: Path, monkeypatch) -> None:
    """A module that returns something endless ends the watching with one warning, and the training goes on."""

    class Endless(nn.Module):
        def forward(self, x: Tensor) -> list[Any]:
            made: list[Any] = [x]
            made.append(made)
            return made

    class Model(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.endless = Endless()

        def last(self, words: Tensor) -> Tensor:
            return self.endless(super().last(words))[0]

    monkeypatch.setattr(GradWatch, "raise_own_errors", False)
    run = trainer(tmp_path, [watch(tmp_path)], max_steps=3)
    with pytest.warns(UserWarning, match="GradWatch failed \\(RecursionError"):
        run.fit(Model(), sentences())
    assert run.global_step == 3


class Grows(Callback):
    """Puts recurrent modules into the model in the second epoch."""

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if trainer.current_epoch == 1:
            pl_module.late, pl_module.copy = nn.GRU(6, 8), nn.GRU(6, 8).requires_grad_(False)


@pytest.mark.parametrize("every_n_steps", [2, 1000])
@pytest.mark.parametrize(("modules", "told"), [("auto", ["late"]), (["*"], ["late"]), (["rnn"], [])])
def test_a_module_that_comes_too_late(tmp_path: Path, every_n_steps: int, modules: Any, told: list[str]) -> None:
    """A recurrent module added after training began is told once as not observed, with the remedy, if it was asked for and trains."""
    own = watch(tmp_path, modules=modules, every_n_steps=every_n_steps)
    trainer(tmp_path, [own, Grows()], max_epochs=3, max_steps=-1).fit(TinyLanguageModel("GRU"), sentences())
    assert [event.module for event in own.events if event.kind == EventKind.NOT_OBSERVED] == told
    for event in own.events:
        assert "added to the model after training had begun" in event.message
        assert "configure_model" in event.remedy
