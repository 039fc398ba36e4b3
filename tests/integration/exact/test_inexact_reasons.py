"""Why a measurement is not exact is said wherever it appears."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, load_run
from lightning_gradwatch.cli import main
from lightning_gradwatch.recurrent import Capture
from lightning_gradwatch.report.live import frame
from tests.models import TinyLanguageModel, sentences, trainer


class InPlace(TinyLanguageModel):
    """Its output is halved in place."""

    def loss(self, words: Tensor, batch_idx: int) -> Tensor:
        output, _ = self.rnn(self.embedding(words[:, :-1]))
        output.mul_(0.5)
        return nn.functional.cross_entropy(self.head(output).flatten(0, 1), words[:, 1:].flatten())


def in_place(folder: Path, watch: GradWatch, **options: Any) -> None:
    trainer(folder, [watch], max_steps=3, **options).fit(InPlace("GRU"), sentences(32))


def without_masks(folder: Path, watch: GradWatch, **options: Any) -> None:
    model = TinyLanguageModel("LSTM", layers=2, dropout=0.3)
    with pytest.MonkeyPatch.context() as patch:  # as on a GPU, whose generator draws the masks
        patch.setattr(Capture, "_save_generator", lambda self, module: None)
        trainer(folder, [watch], max_steps=3, **options).fit(model, sentences(32))


def narrow(folder: Path, watch: GradWatch, **options: Any) -> None:
    trainer(folder, [watch], max_steps=3, precision="bf16-true", **options).fit(TinyLanguageModel("GRU"), sentences(32))


REASONS = {
    in_place: "the output was changed in place after the forward",
    without_masks: "the dropout between layers on cpu cannot be drawn again",
    narrow: "computed in bfloat16, replayed in float32",
}


@pytest.mark.parametrize("fit", REASONS)
def test_the_reason_is_said_everywhere(fit: Any, tmp_path: Path, caplog: Any, capsys: Any, monkeypatch: Any) -> None:
    """The closing lines, ``load_run``, ``gradwatch report``, the live view and the loggers' figures all give the reason."""
    reason = REASONS[fit]
    labels: list[str] = []
    label = Figure.supxlabel
    monkeypatch.setattr(
        Figure, "supxlabel", lambda self, text, **more: (labels.append(text), label(self, text, **more))[1]
    )
    watch = GradWatch(every_n_steps=1, figures=True)
    with caplog.at_level("INFO"):
        fit(tmp_path, watch, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    assert f"The measurement is not exact: {reason}." in caplog.text
    assert labels
    assert set(labels) == {f"not exact: {reason}"}
    run = load_run(watch.run_dir)
    assert set(run.profiles["inexact_reason"]) == {reason}
    assert not run.profiles["exact"].any()
    page = tmp_path / "report.html"
    assert main(["report", str(watch.run_dir), "-o", str(page)]) == 0
    assert f"The measurement is not exact: {reason}." in page.read_text(encoding="utf-8")
    assert f"not exact: {reason}" in _drawn(frame(run, width=80))


def _drawn(shown: Any) -> str:
    drawn = io.StringIO()
    Console(width=80, file=drawn).print(shown)
    return drawn.getvalue()
