"""The report in a real browser: drawn from the run log's numbers, quiet, offline, for mouse and keyboard."""

# Over 300 lines: one page in one browser, which takes seconds to start.
from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pytest

from lightning_gradwatch import AdaptiveClip, GradWatch
from lightning_gradwatch.events import Event, EventKind
from lightning_gradwatch.report import write_report
from lightning_gradwatch.report.series import group
from lightning_gradwatch.runlog import Run, RunLogWriter, load_run
from tests.browser import Browser, find_browser
from tests.models import TinyLanguageModel, sentences, trainer
from tests.runlogs import profile, write_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium: apt-get install chromium"),
]

DRAWN = "document.body.dataset.drawn !== undefined"
HEATMAP = "document.querySelectorAll('#grid .panel')[{}].querySelector('.plot').data[0]"


CONTRASTS = """(() => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [.2126, .7152, .0722][at], 0);
  const opaque = colour => colour.length < 4 || colour[3] === 1, back = e => channels(getComputedStyle(e).backgroundColor);
  const ground = e => opaque(back(e)) ? back(e) : ground(e.parentElement);
  return [...document.querySelectorAll('main *:not(svg *), header *, footer *')]
    .filter(e => e.offsetParent && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    .map(e => { const [a, b] = [light(channels(getComputedStyle(e).color)), light(ground(e))];
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.className || e.tagName, e.textContent.slice(0, 40)]; });
})()"""
"""[ratio, element, text] of every piece of text and the ground that it stands on, as WCAG 2 defines the ratio."""


@pytest.fixture(autouse=True)
def _nothing_heard_yet(browser):
    browser.problems.clear()
    browser.requests.clear()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        load_run(write_run(folder / "rnn", start=-0.5, end=-0.4)),
        load_run(write_run(folder / "lstm", kind="LSTM", layers=2, start=-0.2, end=0.0, explode_at=500, seed=1)),
    ]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    return write_report(runs, tmp_path_factory.mktemp("page") / "report.html")


def assert_quiet_and_offline(browser: Browser) -> None:
    assert browser.problems == []
    asked = [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))]
    assert asked == []
    assert any(url.startswith("file:") for url in browser.requests)  # the listening itself works


def assert_same(shown: list[list], records: list) -> None:
    for column, record in enumerate(records):
        for timestep, value in enumerate(record["total"]):
            cell = shown[timestep][column]
            assert cell == "inf" if math.isinf(value) else cell == pytest.approx(value, rel=1e-5)


def of(run: Run, layer: int, state: str) -> list:
    return [record for record in run.profile_records if (record["layer"], record["state"]) == (layer, state)]


def test_the_pictures_show_the_run_log(browser, runs, page):
    """Heatmap and lag curves hold, in the browser, what the run log holds, for each run beside the other."""
    browser.open(page)
    browser.wait_for(DRAWN)
    for place, run in enumerate(runs):
        records = of(run, 0, "h")
        assert browser.run(HEATMAP.format(place) + ".x") == [record["step"] for record in records]
        assert_same(browser.run(HEATMAP.format(place) + ".customdata"), records)
        colours = browser.run(HEATMAP.format(place) + ".z")
        assert colours[-1][0] == pytest.approx(math.log10(records[0]["total"][-1]), rel=1e-4)
        lag = f"document.querySelectorAll('#lag .plot')[{place}].data"
        last = browser.run(f"{lag}.filter(trace => trace.line).at(-1).y")
        assert last == pytest.approx(records[-1]["lagged"], rel=1e-5)
    crosses = browser.run("document.querySelectorAll('#grid .plot')[1].data[1].x.length")
    assert crosses == sum(math.isinf(value) for record in of(runs[1], 0, "h") for value in record["total"]) > 0
    norms = browser.run("document.querySelector('#clip .plot').data.find(of => of.name === 'gradient norm').y")
    assert norms == pytest.approx([record["grad_norm"] for record in runs[0].step_records], rel=1e-5)
    for place, run in enumerate(runs):
        loss = browser.run(f"document.querySelectorAll('#clip .plot')[{place}].data.find(of => of.name === 'loss').y")
        assert loss == pytest.approx([record["loss"] for record in run.step_records], rel=1e-5)
    assert_quiet_and_offline(browser)


