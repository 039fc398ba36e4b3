"""Whatever stands in a run log, each command answers or says in one line why not: no traceback, nothing taken for markup."""

from __future__ import annotations

import contextlib
import io
import json
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_gradwatch.cli import main
from lightning_gradwatch.events import Event, EventKind
from lightning_gradwatch.report import html
from lightning_gradwatch.runlog.schema import EVENTS_FILE, HEADER_KEY, PROFILES_FILE, RUN_FILE, STEPS_FILE
from tests.runlogs import profile

EVIL = "zzz"
"""The name of an element and of an attribute that no page of ours has."""

names = st.sampled_from(
    [
        f"<{EVIL}>",
        f'"><{EVIL} {EVIL}=1>',
        f"</script><script {EVIL}>",
        f"<!--<script><{EVIL}",
        f"' {EVIL}='",
        "\x1b]0;owned\x07\x1b[31m",
        "{{data}}",
        "[red]rnn[/red]",
        "\ud800",
        "a\u202eb",
        "rnn\nTraceback",
        "",
    ]
)
odd = st.one_of(
    names,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["nan", "inf", "-inf", 10**400, -1, 0, 2**62, 1e308, 5e-324]),
    st.lists(st.one_of(st.floats(), names), max_size=3),
    st.dictionaries(names, names, max_size=2),
)
STEP = {
    "step": 3,
    "optimizer": 0,
    "grad_norm": 1.0,
    "clip_threshold": 2.0,
    "clip_coefficient": 0.5,
    "clipped_norm": 0.5,
}
WHOLE = {
    PROFILES_FILE: profile(3, timesteps=4),
    EVENTS_FILE: Event(EventKind.NONFINITE_STATE, 3, module="rnn", layer=0, timestep=2, value=1.0).to_record(),
    STEPS_FILE: {**STEP, "loss": 1.0, "skipped": False},
}


def line_of(file: str) -> st.SearchStrategy[bytes]:
    """A record with some fields made odd, perhaps torn; or bytes; or a header of some version."""
    record = WHOLE[file]
    texts = [name for name, value in record.items() if isinstance(value, str) and name != "severity"]
    named = st.fixed_dictionaries({}, optional=dict.fromkeys(texts, names))
    broken = st.dictionaries(st.sampled_from(sorted(record)), odd, max_size=1)
    whole = st.tuples(named, broken).map(lambda change: json.dumps({**record, **change[0], **change[1]}).encode())
    header = st.tuples(odd, odd).map(
        lambda found: json.dumps({HEADER_KEY: True, "format_version": found[0], "resumed_at_step": found[1]}).encode()
    )
    torn = st.tuples(whole, st.floats(0, 1)).map(lambda cut: cut[0][: int(cut[1] * len(cut[0]))])
    return st.one_of(whole, whole, torn, header, st.binary(max_size=20))


class Seen(HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [tag, *(name for name, _ in attrs)]


class NoPlotly:
    @staticmethod
    def get_plotlyjs() -> str:
        return ""


@pytest.mark.parametrize("command", ["events", "check", "watch", "report"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    profiles=st.lists(line_of(PROFILES_FILE), max_size=4),
    events=st.lists(line_of(EVENTS_FILE), max_size=3),
    steps=st.lists(line_of(STEPS_FILE), max_size=3),
    meta=st.one_of(st.binary(max_size=10), st.dictionaries(names, odd).map(lambda found: json.dumps(found).encode())),
)
def test_a_command_answers_or_says_why_not(command, profiles, events, steps, meta, tmp_path_factory, monkeypatch):
    """Exit code 2 comes with one line; a page holds no element of the run log's; a terminal gets no control characters."""
    folder = tmp_path_factory.mktemp("run")
    for name, lines in ((PROFILES_FILE, profiles), (EVENTS_FILE, events), (STEPS_FILE, steps)):
        (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    (folder / RUN_FILE).write_bytes(meta)
    monkeypatch.setattr(html, "require", lambda module: NoPlotly)
    options = {"watch": ["--once"], "report": ["-o", str(folder / "report.html")]}.get(command, [])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([command, str(folder), *options])
    assert code in ((0, 1, 2) if command == "check" else (0, 2))
    assert "\x1b" not in out.getvalue() + err.getvalue()
    assert "\x07" not in out.getvalue() + err.getvalue()
    said = err.getvalue().splitlines()
    assert len(said) == 1 if code == 2 else len(said) <= 1
    assert all(line.startswith("gradwatch: ") for line in said)
    if code == 0 and command == "report":
        page = Seen()
        page.feed((folder / "report.html").read_text("utf-8"))
        assert page.found.count("script") == 3
        assert EVIL not in page.found
