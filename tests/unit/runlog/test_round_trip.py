"""What is written is read back, to the bit, whatever stops the writer."""

from __future__ import annotations

import copy
import json
import math
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.events import Event, EventKind
from lightning_gradwatch.runlog import RunLogError, RunLogWriter, load_run
from lightning_gradwatch.runlog.schema import EVENTS_FILE, HEADER_KEY, PROFILES_FILE, RUN_FILE, STEPS_FILE
from tests.runlogs import profile, write_run

HEADER = {"run_id": "one", "versions": {"torch": "2.13.0"}}


def same(left: object, right: object) -> bool:
    """Equality under which NaN equals itself and 1 differs from 1.0 and True."""
    return repr(left) == repr(right)


@settings(max_examples=50, deadline=None)
@given(
    norms=st.lists(st.floats(width=64), min_size=1, max_size=20),
    name=st.text(min_size=1),
    rate=st.none() | st.floats(),
)
def test_any_profile_is_read_back_to_the_bit(tmp_path_factory, norms, name, rate):
    """Any float, NaN and infinities included, and any name survive the way through the file."""
    folder = tmp_path_factory.mktemp("run")
    record = {**profile(), "module": name, "growth_rate": rate, "total": norms, "total_max": norms, "direct": norms}
    writer = RunLogWriter(folder, header=HEADER)
    writer.profile(record)
    writer.close()
    run = load_run(folder)
    assert run.skipped_lines == 0
    (found,) = run.profile_records
    assert all(same(found[key], value) for key, value in record.items())


def test_events_and_steps_are_read_back(tmp_path):
    """An event keeps every field, a step its non-finite norm."""
    event = Event(EventKind.NONFINITE_INPUT, 7, module="a.b", timestep=3, sequence=1, value=math.nan, rank=0)
    writer = RunLogWriter(tmp_path, header=HEADER)
    writer.event(event)
    writer.step({"step": 7, "optimizer": 0, "grad_norm": math.inf, "clip_coefficient": 1.0, "skipped": True})
    writer.close()
    run = load_run(tmp_path)
    assert same(run.event_records[0], {**run.event_records[0], **json.loads(json.dumps(event.to_record()))})
    assert run.step_records[0]["grad_norm"] == math.inf
    assert run.step_records[0]["skipped"] is True
    assert run.step_records[0]["clip_threshold"] is None


def test_every_line_is_strict_json(tmp_path):
    """No line holds the NaN or Infinity that JSON lacks, and each file begins with a header."""
    write_run(tmp_path, steps=40, explode_at=20)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    for name in (PROFILES_FILE, EVENTS_FILE, STEPS_FILE):
        lines = (tmp_path / name).read_text().splitlines()
        first, *_ = [json.loads(line, parse_constant=refuse) for line in lines]
        assert first[HEADER_KEY] is True
        assert first["format_version"] == "1.0"


def test_a_line_torn_at_any_byte_costs_that_line_alone(tmp_path):
    """Cut anywhere within the last line, the file yields all earlier records and says that one line was passed over."""
    writer = RunLogWriter(tmp_path, header=HEADER)
    for step in range(3):
        writer.profile(profile(step, timesteps=4))
    writer.close()
    whole = (tmp_path / PROFILES_FILE).read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(start, len(whole) + 1):
        (tmp_path / PROFILES_FILE).write_bytes(whole[:cut])
        run = load_run(tmp_path)
        complete = cut >= len(whole) - 1  # all but the line end is a whole record too
        assert [record["step"] for record in run.profile_records] == [0, 1, 2][: 3 if complete else 2]
        assert run.skipped_lines == (0 if complete or cut == start else 1)


def test_a_resumed_writer_starts_a_new_line_after_a_torn_one(tmp_path):
    """The torn remains of the killed run do not swallow the resumed run's header."""
    writer = RunLogWriter(tmp_path, header=HEADER)
    for step in range(4):
        writer.profile(profile(step))
    writer.close()
    with (tmp_path / PROFILES_FILE).open("ab") as file:
        file.write(b'{"step": 4, "tot')
    again = RunLogWriter(tmp_path, header=HEADER, resumed_at_step=2)
    again.profile(profile(2, rate=-0.5))
    again.close()
    run = load_run(tmp_path)
    assert [(record["step"], record["growth_rate"]) for record in run.profile_records] == [
        (0, -0.02),
        (1, -0.02),
        (2, -0.5),
    ]
    assert run.skipped_lines == 1


def test_a_resumed_run_supersedes_even_what_it_does_not_write_again(tmp_path):
    """Events after the checkpoint belong to a future that did not happen."""
    writer = RunLogWriter(tmp_path, header=HEADER)
    for step in (1, 5, 9):
        writer.event(Event(EventKind.STEP_SKIPPED, step))
    writer.close()
    RunLogWriter(tmp_path, header=HEADER, resumed_at_step=5).close()
    assert [event["step"] for event in load_run(tmp_path).event_records] == [1]