def test_a_gradient_that_falls_by_a_hundred_decades_can_be_read(browser, tmp_path):
    """Few ticks on its axis, the cut of the colours said; no dots where the direct part is not known, nor curves where all is lost."""

    def drawn(name, record) -> Run:
        writer = RunLogWriter(tmp_path / name, header={})
        writer.profile(record)
        writer.close()
        return load_run(tmp_path / name)

    deep = profile(0, timesteps=200, rate=-1.2, every_step_has_loss=False)
    loop = {**profile(0, timesteps=200, rate=-0.01), "direct": None}
    lost = {**profile(0), "total": [math.inf] * 40, "total_max": [math.inf] * 40, "lagged": []}
    runs = [drawn("deep", deep), drawn("loop", loop), drawn("lost", lost)]
    browser.open(write_report(runs, tmp_path / "report.html"))
    browser.wait_for(DRAWN)
    assert browser.run("document.querySelectorAll('#last .plot')[0].querySelectorAll('.ytick').length") <= 10
    legends = "[...document.querySelectorAll('#last .plot')].map(plot => plot.data.map(trace => trace.name))"
    total = ["total", "largest of a sequence"]
    assert browser.run(legends) == [[*total, "direct"], total]
    words = browser.run("[...document.querySelectorAll('#last .panel > p')].map(words => words.textContent)")
    assert "in a loop the direct part is not told apart from the total" in words[1]
    assert words[2] == "In the last sample, of step 0, the gradient is not finite."
    notes = browser.run("[...document.querySelectorAll('#grid .panel > p')].map(words => words.textContent)")
    assert ["12 decades" in note for note in notes] == [True, False, False]
    assert_quiet_and_offline(browser)


@pytest.mark.parametrize("growth", [0.5, 3.0, 8.0])
def test_lag_curves_can_be_read_beside_a_run_that_explodes(browser, tmp_path, growth):
    """Each panel shows 1 and the 1 % line; the exploding run has a scale of its own, up to its largest value."""

    def drawn(name, rate) -> Run:
        writer = RunLogWriter(tmp_path / name, header={})
        writer.profile(profile(0, timesteps=30, rate=rate))
        writer.close()
        return load_run(tmp_path / name)

    exploding = drawn("exploding", growth)
    browser.open(write_report([drawn("a", -0.3), exploding, drawn("b", -0.9)], tmp_path / "report.html"))
    browser.wait_for(DRAWN)
    seen = "[...document.querySelectorAll('#lag .plot')].map(plot => plot.layout.yaxis.range)"
    a, own, b = browser.run(seen)
    assert a == b
    assert all(low < -2 and high > 0 for low, high in (a, own))
    assert a[1] < 1
    assert own[1] > math.log10(max(exploding.profile_records[0]["lagged"]))
    ticks = "[...document.querySelectorAll('#lag .plot')].map(plot => plot.querySelectorAll('.ytick').length)"
    assert all(3 <= count <= 10 for count in browser.run(ticks))


def test_a_gradient_is_chosen_by_keyboard(browser, runs, page):
    """The select is reached and changed with keys alone; a run that lacks the gradient says so in words."""
    browser.open(page)
    browser.wait_for(DRAWN)
    browser.run("document.getElementById('key').focus()")
    browser.press("ArrowDown", 40)
    browser.wait_for("document.body.dataset.drawn === '2'")
    for _ in range(2):  # past h
        browser.press("Tab", 9)
    browser.press("Enter", 13)
    browser.wait_for("document.body.dataset.drawn === '3'")
    assert browser.run("document.getElementById('key').selectedOptions[0].text") == "model.rnn, layer 1"
    assert browser.run("document.activeElement.dataset.state") == "c"  # the way goes on from there
    assert_same(browser.run(HEATMAP.format(1) + ".customdata"), of(runs[1], 1, "c"))
    words = browser.run("document.querySelector('#grid .panel').innerText")
    assert "This run has no such gradient." in words
    assert_quiet_and_offline(browser)


