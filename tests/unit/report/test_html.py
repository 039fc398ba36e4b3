"""The page, as text: complete, escaped, small enough. How it looks in a browser is another test's matter."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from lightning_gradwatch.events import Event, EventKind
from lightning_gradwatch.report import html, payload, write_report
from lightning_gradwatch.report.series import Key
from lightning_gradwatch.runlog import Run, RunLogWriter, load_run
from lightning_gradwatch.runlog.verdict import _SEVERITY
from tests.runlogs import profile, write_run

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>&\"'\ud800"


@pytest.fixture(autouse=True)
def _without_plotly_itself(monkeypatch):
    """The library's five megabytes say nothing about our page and would be searched over and over."""

    class Offline:
        @staticmethod
        def get_plotlyjs() -> str:
            return "/* plotly */"

    monkeypatch.setattr(html, "require", lambda module: Offline)


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_data_are_those_of_the_run(tmp_path):
    """Every total of every gradient is in the page, rounded to six digits."""
    run = load_run(write_run(tmp_path, kind="LSTM", layers=2))
    data = data_of(write_report(run, tmp_path / "report.html").read_text())
    assert data["keys"] == [{"place": f"model.rnn, layer {n}", "state": s} for n in (0, 1) for s in "hc"]
    for place, (layer, state) in enumerate([(0, "h"), (0, "c"), (1, "h"), (1, "c")]):
        records = [r for r in run.profile_records if (r["layer"], r["state"]) == (layer, state)]
        grid = data["runs"][0]["series"][str(place)]["grid"]
        assert grid["steps"] == [record["step"] for record in records]
        for column, record in enumerate(records):
            assert [row[column] for row in grid["rows"]] == pytest.approx(record["total"], rel=1e-5)
        assert grid["note"] == ""


def test_nothing_of_the_run_log_is_markup(tmp_path):
    """Names, messages, kinds and versions that hold HTML appear as text, whatever part of the page they are in."""
    folder = tmp_path / "<b>run"
    writer = RunLogWriter(folder, header={})
    writer.meta({"versions": {HOSTILE: HOSTILE}})
    writer.profile(profile(module=HOSTILE, kind=HOSTILE, direction=HOSTILE, state=HOSTILE))
    writer.event(Event(EventKind.NOT_OBSERVED, 1, module="x" + HOSTILE, message=HOSTILE, remedy=HOSTILE))
    writer.close()
    lines = (folder / "events.jsonl").read_text()
    (folder / "events.jsonl").write_text(lines.replace('"NOT_OBSERVED"', json.dumps(HOSTILE)).replace('"warning"', json.dumps(HOSTILE)))  # fmt: skip  # noqa: E501
    page = write_report(load_run(folder), tmp_path / "report.html", names=[HOSTILE]).read_text()
    without_scripts = re.sub(r"<script nonce=.*?</script>", "", page, flags=re.DOTALL)
    for markup in ("<script", "<img", "<!--<"):
        assert markup not in without_scripts
    assert page.count("<script") == page.count("</script>") == 3
    assert "&lt;img src=x onerror=alert(2)&gt;" in page
    assert data_of(page)["keys"][0]["place"].startswith("</script>")


def test_the_loss_is_that_of_the_steps_or_of_the_samples(tmp_path):
    """Every step's where AdaptiveClip recorded it; what is not finite stays however many steps are left out."""
    run = load_run(write_run(tmp_path, steps=60))
    steps = [{"step": step, "loss": math.nan if step == 31_415 else 1.0} for step in range(50_000)]
    kept = payload.build([run, Run(tmp_path, {}, run.profile_records, [], steps)], ["a", "b"])["runs"]
    assert kept[0]["loss"]["steps"] == [record["step"] for record in run.step_records]
    assert kept[0]["loss"]["loss"] == pytest.approx([record["loss"] for record in run.step_records], rel=1e-5)
    assert 31_415 in kept[1]["loss"]["steps"]
    assert "of 50000 losses" in kept[1]["loss"]["note"]
    (alone,) = payload.build([Run(tmp_path, {}, run.profile_records, [], [])], ["a"])["runs"]
    assert alone["loss"]["sampled"] is True
    assert alone["loss"]["loss"] == pytest.approx([record["loss"] for record in run.profile_records], rel=1e-5)


@pytest.mark.parametrize(("panels", "columns"), [(1, 1), (3, 3), (4, 4), (5, 3), (7, 4), (9, 3)])
def test_no_panel_is_an_orphan(panels, columns):
    """Rows are filled evenly."""
    assert html._columns(panels) == columns


