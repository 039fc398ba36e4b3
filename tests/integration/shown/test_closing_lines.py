"""What is said while a training runs and when it ends: at once, however it ends, and the same everywhere."""

from __future__ import annotations

import contextlib
import logging
import re

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import AdaptiveClip, AnomalyError, EventKind, GradWatch, load_run
from lightning_gradwatch.cli import main
from lightning_gradwatch.report.html import write_report
from tests.models import trainer
from tests.versions import INTERRUPT_EXITS

LOGGER = "lightning.pytorch.utilities.rank_zero"


class Breaks(pl.LightningModule):
    """Something happens to it before the forward of one step."""

    def __init__(self, happens=lambda model, x: None, at: int = 12) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 1)
        self.happens, self.at = happens, at

    def training_step(self, batch, batch_idx):
        x = batch[0].clone()
        if self.trainer.global_step == self.at:
            with torch.no_grad():
                self.happens(self, x)
        return self.head(self.rnn(x)[0][:, -1]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-2)


def spoil_head(model, x):
    model.head.weight[0, 5] = float("inf")


def spoil_recurrent_weight(model, x):
    model.rnn.weight_hh_l0[3, 2] = float("nan")


def spoil_bias(model, x):
    model.head.bias[0] = float("nan")


def spoil_input(model, x):
    x[3, 4, 1] = float("nan")


def raises(error):
    def happens(model, x):
        raise error

    return happens


def fit(tmp_path, happens, *callbacks, steps=30, watch=None):
    watch = watch or GradWatch(dirpath=tmp_path / "run")
    data = DataLoader(TensorDataset(torch.randn(64, 20, 3)), 16)
    trainer(tmp_path, [watch, *callbacks], max_steps=steps, max_epochs=-1).fit(Breaks(happens), data)
    return watch


def said(caplog, *, level=logging.INFO):
    return "\n".join(r.getMessage() for r in caplog.records if r.name == LOGGER and r.levelno >= level)


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")


LASTING = {
    "head.weight[0, 5] = inf": spoil_head,
    "rnn.weight_hh_l0[3, 2] = nan": spoil_recurrent_weight,
    "head.bias[0] = nan": spoil_bias,
}


@pytest.mark.parametrize("every", [2, 50])
@pytest.mark.parametrize("cause", LASTING)
def test_terminal_events_report_and_check_give_one_verdict(tmp_path, caplog, capsys, cause, every):
    """Steps skipped to the end: not finite since step 12, with the cause, in the closing lines as in the commands and on the page."""
    watch = GradWatch(every_n_steps=every, dirpath=tmp_path / "run")
    fit(tmp_path, LASTING[cause], AdaptiveClip(dirpath=tmp_path / "run"), watch=watch)
    closing = said(caplog, level=logging.WARNING)
    assert "not finite since step 12." in closing
    assert cause in closing
    assert main(["events", str(watch.run_dir)]) == 0
    listed = capsys.readouterr().out
    assert "not finite since step 12" in listed
    assert cause in listed
    page = write_report(load_run(watch.run_dir), tmp_path / "page.html").read_text("utf-8")
    assert "Not finite since step 12" in page
    assert main(["check", str(watch.run_dir)]) == 1
    checked = capsys.readouterr().out
    assert cause in checked
    warnings = int(re.match(r"failed: 1 critical event, (\d) warning event", checked)[1])
    assert re.search(r"  1 critical event, the first at step 12: .* Besides (\d) warning", closing)[1] == str(warnings)


def test_a_bad_batch_that_was_skipped_is_no_verdict(tmp_path, caplog):
    """One skipped step, and finite ones after it: the terminal's verdict is about those."""
    fit(tmp_path, spoil_input, AdaptiveClip(dirpath=tmp_path / "run"))
    assert "not finite since" not in said(caplog)
    assert "1 critical event, the first at step 12: NONFINITE_INPUT" in said(caplog)


def test_a_check_fails_where_the_verdict_is_grave(tmp_path, capsys):
    """Without an event of that severity, a verdict as grave is enough."""
    watch = fit(tmp_path, lambda model, x: None, steps=8, watch=GradWatch(every_n_steps=2, dirpath=tmp_path / "run"))
    events = watch.run_dir / "events.jsonl"
    events.write_text(events.read_text("utf-8").partition("\n")[0] + "\n", "utf-8")  # its header alone
    assert main(["check", str(watch.run_dir)]) == 0
    assert main(["check", "--warnings", str(watch.run_dir)]) == 1
    assert "vanishing. The gradient falls under 1 %" in capsys.readouterr().out


# ---------------------------------------------------------------- however it ends


