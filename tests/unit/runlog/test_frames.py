"""The DataFrames of a run."""

from __future__ import annotations

import sys

import pytest

from lightning_gradwatch.runlog import load_run
from tests.runlogs import write_run


def test_frames_hold_the_records(tmp_path):
    """One row per record, and lists stay lists."""
    run = load_run(write_run(tmp_path, steps=100, kind="LSTM"))
    assert len(run.profiles) == len(run.profile_records) > 0
    assert run.profiles["total"].iloc[3] == run.profile_records[3]["total"]
    assert set(run.profiles["state"]) == {"h", "c"}
    assert run.steps["grad_norm"].tolist() == [record["grad_norm"] for record in run.step_records]
    assert (run.events["kind"] == "GRADIENT_CLIPPED").sum() == len(run.event_records)


def test_an_empty_run_has_the_same_columns_and_types(tmp_path):
    """A script that filters by a column works on a run without events too."""
    full = load_run(write_run(tmp_path / "full", steps=100))
    empty = load_run(write_run(tmp_path / "empty", steps=0))
    for name in ("profiles", "events", "steps"):
        ours, theirs = getattr(empty, name), getattr(full, name)
        assert len(ours) == 0
        assert ours.dtypes.to_dict() == theirs.dtypes.to_dict()


def test_without_pandas_the_error_names_the_extra(tmp_path, monkeypatch):
    """The plain records need no pandas, the DataFrames say what to install."""
    run = load_run(write_run(tmp_path, steps=3))
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert run.profile_records
    with pytest.raises(ImportError, match=r"pip install 'lightning-gradwatch\[pandas\]'"):
        _ = run.profiles
