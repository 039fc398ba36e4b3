"""StartFinder compares before the first step, changes nothing unless asked to, and then the same everywhere."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from lightning_gradwatch import GradWatch, StartFinder, load_run, tap
from tests.asserts import assert_identical
from tests.integration.ways import Manual
from tests.models import TinyLanguageModel, sentences, trainer
from tests.versions import seed_everything


class Tapped(TinyLanguageModel):
    """A recurrence of one's own beside the layer, so that copies of the model would be heard, too."""

    def loss(self, words, batch_idx):
        h = self.embedding.weight.new_zeros(len(words), 6)
        for t in range(words.shape[1] - 1):
            h = tap(torch.tanh(0.5 * h + self.embedding(words[:, t])), name="own")
        return super().loss(words, batch_idx) + h.square().mean()


def train(*callbacks: pl.Callback, folder: Path, kind: type[pl.LightningModule] = Tapped, **options):
    seed_everything(3)
    model = kind(dropout=0.2, layers=2) if issubclass(kind, TinyLanguageModel) else kind()
    fitted = trainer(folder, max_steps=4, callbacks=list(callbacks), **options)
    fitted.fit(model, sentences())
    return model, torch.get_rng_state()


@pytest.mark.parametrize("first", [True, False])
def test_training_and_run_log_are_the_same_with_it(tmp_path: Path, first: bool) -> None:
    """Weights, random stream and every profile, whichever callback comes first."""
    bare, stream = train(GradWatch(every_n_steps=1, dirpath=tmp_path / "bare"), folder=tmp_path)
    ours = [StartFinder(), GradWatch(every_n_steps=1, dirpath=tmp_path / "with")]
    model, after = train(*ours[:: 1 if first else -1], folder=tmp_path)
    assert ours[0].comparison is not None
    assert_identical(dict(bare.state_dict()), dict(model.state_dict()))
    assert torch.equal(stream, after)
    assert_identical(*(load_run(tmp_path / name).profile_records for name in ("bare", "with")))
    assert_identical(*(load_run(tmp_path / name).event_records for name in ("bare", "with")))


def test_the_table_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Through Lightning's logger, with every start that is for the model."""
    finder = StartFinder()
    with caplog.at_level(logging.INFO):
        train(finder, folder=tmp_path)
    said = [record.getMessage() for record in caplog.records if "StartFinder" in record.getMessage()]
    assert len(said) == 1
    assert all(start in said[0] for start in finder.comparison.starts)
    assert "rnn, layer 1 (LSTM" in said[0]


def test_training_begins_with_the_start_that_was_asked_for(tmp_path: Path) -> None:
    """Set before the first step, for the batch's own length; the random stream goes on as if nothing was drawn."""
    seen: list[torch.Tensor] = []

    class Look(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            rnn = pl_module.rnn
            seen.append((rnn.bias_ih_l1 + rnn.bias_hh_l1).detach()[8:16].clone())

    finder = StartFinder(["gate_bias"], apply="gate_bias")
    _, stream = train(finder, Look(), folder=tmp_path)
    length = finder.comparison.timesteps["rnn"]
    assert torch.allclose(seen[0], torch.full((8,), math.log(length)))
    _, bare = train(folder=tmp_path)
    assert torch.equal(stream, bare)


def test_a_training_that_goes_on_keeps_its_weights(tmp_path: Path) -> None:
    """Nothing is compared and nothing set on a resumed fit."""
    model = TinyLanguageModel()
    first = trainer(tmp_path, max_steps=2)
    first.fit(model, sentences())
    first.save_checkpoint(tmp_path / "a.ckpt")
    finder = StartFinder(apply="chrono")
    trainer(tmp_path, max_steps=4, callbacks=[finder]).fit(
        TinyLanguageModel(), sentences(), ckpt_path=tmp_path / "a.ckpt"
    )
    assert finder.comparison is None


def test_where_nothing_can_be_compared_training_goes_on(tmp_path: Path) -> None:
    """Manual optimization has no one loss: one warning."""
    with pytest.warns(
        UserWarning, match="StartFinder compares nothing: `model` must be one that is optimized automatic"
    ):
        train(StartFinder(), folder=tmp_path, kind=Manual)


def test_a_start_that_fits_nothing_ends_the_fit(tmp_path: Path) -> None:
    """Before the first step, naming what would fit."""
    with pytest.raises(ValueError, match=r"must be one for a module of the model; found 'identity'.*chrono"):
        train(StartFinder(apply="identity"), folder=tmp_path)


def test_unknown_names_are_refused_when_it_is_made() -> None:
    """Each argument by its name."""
    with pytest.raises(ValueError, match="`starts` must be one of"):
        StartFinder(["best"])
    with pytest.raises(ValueError, match="`apply` must be one of"):
        StartFinder(apply="best")
    with pytest.raises(ValueError, match="`timesteps` must be"):
        StartFinder(timesteps=0)
