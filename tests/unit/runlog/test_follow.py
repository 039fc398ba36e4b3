"""Following a run log that is being written: nothing missed, nothing twice, nothing kept for ever."""

from __future__ import annotations

import os
import random

import pytest

from lightning_gradwatch.events import ONGOING, Event, EventKind, Severity
from lightning_gradwatch.runlog import RunLogError, RunLogWriter, load_run, summarise
from lightning_gradwatch.runlog.follow import Follower
from lightning_gradwatch.runlog.schema import PROFILES_FILE, STEPS_FILE
from tests.runlogs import profile, write_run


def steps_of(follower: Follower) -> list[int]:
    return [record["step"] for record in follower.run().step_records]


def test_it_sees_what_load_run_sees(tmp_path):
    """Of a run that is short enough to be kept whole, records and verdicts are those of the reader."""
    write_run(tmp_path, kind="LSTM", layers=2, steps=150, explode_at=100)
    follower = Follower(tmp_path)
    assert follower.poll()
    seen, loaded = follower.run(), load_run(tmp_path)
    assert seen.event_records == loaded.event_records
    assert seen.step_records == loaded.step_records
    verdicts = [(layer.place, layer.verdict, layer.horizon) for layer in summarise(seen.profile_records, [])]
    assert verdicts == [(layer.place, layer.verdict, layer.horizon) for layer in summarise(loaded.profile_records, [])]
    assert not follower.poll()
    assert steps_of(follower) == list(range(150))


def test_bytes_may_come_in_any_portions(tmp_path):
    """However a file grows, each record is read once, and a torn line only when its end has come."""
    write_run(tmp_path / "whole", steps=60)
    whole = (tmp_path / "whole" / STEPS_FILE).read_bytes()
    folder = tmp_path / "growing"
    folder.mkdir()
    follower, at, rng = Follower(folder), 0, random.Random(0)
    assert not follower.poll()
    while at < len(whole):
        portion = whole[at : at + rng.randint(1, 400)]
        with (folder / STEPS_FILE).open("ab") as file:
            file.write(portion)
        at += len(portion)
        follower.poll()
        assert len(steps_of(follower)) == max(0, whole[:at].count(b"\n") - 1)  # the first line is the header
    assert steps_of(follower) == list(range(60))
    assert follower.run().skipped_lines == 0


def test_a_resumed_run_supersedes(tmp_path):
    """What an earlier process recorded from the step on at which a resumed run began is taken back, counts of events too."""
    first = RunLogWriter(tmp_path, header={})
    for step in range(10):
        first.step({"step": step, "grad_norm": 1.0})
        first.event(Event(EventKind.STEP_SKIPPED, step, value=1.0))
        first.profile(profile(step))
    first.close()
    follower = Follower(tmp_path)
    follower.poll()
    assert follower.events == {"warning": 10}
    second = RunLogWriter(tmp_path, header={}, resumed_at_step=6)
    second.step({"step": 6, "grad_norm": 2.0})
    second.close()
    follower.poll()
    assert steps_of(follower) == list(range(7))
    assert follower.events == {"warning": 6}
    assert [record["step"] for record in follower.run().profile_records] == list(range(6))


def test_a_folder_that_is_replaced_is_read_anew(tmp_path):
    """Where somebody deletes the run log and trains again, the new one is shown and nothing of the old."""
    write_run(tmp_path, steps=30)
    follower = Follower(tmp_path)
    follower.poll()
    for name in os.listdir(tmp_path):
        (tmp_path / name).unlink()
    write_run(tmp_path, steps=5)
    follower.poll()
    assert steps_of(follower) == list(range(5))
    assert {record["step"] for record in follower.run().profile_records} == {0}


def test_other_ranks_events_are_seen(tmp_path):
    """Also where their file appears later."""
    write_run(tmp_path, steps=3, clipping=False)
    follower = Follower(tmp_path)
    follower.poll()
    writer = RunLogWriter(tmp_path, header={}, rank=3)
    writer.event(Event(EventKind.NONFINITE_LOSS, 2, rank=3, value=float("nan")))
    writer.close()
    assert follower.poll()
    assert [event["rank"] for event in follower.run().event_records] == [3]


def test_a_long_run_is_kept_in_part(tmp_path):
    """Of many sampled steps the last are kept, and the profile that reached furthest, on which the verdict rests."""
    writer = RunLogWriter(tmp_path, header={})
    writer.profile(profile(0, timesteps=300, rate=-0.01))
    for step in range(1, 600):
        writer.profile(profile(step, timesteps=300, rate=-0.5))
    writer.close()
    follower = Follower(tmp_path)
    follower.poll()
    kept = follower.run().profile_records
    assert kept[0]["step"] == 0
    assert kept[-1]["step"] == 599
    assert len(kept) == 201
    assert sum(len(record["total"]) for record in kept) < 201 * 64 + 10 * 300
    assert [layer.verdict for layer in summarise(kept, [])] == ["shortened"]


def test_mistakes_are_clear(tmp_path):
    """A file instead of a folder, and a newer format, are errors; a folder that is not there yet is waited for."""
    follower = Follower(tmp_path / "later" / "run")
    assert (follower.poll(), follower.has_run) == (False, False)
    write_run(tmp_path / "later" / "run", steps=2)
    assert (follower.poll(), follower.has_run) == (True, True)
    (tmp_path / "file").touch()
    with pytest.raises(RunLogError, match="found a file"):
        Follower(tmp_path / "file").poll()
    newer = tmp_path / "later" / "run" / PROFILES_FILE
    newer.write_text('{"gradwatch_header": true, "format_version": "2.0"}\n')
    with pytest.raises(RunLogError, match="upgrade"):
        follower.poll()


def test_the_end_of_an_episode_is_not_counted(tmp_path):
    """It is kept with the other records, as the note that it is."""
    writer = RunLogWriter(tmp_path, header={})
    writer.event(Event(EventKind.EXPLODING_GRADIENT, 1, value=9.0, threshold=1.0))
    writer.event(
        Event(EventKind.EXPLODING_GRADIENT, 5, value=9.0, threshold=1.0, severity=Severity.INFO, action=ONGOING)
    )
    writer.close()
    follower = Follower(tmp_path)
    follower.poll()
    assert follower.events == {"warning": 1}
    assert len(follower.run().event_records) == 2
