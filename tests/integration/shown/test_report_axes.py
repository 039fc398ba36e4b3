"""Every panel of the report can be read: curves within their axes, ticks with their values, no empty panel without words."""

from __future__ import annotations

import math

import pytest

from lightning_gradwatch.events import Event, EventKind
from lightning_gradwatch.report import write_report
from lightning_gradwatch.runlog import Run
from tests.browser import find_browser
from tests.runlogs import profile

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium: apt-get install chromium"),
]

DRAWN = "document.body.dataset.drawn !== undefined"

CURVES = """(() => {
  const place = (axis, value) => axis.type === 'log' ? (value > 0 ? Math.log10(value) : NaN) : value;
  const within = (axis, value) => {
    const at = place(axis, value), [low, high] = [...axis.range].sort((a, b) => a - b);
    return at >= low && at <= high;
  };
  const span = (axis, values) => {
    const places = values.map(value => place(axis, value));
    return (Math.max(...places) - Math.min(...places)) / Math.abs(axis.range[1] - axis.range[0]);
  };
  const described = (plot, trace) => {
    const full = plot._fullLayout, x = full.xaxis, y = full[trace.yaxis === 'y2' ? 'yaxis2' : 'yaxis'];
    const every = trace.x.map((at, n) => [at, trace.y[n]]).filter(([, value]) => typeof value === 'number');
    const points = every.filter(([, value]) => Number.isFinite(place(y, value)));
    const seen = points.filter(([at, value]) => within(x, at) && within(y, value));
    return { panel: plot.closest('.panels').id, name: trace.name || '', points: points.length, seen: seen.length,
      width: span(x, seen.map(([at]) => at)), height: span(y, seen.map(([, value]) => value)) };
  };
  return [...document.querySelectorAll('.panel .plot')].flatMap(plot => plot.data
    .filter(trace => trace.type === 'scatter' && trace.x.length).map(trace => described(plot, trace)));
})()"""
"""Of every curve of the page: how many of its points lie within its axes, and what share of these they take."""

TICKS = """[...document.querySelectorAll('.panel .plot')].flatMap(plot => ['xtick', 'ytick', 'y2tick'].map(kind => [
  plot.closest('.panels').id, kind, [...plot.querySelectorAll('.' + kind)].map(tick => tick.textContent)]))"""


def shown(browser, tmp_path, runs: dict[str, Run]) -> list[dict]:
    """Open the report of the runs; its curves."""
    browser.problems.clear()
    browser.open(write_report(list(runs.values()), tmp_path / "report.html", names=list(runs)))
    browser.wait_for(DRAWN)
    assert browser.problems == []
    return browser.run(CURVES)


def run(tmp_path, records, steps=(), events=()) -> Run:
    return Run(tmp_path, {}, list(records), [event.to_record() for event in events], list(steps))


def lost(step: int) -> dict:
    gone = {"total": [math.inf] * 40, "total_max": [math.inf] * 40, "lagged": [], "horizon": None, "growth_rate": None}
    return {**profile(step), **gone, "loss": math.nan}


def steps(count: int, first_threshold: float = 1e4) -> list[dict]:
    return [
        {
            "step": n,
            "optimizer": 0,
            "grad_norm": 0.1 + n % 7 / 20,
            "clip_threshold": 2.0 if n else first_threshold,
            "clip_coefficient": 1.0,
            "loss": 2.0 - n / 100,
            "skipped": False,
        }
        for n in range(count)
    ]


def colours_told_apart(browser, place: int) -> int:
    """How many colours of a hundred the ordinary steps of a heatmap take, all columns but the first."""
    trace = f"document.querySelectorAll('#grid .panel')[{place}].querySelector('.plot').data[0]"
    return browser.run(
        f"(t => new Set(t.z.flatMap(row => row.slice(1)).filter(v => v !== null)"
        f".map(v => Math.round(100 * Math.min(1, Math.max(0, (v - t.zmin) / (t.zmax - t.zmin)))))).size)({trace})"
    )


@pytest.mark.parametrize("growth", [1.0, 2.0, 15.0])
def test_a_step_that_exploded_leaves_the_rest_to_be_seen(browser, tmp_path, growth):
    """Heatmaps keep their colours and curves by lag their height, of that run and of the runs beside it; the cut is said."""
    calm = [profile(step, rate=-0.2 - step / 500, every_step_has_loss=False) for step in range(0, 100, 10)]
    once = [profile(0, rate=growth, every_step_has_loss=False), *calm[1:]]
    curves = shown(browser, tmp_path, {"calm": run(tmp_path, calm), "once": run(tmp_path, once)})
    assert all(colours_told_apart(browser, place) > 15 for place in (0, 1))
    last = [curve for curve in curves if curve["panel"] == "lag" and curve["name"] == "step 90"]
    assert len(last) == 2
    assert all(curve["height"] > 0.25 for curve in last)
    notes = browser.run("[...document.querySelectorAll('#grid .panel > p, #lag .panel > p')].map(p => p.textContent)")
    assert "is as bright" in notes[1]
    assert "step 0 leaves the picture: it rises to" in notes[3]


