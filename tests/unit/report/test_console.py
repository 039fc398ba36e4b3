"""Events and verdicts in the terminal."""

from __future__ import annotations

import dataclasses
import io
import re
import sys
from collections import Counter

import pytest
from rich.console import Console

from lightning_gradwatch.events import Event, EventKind
from lightning_gradwatch.report import print_events, print_summary, summary_lines
from lightning_gradwatch.runlog import load_run
from tests.runlogs import write_run


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=100)


def test_an_event_is_shown_with_its_one_text(console):
    """Kind, message and remedy are the event's own; a remedy appears once."""
    event = Event(EventKind.VANISHING_HIDDEN_GRADIENT, 40, module="rnn", layer=0, value=12.0, threshold=20.0)
    print_events([event.to_record()] * 3, console=console)
    shown = " ".join(console.file.getvalue().split())
    assert shown.count("falls under 1 % after 12 timesteps.") == 3
    assert shown.count("What lies further back cannot be learned.") == 1


@pytest.mark.parametrize("remedy", ["Raise `max_skips`.", "`a` or `b`, not c", "set `x=[1]` first"])
def test_code_in_a_remedy_is_bold_and_has_no_backticks(remedy):
    """What stands between two backticks, brackets and all."""
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor")
    print_events([Event(EventKind.NOT_OBSERVED, 1, module="rnn", remedy=remedy).to_record()], console=console)
    shown = console.file.getvalue()
    for part in remedy.split("`")[1::2]:
        assert f"\x1b[1m{part}\x1b[0m" in shown
    assert "`" not in shown


@pytest.mark.parametrize("remedy", ["a ` alone", "``", "`one\ntwo`"])
def test_a_backtick_that_marks_no_code_stays(console, remedy):
    """One alone, two with nothing between them, or on two lines."""
    print_events([Event(EventKind.NOT_OBSERVED, 1, module="rnn", remedy=remedy).to_record()], console=console)
    assert console.file.getvalue().count("`") == remedy.count("`")


def test_a_hostile_name_neither_styles_nor_steers_the_terminal(console):
    """Brackets are no markup, and escape codes do not reach the terminal."""
    event = Event(EventKind.NOT_OBSERVED, 1, module="[red]x\x1b]0;title\x07\u202e\ud800")
    print_events([event.to_record()], console=console)
    shown = console.file.getvalue()
    assert "[red]x" in shown
    assert not {"\x1b", "\x07", "\u202e", "\ud800"} & set(shown)


def test_the_summary_shows_horizon_and_verdict(tmp_path, console):
    """The table says what the lines say."""
    run = load_run(write_run(tmp_path, start=-0.5, end=-0.5))
    print_summary(run, console=console)
    shown = " ".join(console.file.getvalue().split())
    assert "vanishing" in shown
    assert "10 of 40" in shown
    assert summary_lines(run)[0].startswith("model.rnn, layer 0 (RNN): vanishing. The gradient falls under 1 %")


def test_nothing_to_show_is_said(tmp_path, console):
    """No events and no profiles are words, not an empty table."""
    print_events([], console=console)
    print_summary(load_run(write_run(tmp_path, steps=0)), console=console)
    assert "No events." in console.file.getvalue()
    assert "No profile was recorded" in console.file.getvalue()


def test_without_rich_the_table_is_plain(monkeypatch, tmp_path, capsys):
    """Every word that rich would show is there, in columns, with nothing but line breaks to lay it out."""
    run = load_run(write_run(tmp_path, explode_at=100, start=-0.5, end=-0.5))
    console = Console(file=io.StringIO(), width=80)
    print_summary(run, console=console)
    print_events(run.event_records, console=console)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setenv("COLUMNS", "80")
    print_summary(run)
    print_events(run.event_records)
    shown = capsys.readouterr().out
    wanted = re.findall(r"[^\s─—]+", console.file.getvalue())
    assert Counter(re.findall(r"\S+", shown.replace("-" * 3, ""))) >= Counter(word for word in wanted if len(word) > 12)
    assert [line for line in shown.splitlines() if line.startswith("where ")]
    assert "\x1b" not in shown


def test_a_long_table_holds_the_last_events():
    """Of more events than anybody reads the last are shown, and it is said how many there are."""
    console = Console(file=io.StringIO(), width=100)
    events = [{"kind": "NONFINITE_LOSS", "step": step, "message": f"number {step}."} for step in range(5000)]
    print_events(events, console=console)
    shown = console.file.getvalue()
    assert "number 4000." in shown
    assert "number 3999." not in shown
    assert "the last 1,000 of 5,000 events" in shown


@pytest.mark.parametrize(
    ("count", "said"), [(0, "No event names it."), (1, "1 event names it."), (3, "3 events name it.")]
)
def test_a_line_counts_the_events_that_name_its_place(tmp_path, count, said):
    """There may be others, of the model, which the sentence before speaks of."""
    run = load_run(write_run(tmp_path, start=-0.01, end=-0.01))
    here = Event(EventKind.EXPLODING_HIDDEN_GRADIENT, 1, module="model.rnn", layer=0, value=1.0, threshold=1.0)
    elsewhere = Event(EventKind.NONFINITE_LOSS, 1)
    events = [event.to_record() for event in (*[here] * count, elsewhere)]
    (line,) = summary_lines(dataclasses.replace(run, event_records=events))
    assert line.endswith(said)
