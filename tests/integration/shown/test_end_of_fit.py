"""What the last lines of a fit say of it: its gravest event, its counts, and the verdict of the run log."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lightning_gradwatch import AdaptiveClip, EventKind, GradWatch, load_run
from lightning_gradwatch.callbacks.output.watch_recorder import WatchRecorder
from lightning_gradwatch.events import Event, Severity
from lightning_gradwatch.runlog import summarise
from tests.integration.watched import Plant, fit
from tests.models import TinyLanguageModel


def test_the_end_of_fit_names_the_gravest_event_and_what_can_be_typed(tmp_path, caplog):
    """One bad batch: its event with step and place, the commands as they are to be typed, what AdaptiveClip did; of a quiet run less."""

    def said(folder, spoil) -> str:
        watch = GradWatch(dirpath=folder)
        caplog.clear()
        with caplog.at_level("INFO"):
            fit(tmp_path, TinyLanguageModel(before_rnn=spoil), [watch, AdaptiveClip(dirpath=folder)], max_steps=3)
        return caplog.text

    def spoil(x, batch_idx):
        return x.index_put((torch.tensor(3), torch.tensor(5)), torch.tensor(math.nan)) if batch_idx == 1 else x

    folder = tmp_path / "a run"
    bad, good = said(folder, spoil), said(tmp_path / "run", None)
    event = "\n  1 critical event, the first at step 1: NONFINITE_INPUT, the input of rnn, timestep 5, sequence 3 holds nan. "
    event += "Besides 1 warning.\n"  # the step that AdaptiveClip skipped, which `gradwatch check` counts too
    assert event + f"  gradwatch report '{folder}'\n  gradwatch events '{folder}'\n" in bad
    assert f"AdaptiveClip: 0 of 3 steps clipped, 1 skipped. Run log: {folder}" in bad
    assert f"\n  No events.\n  gradwatch report {tmp_path / 'run'}\n" in good
    assert "AdaptiveClip: " not in good


def test_the_last_lines_count_events_by_severity():
    """What is only a note alarms nobody; the end of an episode is none."""
    found = WatchRecorder()
    note = Event(EventKind.VANISHING_HIDDEN_GRADIENT, 9, module="rnn", value=3.0, threshold=5.0, severity=Severity.INFO)
    found.events.extend([note, note, replace(note, action="ended", detail="")])
    assert found.summary()[-1] == "  2 notes."
    found.events.extend([Event(EventKind.EXPLODING_GRADIENT, 7, value=9.0, threshold=1.0, detail="It is large.")])
    assert found.summary()[-1] == (
        "  1 warning, the first at step 7: EXPLODING_GRADIENT, the gradient norm of the model jumped to 9; "
        "an ordinary step stays under 1. Besides 2 notes."
    )


@pytest.mark.parametrize("spoilt", [None, 3])
def test_the_end_of_fit_and_the_run_log_come_to_the_same_verdict(tmp_path, spoilt, caplog):
    """What is kept for the last lines, which is not all of a run, is enough for the verdict; also where the run is lost."""
    watch = GradWatch(every_n_steps=1, dirpath=tmp_path / "run")
    with caplog.at_level("INFO"):
        fit(tmp_path, callbacks=[watch, Plant("rnn.weight_hh_l0", (0, 0), math.nan, spoilt or -1)], max_steps=40)
    run = load_run(tmp_path / "run")
    (found,) = summarise(run.profile_records, run.event_records)
    assert found.samples == 40
    assert found.line in caplog.text
    assert (found.verdict == "not finite") == (spoilt is not None)
    if spoilt:
        assert found.since == 3