@pytest.mark.parametrize("timesteps", [300, 2000])
def test_what_is_short_beside_its_sequence_is_not_pressed_to_an_edge(browser, tmp_path, timesteps):
    """A horizon of 8: its curve takes a good part of the width, what is left out is said, and it lies off the axis's floor."""
    records = [profile(step, timesteps=timesteps, rate=-0.6 - step / 1000) for step in range(0, 60, 20)]
    curves = shown(browser, tmp_path, {"long": run(tmp_path, records)})
    last = [curve for curve in curves if curve["panel"] == "lag" and curve["name"] == "step 40"]
    assert last[0]["width"] > 0.6
    assert f"up to lag {timesteps - 1}" in browser.run("document.querySelector('#lag .panel > p').textContent")
    assert browser.run("document.querySelector('#horizon .plot')._fullLayout.yaxis.type") == "log"
    assert all(curve["seen"] == curve["points"] for curve in curves if curve["panel"] == "horizon")


def test_every_kind_of_run_has_its_curves_within_their_axes(browser, tmp_path):
    """One sample, two timesteps, a long run, one that is lost half-way: each curve has points to be seen, each single point a mark."""
    half = [*[profile(step) for step in range(0, 40, 10)], *map(lost, range(40, 80, 10))]
    runs = {
        "alone": run(tmp_path, [profile(0)], steps(1)),
        "two": run(tmp_path, [profile(step, timesteps=2) for step in range(0, 30, 10)], steps(30)),
        "long": run(tmp_path, [profile(step, rate=-0.03) for step in range(0, 900, 10)], steps(900)),
        "lost": run(tmp_path, half, [{**one, "grad_norm": math.nan, "skipped": True} for one in steps(80)]),
    }
    curves = shown(browser, tmp_path, runs)
    assert {curve["panel"] for curve in curves} == {"grid", "lag", "horizon", "last", "clip"}
    cut = (
        "threshold",
        "clipped",
        "skipped",
        "gradient norm",
    )  # a first threshold is cut off; there may be no norm at all
    hidden = [curve for curve in curves if curve["points"] and not curve["seen"] and curve["name"] not in cut]
    assert hidden == []
    norms = [
        curve
        for curve in curves
        if curve["panel"] == "clip" and curve["name"] == "gradient norm" and curve["points"] > 1
    ]
    assert len(norms) == 2
    assert all(curve["height"] > 0.2 for curve in norms)  # not pressed down by a first threshold of 10,000
    modes = browser.run(
        "[...document.querySelectorAll('#horizon .panel')[0].querySelector('.plot').data, "
        "...document.querySelectorAll('#clip .panel')[0].querySelector('.plot').data].filter(t => t.x.length === 1).map(t => t.mode)"
    )
    assert len(modes) >= 4
    assert [mode for mode in modes if "markers" not in mode and mode != "lines"] == []
    for panel, kind, ticks in browser.run(TICKS):
        counted = kind == "xtick" or (panel, kind) == ("horizon", "ytick")
        assert not counted or all("." not in tick for tick in ticks), (panel, kind, ticks)


@pytest.mark.parametrize("spread", [0.2, 1.0, 8.0])
def test_each_tick_of_a_log_axis_says_its_whole_value(browser, tmp_path, spread):
    """No lone 2 or 5 whose decade one would have to guess: read as numbers, the ticks rise from one to the next."""
    record = profile(0, rate=-0.1)
    record["total"] = [1e-3 * 10 ** (spread * t / 40) for t in range(40)]
    record["total_max"] = [1.5 * value for value in record["total"]]
    shown(browser, tmp_path, {"run": run(tmp_path, [record], steps(20))})
    read = [ticks for panel, kind, ticks in browser.run(TICKS) if panel in ("last", "clip") and kind == "ytick"]
    assert len(read) == 2
    for ticks in read:
        values = [number(tick) for tick in ticks]
        assert len(values) >= 2
        assert values == sorted(set(values))


def number(tick: str) -> float:
    """What a tick says: ``0.05``, ``5·10⁻⁶`` or ``10⁻⁶``, whose exponents stand between characters of no width."""
    digit, _, power = tick.strip("\u200b").partition("10\u200b")
    return float(digit.rstrip("·") or 1) * 10.0 ** int(power.replace("−", "-") or 0)


def test_a_run_without_a_finite_sample_has_words_in_place_of_empty_panels(browser, tmp_path):
    """NaN from step 0 on: no panel is drawn without a point, and its loss has no made-up value on the axis."""
    event = Event(EventKind.NONFINITE_STATE, 0, module="rnn", layer=0, state="h", timestep=0, value=math.nan)
    curves = shown(browser, tmp_path, {"lost": run(tmp_path, map(lost, range(0, 40, 10)), events=[event])})
    assert {curve["panel"] for curve in curves} <= {"grid", "clip"}
    words = browser.run("['lag', 'horizon', 'last'].map(id => document.querySelector(`#${id} .panel > p`).textContent)")
    assert all(words)
    assert browser.run("document.querySelectorAll('#clip .ytick').length") == 0


def test_a_long_module_name_leaves_the_events_their_text(browser, tmp_path):
    """Of a name of 200 characters the table of events is no wider than its frame, at 1200 and at 400 pixels."""
    name = "decoder_with_hierarchical_attention_and_a_residual_connection_" * 3 + "block"
    event = Event(EventKind.VANISHING_HIDDEN_GRADIENT, 0, module=name, layer=0, direction="forward", value=5.0)
    shown(browser, tmp_path, {"run": run(tmp_path, [profile(0, module=name)], events=[event])})
    for width in (1200, 400):
        browser.open(tmp_path / "report.html", width=width)
        browser.wait_for(DRAWN)
        assert browser.run("(box => box.scrollWidth <= box.clientWidth)(document.querySelector('.scroll'))"), width