@pytest.mark.parametrize(
    ("error", "seen"),
    [(ValueError("the user's own"), ValueError), (KeyboardInterrupt(), SystemExit), (SystemExit(3), SystemExit)],
)
def test_a_training_that_is_broken_off_has_its_closing_lines(tmp_path, caplog, error, seen):
    """After an exception or Ctrl-C: verdicts and folder, and the exception is the user's own."""
    watch = GradWatch(dirpath=tmp_path / "run")
    interrupted = isinstance(error, KeyboardInterrupt)
    returns = interrupted and not INTERRUPT_EXITS
    with contextlib.nullcontext() if returns else pytest.raises(seen) as caught:
        fit(tmp_path, raises(error), watch=watch)
    if not interrupted:  # of which Lightning makes an exit
        assert caught.value is error
    closing = said(caplog)
    assert closing.count("GradWatch: how far the gradient reaches back through time") == 1
    assert "rnn, layer 0 (LSTM): undecided." in closing
    assert f"gradwatch events {watch.run_dir}" in closing
    assert not any(event.kind == EventKind.NOT_OBSERVED for event in watch.events)


def test_an_anomaly_that_ends_the_training_is_in_the_closing_lines(tmp_path, caplog):
    """With on_anomaly="raise" the error goes on, and the cause stands in both."""
    watch = GradWatch(dirpath=tmp_path / "run", on_anomaly="raise")
    with pytest.raises(AnomalyError, match=r"head\.weight\[0, 5\]"):
        fit(tmp_path, spoil_head, watch=watch)
    assert "1 critical event, the first at step 12: NONFINITE_LOSS" in said(caplog)


def test_a_training_that_ends_before_its_first_step_says_nothing(tmp_path, caplog):
    """Nothing was seen, and nothing is claimed."""
    watch = GradWatch(dirpath=tmp_path / "run")
    model = Breaks(raises(ValueError("at once")), at=0)
    with pytest.raises(ValueError, match="at once"):
        trainer(tmp_path, [watch], max_steps=4).fit(model, DataLoader(TensorDataset(torch.randn(8, 5, 3)), 4))
    assert "GradWatch" not in said(caplog)
    assert not watch.events


# ---------------------------------------------------------------- at once, and through a quiet logger


@pytest.mark.parametrize("happens", [spoil_head, spoil_recurrent_weight, spoil_input])
def test_a_logger_set_to_warnings_lets_what_is_critical_through(tmp_path, caplog, happens):
    """The line at once and the closing lines both."""
    caplog.set_level(logging.WARNING, logger=LOGGER)
    fit(tmp_path, happens)
    assert "GradWatch, step 12: NONFINITE_" in said(caplog)
    assert "GradWatch: how far" in said(caplog)


def test_a_healthy_run_does_not_speak_through_it(tmp_path, caplog):
    """Its closing lines are information."""
    caplog.set_level(logging.WARNING, logger=LOGGER)
    fit(tmp_path, lambda model, x: None, steps=4)
    assert not said(caplog)


def test_the_first_critical_event_of_a_kind_is_said_at_once_and_once(tmp_path, caplog):
    """Three bad inputs are three events and one line, which stands before the end of the training."""

    class Bad(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.at = trainer.global_step if trainer.global_step in (3, 9, 15) else -1

    watch = fit(tmp_path, spoil_input, Bad(), AdaptiveClip(dirpath=tmp_path / "run"), steps=20)
    assert sum(event.kind == EventKind.NONFINITE_INPUT for event in watch.events) == 3
    lines = said(caplog).splitlines()
    at_once = [place for place, line in enumerate(lines) if line.startswith("GradWatch, step")]
    first_word = at_once.pop(0)
    assert lines[first_word].startswith("GradWatch, step 0: rnn, layer 0")
    assert [lines[place].split(".")[0] for place in at_once] == ["GradWatch, step 3: NONFINITE_INPUT"]
    assert at_once[0] < next(place for place, line in enumerate(lines) if "`Trainer.fit` stopped" in line)


def test_a_way_back_is_said_at_once(tmp_path, caplog):
    """With on_anomaly="rollback": the step, and to which one it went back."""
    watch = GradWatch(dirpath=tmp_path / "run", on_anomaly="rollback", snapshot_every_n_steps=2)
    fit(tmp_path, spoil_head, watch=watch, steps=20)
    lines = [line for line in said(caplog).splitlines() if line.startswith("GradWatch, step 12: STEP_SKIPPED")]
    assert len(lines) == 1
    assert "Weights, optimizer and schedule go back to those after step" in lines[0]


def test_nothing_is_said_where_it_was_switched_off(tmp_path, caplog):
    """summary=False silences the lines at once too."""
    fit(tmp_path, spoil_head, watch=GradWatch(dirpath=tmp_path / "run", summary=False))
    assert "GradWatch" not in said(caplog)