def test_a_lag_curve_that_is_not_finite_is_no_entry_of_the_legend(tmp_path):
    """Only samples with something to draw are drawn and named."""
    lost = {**profile(20), "lagged": [math.inf] * 40, "horizon": None}
    run = Run(tmp_path, {}, [profile(0), lost], [], [])
    (found,) = payload.build([run], ["run"])["runs"][0]["series"].values()
    assert [curve["step"] for curve in found["lag"]] == [0]


def test_the_gravest_verdict_comes_first(tmp_path):
    """The first sentence names each verdict once, with its runs, and escapes their names."""
    runs = [
        load_run(write_run(tmp_path / n, start=rate, end=rate)) for n, rate in (("a", 0.0), ("b", -0.5), ("c", -0.5))
    ]
    runs.append(load_run(write_run(tmp_path / "d", explode_at=100)))
    page = write_report(runs, tmp_path / "report.html", names=["a", "<b>", "c", "d"]).read_text()
    assert (
        "<p class=headline><b>not finite</b> in d; <b>vanishing (a note)</b> in &lt;b&gt; and c; <b>healthy</b> in a.</p>"
        in page
    )
    assert page.count('<article class="card noted">') == 2  # not painted as a warning
    assert page.count('<article class="card not-finite">') == 1


def test_the_policy_admits_only_the_page_s_own_scripts(tmp_path):
    """Each page has its own word, which its scripts carry and no other could know."""
    run = load_run(write_run(tmp_path, steps=20))
    words = set()
    for name in ("a", "b"):
        page = write_report(run, tmp_path / name).read_text()
        (word,) = set(re.findall(r'<script nonce="([^"]+)"', page))
        assert f"default-src 'none'; script-src 'nonce-{word}'" in page
        words.add(word)
    assert len(words) == 2


def test_a_long_run_is_thinned_and_says_so(tmp_path):
    """100,000 steps in many gradients stay well under 15 MB with plotly's 5; spikes and skipped steps are kept."""
    profiles = [profile(step * 50, layer=layer, timesteps=600) for step in range(200) for layer in range(12)]
    steps = [
        {"step": step, "grad_norm": 99.0 if step == 77_777 else 1.0, "clip_coefficient": 1.0, "skipped": step == 5_431}
        for step in range(100_000)
    ]
    page = write_report(Run(tmp_path, {}, profiles, [], steps), tmp_path / "report.html").read_text()
    assert len(page) < 9_000_000
    data = data_of(page)
    (clipping,) = data["runs"][0]["clipping"]
    assert len(clipping["steps"]) < 6_000
    assert clipping["norm"][clipping["steps"].index(77_777)] == 99.0
    assert clipping["skipped"][clipping["steps"].index(5_431)] is True
    assert "of 100000 optimizer steps" in clipping["note"]
    grid = data["runs"][0]["series"]["0"]["grid"]
    assert "sampled steps" in grid["note"]
    assert "300 of 600 recorded timesteps" in grid["note"]


def test_many_events_are_counted_and_the_gravest_listed(tmp_path):
    """The table holds the critical one, however many notes came before it."""
    notes = [Event(EventKind.GRADIENT_CLIPPED, step, value=2.0, threshold=1.0).to_record() for step in range(5000)]
    grave = Event(EventKind.NONFINITE_LOSS, 4999, value=float("nan")).to_record()
    page = write_report(Run(tmp_path, {}, [], [*notes, grave], []), tmp_path / "report.html").read_text()
    assert page.count("<tr ") == 500
    assert "GRADIENT_CLIPPED <b>5,000</b>" in page
    assert "<td>NONFINITE_LOSS</td>" in page
    assert "500 gravest of 5,001 events" in page


def test_more_gradients_than_can_be_drawn_are_said(tmp_path):
    """A run with hundreds of modules makes a page, and the page says that it does not show all."""
    profiles = [profile(module=f"m{number}", timesteps=4) for number in range(250)]
    assert payload.build([Run(tmp_path, {}, profiles, [], [])], ["run"])["omitted"] == 50


def test_an_empty_run_is_said_in_words(tmp_path):
    """A run without any record still makes a page."""
    page = write_report(load_run(write_run(tmp_path, steps=0)), tmp_path / "report.html").read_text()
    assert "No profile was recorded" in page
    assert "No event was recorded" in page