def test_a_gradient_is_chosen_by_mouse(browser, runs, page):
    """A layer's card leads to its pictures, and a button beside the list to its cell state."""
    browser.open(page, width=1600)
    browser.wait_for(DRAWN)
    browser.click("document.querySelector('.pick[data-key=\"2\"]')")
    browser.wait_for("document.body.dataset.drawn === '2'")
    assert_same(browser.run(HEATMAP.format(1) + ".customdata"), of(runs[1], 1, "h"))
    browser.click("document.querySelector('#states button[data-state=c]')")
    browser.wait_for("document.body.dataset.drawn === '3'")
    assert_same(browser.run(HEATMAP.format(1) + ".customdata"), of(runs[1], 1, "c"))
    assert_quiet_and_offline(browser)


def test_values_show_under_the_mouse(browser, runs, page):
    """Pointing at the heatmap names step, timestep and the gradient there."""
    browser.open(page, width=1600)
    browser.wait_for(DRAWN)
    browser.point("document.querySelector('#grid .plot .nsewdrag')")
    browser.wait_for("document.querySelector('#grid .hoverlayer .hovertext') !== null")
    said = browser.run("document.querySelector('#grid .hoverlayer .hovertext').textContent")
    assert re.match(r"step \d+timestep \d+‖∂L/∂h‖ = [\d.e−-]+", said)
    assert_quiet_and_offline(browser)


def test_events_are_sorted_and_lead_to_the_pictures(browser, runs, page):
    """A heading sorts by its column and back; an event's step is marked in the heatmap of its layer."""
    browser.open(page)
    browser.wait_for(DRAWN)
    read = "[...document.querySelectorAll('#events tbody tr')].map(row => Number(row.cells[0].innerText))"
    steps = browser.run(read)
    assert steps == sorted(event["step"] for run in runs for event in run.event_records)
    browser.run("document.querySelector('#events th button').click()")
    assert browser.run(read) == steps[::-1]
    last = of(runs[1], 1, "h")[-1]["step"]
    target = 'document.querySelector(\'.goto[data-run="1"][data-key="2"]\')'
    step = int(browser.run(f"{target}.dataset.step"))
    assert step <= last
    browser.run(f"{target}.click()")
    browser.wait_for("document.body.dataset.drawn === '2'")
    shapes = browser.run("document.querySelectorAll('#grid .panel')[1].querySelector('.plot').layout.shapes")
    assert [shape["x0"] for shape in shapes] == [step]
    assert browser.run("document.activeElement.id") == "h-grid"
    assert browser.run("document.querySelector('#events tr.marked .goto').dataset.step") == str(step)
    assert_quiet_and_offline(browser)


def test_a_place_in_time_is_marked_wherever_it_lies(browser, tmp_path):
    """An event at a timestep gets a cross of two lines, and the picture reaches out to a step that was not sampled."""
    writer = RunLogWriter(tmp_path / "run", header={})
    for step in (0, 20, 40):
        writer.profile(profile(step))
    writer.event(Event(EventKind.NONFINITE_STATE, 333, module="rnn", layer=0, state="h", timestep=17, value=math.inf))
    writer.close()
    browser.open(write_report(load_run(tmp_path / "run"), tmp_path / "report.html"))
    browser.wait_for(DRAWN)
    browser.run("document.querySelector('.goto').click()")
    browser.wait_for(DRAWN)
    layout = browser.run("document.querySelector('#grid .plot').layout")
    assert [(shape["x0"], shape["y0"]) for shape in layout["shapes"]] == [(333, 0), (0, 17)]
    assert layout["xaxis"]["range"][1] > 333
    assert_quiet_and_offline(browser)