def test_ranks_are_merged_by_step(tmp_path):
    """Each rank writes its own events file; the reader merges them, and other ranks write nothing else."""
    for rank in (0, 1, 2):
        writer = RunLogWriter(tmp_path, header=HEADER, rank=rank)
        writer.meta({"rank": rank})
        writer.profile(profile(rank))
        writer.step({"step": rank})
        for step in (rank, 10 - rank):
            writer.event(Event(EventKind.STEP_SKIPPED, step, rank=rank))
        writer.close()
    run = load_run(tmp_path)
    assert [(event["step"], event["rank"]) for event in run.event_records] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (8, 2),
        (9, 1),
        (10, 0),
    ]
    assert len(run.profile_records) == len(run.step_records) == 1
    assert run.meta["rank"] == 0


def test_meta_merges_and_outlives_the_writer(tmp_path):
    """What several callbacks say about the run stands side by side, and a resumed run adds to it."""
    writer = RunLogWriter(tmp_path, header=HEADER)
    writer.meta({"config": {"GradWatch": {"every_n_steps": 50}}})
    writer.meta({"config": {"AdaptiveClip": {"policy": "spike", "path": Path("x")}}})
    writer.close()
    RunLogWriter(tmp_path, header=HEADER).meta({"config": {"GradWatch": {"every_n_steps": 20}}})
    meta = load_run(tmp_path).meta
    assert meta["config"] == {"GradWatch": {"every_n_steps": 20}, "AdaptiveClip": {"policy": "spike", "path": "x"}}
    assert [path.name for path in tmp_path.iterdir()] == [RUN_FILE]


def test_a_killed_writer_leaves_a_log_that_loads(tmp_path):
    """After kill -9 in the middle of writing, all records but perhaps the last are there."""
    code = (
        "import sys; from pathlib import Path; from tests.runlogs import profile; "
        "from lightning_gradwatch.runlog.writer import RunLogWriter\n"
        "writer = RunLogWriter(Path(sys.argv[1]), header={})\n"
        "for step in range(10**9):\n    writer.profile(profile(step))\n    print(step, flush=True)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    said = 0
    for line in child.stdout:
        said = int(line)
        if said >= 50:
            break
    child.send_signal(signal.SIGKILL)
    said = max([said, *map(int, child.stdout.read().split())])
    child.wait()
    run = load_run(tmp_path)
    steps = [record["step"] for record in run.profile_records]
    assert steps == list(range(len(steps)))
    assert len(steps) > said
    assert run.skipped_lines <= 1


def test_a_full_disk_ends_the_log_and_not_the_training(tmp_path):
    """One warning, ``failed`` set, and every later call does nothing."""
    (tmp_path / PROFILES_FILE).symlink_to("/dev/full")
    writer = RunLogWriter(tmp_path, header=HEADER)
    with pytest.warns(UserWarning, match="cannot be written"):
        writer.profile(profile(0))
    assert writer.failed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.profile(profile(1))
        writer.event(Event(EventKind.STEP_SKIPPED, 1))
        writer.meta({"a": 1})
        writer.close()
    assert not (tmp_path / EVENTS_FILE).exists()


def test_a_removed_folder_ends_the_log_and_not_the_training(tmp_path):
    """A folder that is gone when the first record comes is a warning."""
    writer = RunLogWriter(tmp_path / "run", header=HEADER)
    (tmp_path / "run").rmdir()
    with pytest.warns(UserWarning, match="cannot be written"):
        writer.event(Event(EventKind.STEP_SKIPPED, 1))
    assert writer.failed


def test_a_copy_writes_nothing(tmp_path):
    """A copied callback must not write into the run of the original."""
    writer = RunLogWriter(tmp_path, header=HEADER)
    writer.profile(profile(0))
    copied = copy.deepcopy(writer)
    copied.profile(profile(1))
    copied.close()
    writer.profile(profile(2))
    writer.close()
    assert [record["step"] for record in load_run(tmp_path).profile_records] == [0, 2]


def test_the_parent_of_the_folder_will_do(tmp_path):
    """A user may name the folder that Lightning logs to."""
    write_run(tmp_path / "version_3" / "gradwatch", steps=5)
    run = load_run(str(tmp_path / "version_3"))
    assert run.path.name == "gradwatch"
    assert run.name == "version_3"


def test_what_is_no_run_log_is_said_with_a_remedy(tmp_path):
    """Nothing there, a file, a folder of something else: each names the rule, what was found and what to do."""
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    write_run(tmp_path / "runs" / "a", steps=2)
    for path, words in (
        ("nowhere", "found nothing"),
        ("file", "found a file"),
        ("other", "found neither run.json nor"),
        ("runs", "Did you mean"),
    ):
        with pytest.raises(RunLogError, match=words):
            load_run(tmp_path / path)
