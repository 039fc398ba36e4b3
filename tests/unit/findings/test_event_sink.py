"""Where events go: the list, the run log, the user's callable."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from lightning_gradwatch.events import Event, EventKind
from lightning_gradwatch.findings.event_sink import EventSink
from lightning_gradwatch.runlog.reader import load_run
from lightning_gradwatch.runlog.writer import RunLogWriter

EVENT = Event(EventKind.STEP_SKIPPED, 3, value=float("inf"))


def test_an_event_is_kept_written_and_told(tmp_path: Path) -> None:
    """It stands in the list and in the run log, and the user's callable was given it."""
    told: list[Event] = []
    sink = EventSink(told.append)
    sink.log = RunLogWriter(tmp_path / "run", header={})
    sink.take(EVENT)
    sink.log.close()
    assert sink.events == told == [EVENT]
    assert [event["step"] for event in load_run(tmp_path / "run").event_records] == [3]


def test_an_event_that_another_rank_writes_is_kept_and_told(tmp_path: Path) -> None:
    """The run log of this rank has none of it."""
    told: list[Event] = []
    sink = EventSink(told.append)
    sink.log = RunLogWriter(tmp_path / "run", header={})
    sink.take(EVENT, write=False)
    sink.log.close()
    assert sink.events == told == [EVENT]
    assert not list((tmp_path / "run").glob("events*"))


def test_an_error_in_the_callable_is_one_warning(recwarn: pytest.WarningsRecorder) -> None:
    """Every event is kept, whatever the callable does."""
    sink = EventSink(lambda event: 1 / 0)
    sink.take(EVENT)
    sink.take(EVENT)
    assert len(sink.events) == 2
    assert [str(w.message) for w in recwarn] == [
        "`on_event` failed (ZeroDivisionError: division by zero); the event is kept, and the training goes on."
    ]


def test_a_copy_holds_no_run_log(tmp_path: Path) -> None:
    """A pickled sink keeps its events and lets go of the file."""
    sink = EventSink(None)
    sink.log = RunLogWriter(tmp_path / "run", header={})
    sink.take(EVENT)
    copied = pickle.loads(pickle.dumps(sink))
    sink.log.close()
    assert copied.events == [EVENT]
    assert copied.log is None