def test_passed_over_lines_and_equal_names_are_said(tmp_path):
    """The page tells how many lines were damaged, and two runs of one name apart."""
    runs = [Run(tmp_path / number / "gradwatch" / "..", {}, [profile()], [], [], 3) for number in ("a/v", "b/v")]
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert "v: 3 torn or malformed lines were passed over" in page
    assert "<h3>v (2)</h3>" in page
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "report.html")


def test_an_event_leads_to_the_gradient_nearest_to_it():
    """To its own state's; to its layer's first where it names none, or a gate; nowhere where there is no such layer."""
    keys = [Key("rnn", layer, "forward", state) for layer in (0, 1) for state in "hc"]
    event = {"module": "rnn", "layer": 1, "direction": "forward"}
    assert [payload.key_of({**event, "state": state}, keys) for state in ("c", "h", None, "gate i")] == [3, 2, 2, 2]
    assert payload.key_of({"module": "rnn"}, keys) == 0
    assert payload.key_of({**event, "layer": 2}, keys) is None
    assert payload.key_of({"module": None}, keys) is None


def test_advice_names_the_run_that_it_is_for(tmp_path):
    """Where runs stand side by side and need different things."""
    events = [
        [Event(EventKind.VANISHING_HIDDEN_GRADIENT, 1, module="m<b>", layer=0, value=1.0, remedy=r).to_record()]
        for r in "xy"
    ]
    runs = [Run(tmp_path, {}, [], found, []) for found in events]
    page = write_report(runs, tmp_path / "report.html", names=["gru", "rnn"]).read_text()
    assert "<dd><b>gru: m&lt;b&gt;, layer 0:</b> x</dd><dd><b>rnn: m&lt;b&gt;, layer 0:</b> y</dd>" in page


@pytest.mark.parametrize(
    ("said", "shown"), [("Set `x=1`.", "Set <code>x=1</code>."), ("`<b>` ` &", "<code>&lt;b&gt;</code> ` &amp;")]
)
def test_code_in_a_message_or_remedy_is_shown_as_code(tmp_path, said, shown):
    """And what it holds is escaped all the same."""
    event = Event(EventKind.NOT_OBSERVED, 1, module="rnn", message=said, remedy=said)
    page = write_report(Run(tmp_path, {}, [], [event.to_record()], []), tmp_path / "report.html").read_text()
    assert f"<td>{shown}</td>" in page
    assert f"<dd>{shown}</dd>" in page


def test_a_remedy_is_followed_by_the_kind_s_page(tmp_path):
    """Folded, with its table, without links into a documentation that is not at hand; a kind of a later version has none."""
    events = [Event(kind, 1, value=1.0, threshold=1.0).to_record() for kind in EventKind]
    later = {**events[0], "kind": "OF_A_LATER_VERSION", "remedy": "Update."}
    page = write_report(Run(tmp_path, {}, [], [*events, later], []), tmp_path / "report.html").read_text()
    shown = page[page.index("<h3>What to do</h3>") : page.index("</main>")]
    assert shown.count("<details>") == len(EventKind)
    assert "<th>remedy</th>" in shown
    assert "href" not in shown
    assert "<dt>OF_A_LATER_VERSION</dt><dd>Update.</dd>" in shown


def test_a_link_in_the_place_of_the_page_is_replaced(tmp_path):
    """What it leads to is left alone, be it there or not; a page of before is overwritten; nothing else stays behind."""
    run = load_run(write_run(tmp_path / "run", steps=3))
    page, mine = run.path / "report.html", tmp_path / "mine"
    for target, text in ((mine, "mine"), (tmp_path / "nowhere", None), (page, "a page")):
        if text is not None:
            target.write_text(text)
        if target != page:
            page.unlink(missing_ok=True)
            page.symlink_to(target)
        write_report(run, page)
        assert not page.is_symlink()
        assert page.read_text().startswith("<!doctype html>")
    assert mine.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    assert [path.name for path in run.path.iterdir() if "report" in path.name] == ["report.html"]


def test_a_grave_verdict_is_painted_as_one():
    """Each that is a warning or worse, and no other."""
    css = (Path(html.__file__).parent / "template" / "page.css").read_text("utf-8")
    painted = re.findall(r"\.card:is\((.*?)\) \{ border-left-color: var\(--bad\)", css)[0].split(", ")
    assert set(painted) == {f".{verdict.replace(' ', '-')}" for verdict in _SEVERITY}