def test_one_kind_of_event_is_shown_alone(browser, page):
    """A kind's button leaves only its rows; pressed again, all are back."""
    browser.open(page)
    browser.wait_for(DRAWN)
    read = "[...document.querySelectorAll('#events tbody tr')].filter(row => row.offsetParent).map(row => row.dataset.kind)"
    every = browser.run(read)
    press = "document.querySelector('.chip[data-kind=STEP_SKIPPED]').click()"
    browser.run(press)
    assert browser.run(read) == ["STEP_SKIPPED"] * every.count("STEP_SKIPPED") != []
    browser.run(press)
    assert browser.run(read) == every
    assert_quiet_and_offline(browser)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_it_fits_the_screen(browser, page, tmp_path, width, dark):
    """At 400 and 1600 pixels nothing is wider than the window, pictures fill their panels, text stands out from its ground."""
    browser.open(page, width=width, dark=dark)
    browser.wait_for(DRAWN)
    assert browser.run("document.documentElement.scrollWidth") <= width
    widths = browser.run(
        "[...document.querySelectorAll('.plot')].map(p => [p.clientWidth, p.layout.width || p._fullLayout.width])"
    )
    assert len(widths) == 10
    assert all(abs(panel - drawn) <= 2 for panel, drawn in widths)
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    lightness = sum(map(int, ground[4:-1].split(","))) / 3
    assert lightness < 60 if dark else lightness > 200
    browser.run("document.querySelectorAll('details').forEach(folded => { folded.open = true })")
    contrasts = browser.run(CONTRASTS)
    assert len(contrasts) > 100
    assert [found for found in contrasts if found[0] < 4.5] == []
    folder = Path(os.environ.get("GRADWATCH_ARTIFACTS", tmp_path))  # where CI wants to keep the pictures
    folder.mkdir(parents=True, exist_ok=True)
    shot = browser.screenshot(folder / f"report-{width}-{'dark' if dark else 'light'}.png")
    assert shot.stat().st_size > 50_000
    assert_quiet_and_offline(browser)


def test_hostile_names_run_nothing(browser, tmp_path):
    """A module, a kind and a message full of markup are shown as they are and execute nothing."""
    name = "</script><script>window.hacked=1</script><img src=http://127.0.0.1:9/x onerror='window.hacked=2'><b>"
    writer = RunLogWriter(tmp_path / "run", header={})
    for step in range(4):
        writer.profile(profile(step, module=name, kind=name))
    writer.event(Event(EventKind.NOT_OBSERVED, 1, module=name, detail=name))
    writer.close()
    browser.open(write_report(load_run(tmp_path / "run"), tmp_path / "report.html", names=[name]))
    browser.wait_for(DRAWN)
    assert browser.run("window.hacked") is None
    assert browser.run("document.querySelectorAll('img, b:not(header b):not(.chips b):not(.headline b)').length") == 0
    assert browser.run("document.getElementById('key').options[0].text") == f"{name}, layer 0"
    assert_quiet_and_offline(browser)


def test_a_long_run_opens_quickly(browser, tmp_path):
    """A run of 100,000 steps, sampled every 50, makes a page under 15 MB that opens in a few seconds."""
    run = Run(
        tmp_path,
        {},
        [profile(50 * n, layer=layer, timesteps=128, rate=-0.05) for n in range(2000) for layer in range(2)],
        [Event(EventKind.GRADIENT_CLIPPED, n, value=2.0, threshold=1.0).to_record() for n in range(20_000)],
        [{"step": n, "grad_norm": 1.0 + n % 7, "clip_coefficient": 1.0, "skipped": False} for n in range(100_000)],
    )
    page = write_report(run, tmp_path / "report.html")
    assert page.stat().st_size < 15_000_000
    seconds = browser.open(page)
    browser.wait_for(DRAWN)
    print(f"opened in {seconds:.2f} s, {page.stat().st_size / 1e6:.1f} MB")
    assert seconds < 10  # 3 on an idle machine; a shared one must not fail for its neighbours
    assert_quiet_and_offline(browser)


