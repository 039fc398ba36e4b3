"""Damaged, hostile and foreign run logs: skipped and counted, or one clear error."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.report.html import write_report
from lightning_gradwatch.report.summary import summary_lines
from lightning_gradwatch.runlog import RunLogError, load_run
from lightning_gradwatch.runlog.schema import EVENTS_FILE, PROFILES_FILE, RUN_FILE, STEPS_FILE
from tests.runlogs import profile, write_run

DAMAGE = {
    "no JSON": b"hello",
    "not UTF-8": b'{"step": 1, "module": "\xff\xfe"}',
    "UTF-16": '{"step": 1}'.encode("utf-16"),
    "NUL bytes, as after a power cut": b"\0" * 64,
    "a list": b"[1, 2, 3]",
    "a number": b"17",
    "nothing in it": b"{}",
    "deep nesting": b"[" * 100_000,
    "a header without a version": b'{"gradwatch_header": true}',
    "a header with a list for a version": b'{"gradwatch_header": true, "format_version": [1]}',
    "a header with a word for a step": b'{"gradwatch_header": true, "format_version": "1.0", "resumed_at_step": "x"}',
}


@pytest.mark.parametrize("line", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("name", [PROFILES_FILE, EVENTS_FILE, STEPS_FILE])
def test_a_damaged_line_is_passed_over_and_counted(tmp_path, name, line):
    """The records around it are all there."""
    write_run(tmp_path, steps=60, every=5)
    before = load_run(tmp_path)
    path = tmp_path / name
    first, _, rest = path.read_bytes().partition(b"\n")
    path.write_bytes(first + b"\n" + line + b"\n" + rest)
    after = load_run(tmp_path)
    assert after.skipped_lines == 1
    for records in ("profile_records", "event_records", "step_records"):
        assert getattr(after, records) == getattr(before, records)


WRONG = [
    ("step", "seven"),
    ("step", True),
    ("step", -1),
    ("step", 1.5),
    ("step", 10**30),
    ("module", None),
    ("module", ["rnn"]),
    ("layer", "0"),
    ("total", 3.0),
    ("total", ["a"]),
    ("total", [[1.0]]),
    ("total", [10**400]),
    ("direct", [1.0]),
    ("lagged", {"0": 1.0}),
    ("at", [0.5]),
    ("horizon", "far"),
    ("horizon_censored", 1),
    ("growth_rate", "fast"),
    ("exact", "yes"),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_record_with_a_wrong_type_is_passed_over(tmp_path, field, value):
    """Whatever is wrong in a known field, the record is skipped and counted."""
    write_run(tmp_path, steps=1)
    with (tmp_path / PROFILES_FILE).open("a") as file:
        file.write(json.dumps({**profile(3), field: value}) + "\n")
        file.write(json.dumps({**profile(4), "added_by_a_newer_minor": {"x": 1}}) + "\n")
    run = load_run(tmp_path)
    assert [record["step"] for record in run.profile_records] == [0, 4]
    assert run.profile_records[1]["added_by_a_newer_minor"] == {"x": 1}
    assert run.skipped_lines == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.dictionaries(st.sampled_from(sorted(profile())), json_values, max_size=3), max_size=4))
def test_no_record_however_odd_breaks_the_reader_or_the_verdict(tmp_path_factory, changes):
    """Every line is either a record or counted, and what is a record can be judged."""
    folder = tmp_path_factory.mktemp("run")
    lines = [json.dumps({**profile(step), **change}) for step, change in enumerate(changes)]
    (folder / PROFILES_FILE).write_text("\n".join(lines) + "\n")
    run = load_run(folder)
    assert len(run.profile_records) + run.skipped_lines == len(changes)
    assert summary_lines(run)


def test_any_profile_that_is_read_can_be_drawn(tmp_path):
    """Empty lists, one timestep, zeros, absent curves: the page is written all the same."""
    odd = [
        {"timesteps": 1, "total": [0.0], "total_max": [0.0], "direct": [0.0], "lagged": [1.0], "horizon": None},
        {"timesteps": 0, "total": [], "total_max": [], "direct": [], "lagged": [], "horizon": None},
        {"total_max": None, "direct": None, "lagged": None, "horizon": None, "growth_rate": None},
        {"total": ["inf"] * 40, "total_max": ["nan"] * 40},
    ]
    lines = [json.dumps({**profile(step), "module": f"m{step}", **change}) for step, change in enumerate(odd)]
    (tmp_path / PROFILES_FILE).write_text("\n".join(lines) + "\n")
    run = load_run(tmp_path)
    assert run.skipped_lines == 0
    assert len(summary_lines(run)) == len(odd)
    assert write_report(run, tmp_path / "report.html").stat().st_size > 1_000_000


@pytest.mark.parametrize("name", [PROFILES_FILE, RUN_FILE])
def test_a_newer_major_format_is_refused_with_advice(tmp_path, name):
    """A newer major would be misread; a newer minor only adds."""
    write_run(tmp_path, steps=2)
    path = tmp_path / name
    written = path.read_text()
    version = '"format_version":"1.0"' if name == PROFILES_FILE else '"format_version": "1.0"'
    assert version in written
    path.write_text(written.replace(version, version.replace("1.0", "1.9"), 1))
    assert load_run(tmp_path).skipped_lines == 0
    path.write_text(written.replace(version, version.replace("1.0", "2.0"), 1))
    with pytest.raises(RunLogError, match="pip install --upgrade lightning-gradwatch"):
        load_run(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_run_json_costs_nothing_but_itself(tmp_path, content):
    """The header of the files still says which run it was."""
    write_run(tmp_path, steps=3)
    (tmp_path / RUN_FILE).write_bytes(content)
    run = load_run(tmp_path)
    assert run.meta["run_id"] == "RNN-0"
    assert run.skipped_lines == 1


@pytest.mark.slow
def test_a_million_events_make_a_page(tmp_path):
    """In bounded time and memory; the page holds the gravest, says so, and stays small."""
    write_run(tmp_path, steps=50)
    with (tmp_path / EVENTS_FILE).open("a") as file:
        for step in range(1_000_000):
            severity = "critical" if step % 100_000 == 7 else "info"
            file.write(
                f'{{"kind":"GRADIENT_CLIPPED","step":{step},"severity":"{severity}","message":"event {step}"}}\n'
            )
    command = "import resource, sys; from lightning_gradwatch.cli import main; code = main(sys.argv[1:]); "
    command += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    page = tmp_path / "report.html"
    done = subprocess.run(
        [sys.executable, "-c", command, "report", str(tmp_path), "-o", str(page)],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    assert int(done.stdout.split()[-1]) < 1_500_000  # KiB
    shown = page.read_text()
    assert len(shown) < 15_000_000
    assert "The table holds the 500 gravest of 1,000,0" in shown
    assert all(f">event {step}<" in shown for step in range(7, 1_000_000, 100_000))