def test_every_picture_of_a_real_training_is_its_run_log(browser, tmp_path):
    """Each layer, direction and state in turn: heatmap, direct beside total, lag curves, horizon, growth rate; then loss and norm."""
    watch = GradWatch(every_n_steps=2)
    fit = trainer(tmp_path, [watch, AdaptiveClip("norm")], max_steps=8)
    fit.fit(TinyLanguageModel(layers=2, bidirectional=True), sentences())
    run = load_run(watch.run_dir)
    browser.open(write_report(run, tmp_path / "report.html"), width=1600)
    browser.wait_for(DRAWN)
    gradients = group(run.profile_records)
    assert len(gradients) == 8  # two layers, two directions, h and c
    for number, (key, records) in enumerate(gradients.items()):
        browser.run(f"choose({number}); draw()")
        browser.wait_for(f"document.body.dataset.drawn === '{number}'")
        assert browser.run("document.getElementById('key').selectedOptions[0].text") == key.place
        assert browser.run("document.querySelector('#states [aria-pressed=true]').textContent") == key.state
        assert_same(browser.run(HEATMAP.format(0) + ".customdata"), records)
        last = records[-1]
        of = {name: f"document.querySelector('#{name} .plot').data" for name in ("last", "lag", "horizon")}
        for name, field in (("total", "total"), ("direct", "direct"), ("largest of a sequence", "total_max")):
            drawn = browser.run(f"({of['last']}.find(trace => trace.name === '{name}') || {{y: null}}).y")
            if not any(last[field]):  # no loss on the cell state itself: said in words, not by an entry without dots
                assert (name, key.state, drawn) == ("direct", "c", None)
                continue
            assert drawn == [pytest.approx(value, rel=1e-5) if value > 0 else None for value in last[field]]
        drawn = browser.run(f"{of['lag']}.find(trace => trace.name === 'step {last['step']}').y")
        assert drawn == pytest.approx(last["lagged"], rel=1e-5)
        drawn = browser.run(f"{of['horizon']}.map(trace => trace.y)")
        assert drawn[0] == [record["timesteps"] for record in records]
        assert drawn[1] == [record["horizon"] for record in records]
        assert drawn[2] == pytest.approx([record["growth_rate"] for record in records], rel=1e-5)
    clip = browser.run("document.querySelector('#clip .plot').data.map(trace => [trace.name, trace.x, trace.y])")
    drawn = {name: (x, y) for name, x, y in clip}
    steps = run.step_records
    for name, field in (("loss", "loss"), ("gradient norm", "grad_norm"), ("threshold", "clip_threshold")):
        assert drawn[name][0] == [record["step"] for record in steps] == list(range(8))
        assert drawn[name][1] == pytest.approx([record[field] for record in steps], rel=1e-5)
    assert_quiet_and_offline(browser)


def test_the_channels_of_a_scan_are_drawn_and_nothing_else_has_them(browser, tmp_path):
    """Of each sample the share of channels that reach so far; the section is hidden for what has no channels."""
    writer = RunLogWriter(tmp_path / "run", header={})
    for step in (0, 10, 20):
        writer.profile(profile(step, module="scan", kind="scan", channels=[2, 4, 30, 39]))
        writer.profile(profile(step, module="rnn"))
    writer.close()
    browser.open(write_report(load_run(tmp_path / "run"), tmp_path / "report.html"), dark=True)
    browser.wait_for(DRAWN)
    hidden = "document.getElementById('channels').parentElement.hidden"
    assert browser.run(hidden) is False
    drawn = browser.run("document.querySelector('#channels .plot').data.map(trace => [trace.name, trace.x, trace.y])")
    assert [name for name, _, _ in drawn[:3]] == ["step 0", "step 10", "step 20"]
    assert drawn[2][1:] == [[1, 2, 4, 30, 39], [100, 100, 75, 50, 25]]
    assert drawn[3][1:] == [[39], [25]]
    browser.run("choose(1); draw()")
    browser.wait_for("document.body.dataset.drawn === '1'")
    assert browser.run(hidden) is True
    assert_quiet_and_offline(browser)
