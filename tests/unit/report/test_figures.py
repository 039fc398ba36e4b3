"""Figures on matplotlib axes show the records and nothing else."""

from __future__ import annotations

import math
import sys

import matplotlib as mpl
import numpy as np
import pytest

from lightning_gradwatch.report import (
    plot_channels,
    plot_clipping,
    plot_heatmap,
    plot_horizon,
    plot_lag,
    plot_profile,
    profile_picture,
)
from lightning_gradwatch.runlog import load_run
from tests.runlogs import profile, write_run

mpl.use("Agg")


@pytest.fixture
def ax():
    from matplotlib.figure import Figure

    return Figure().subplots()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load_run(write_run(tmp_path_factory.mktemp("run"), kind="LSTM", layers=2, start=-0.3, end=0.0))


def curves(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_the_heatmap_shows_every_total(run, ax):
    """The colours are those of the recorded values, cell by cell."""
    plot_heatmap(run, layer=1, state="c", ax=ax)
    shown = ax.collections[0].get_array()
    chosen = [record for record in run.profile_records if (record["layer"], record["state"]) == (1, "c")]
    np.testing.assert_array_equal(shown, np.array([record["total"] for record in chosen]).T)


def test_what_overflowed_is_marked(ax):
    """An infinite norm is a cross at its place, not a colour."""
    record = profile(3)
    record["total"][:2] = [float("inf")] * 2
    plot_heatmap([record], ax=ax)
    assert curves(ax)["not finite"].get_xydata().tolist() == [[3, 0], [3, 1]]


def test_the_profile_shows_direct_beside_total(run, ax):
    """Both curves are those of the last sample."""
    plot_profile(run, ax=ax)
    last = [record for record in run.profile_records if (record["layer"], record["state"]) == (0, "h")][-1]
    lines = curves(ax)
    assert lines["total (median over sequences)"].get_ydata().tolist() == last["total"]
    assert lines["direct (not through time)"].get_ydata().tolist() == last["direct"]


def test_the_lag_curve_marks_its_horizon(ax):
    """The horizon of the last sample is marked and said; a censored one is said to lie beyond."""
    plot_lag([profile(0), profile(10, rate=-0.5)], ax=ax)
    assert curves(ax)["step 10"].get_ydata().tolist() == profile(rate=-0.5)["lagged"]
    assert ax.get_title() == "horizon 10 timesteps at step 10"
    assert [10] in [list(line.get_xdata()) for line in ax.get_lines()]
    plot_lag([profile(0, rate=-0.001)], ax=ax)
    assert ax.get_title() == "horizon beyond 39 timesteps at step 0"


def test_a_single_timestep_with_a_gradient_is_seen(ax):
    """A line through one point shows nothing: it is drawn as a ring, and a lag alone has no horizon."""
    record = profile(3)
    record.update(total=[0.0] * 39 + [0.2], total_max=[0.0] * 39 + [0.3], lagged=[1.0])
    record.update(horizon=0, horizon_censored=True)
    plot_profile([record], ax=ax)
    for name in ("total (median over sequences)", "total (maximum)"):
        assert curves(ax)[name].get_marker() == "o"
    bottom, top = ax.get_ylim()
    assert bottom < 0.1
    assert top > 1
    by_lag = ax.figure.add_subplot()
    plot_lag([record], ax=by_lag)
    assert curves(by_lag)["step 3"].get_marker() == "o"
    assert by_lag.get_title() == "one lag only, no horizon at step 3"


def test_a_lag_curve_that_is_not_finite_is_left_out(ax):
    """Of a run that was lost, the last sample that was measured stands for the end."""
    lost = {**profile(20), "lagged": [math.inf] * 40, "horizon": None}
    plot_lag([profile(0, rate=-0.5), lost], ax=ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["step 0"]
    assert ax.get_title() == "horizon 10 timesteps at step 0"


def test_the_horizon_stands_beside_the_sequence_length(run, ax):
    """Censored horizons are told apart from seen ones."""
    plot_horizon(run, ax=ax)
    lines = curves(ax)
    records = [record for record in run.profile_records if (record["layer"], record["state"]) == (0, "h")]
    seen = [record["horizon"] for record in records if not record["horizon_censored"]]
    assert lines["horizon"].get_ydata().tolist() == seen
    assert len(lines["at least (censored)"].get_ydata()) == len(records) - len(seen) > 0
    assert set(lines["sequence length"].get_ydata()) == {40}


def test_channels_are_drawn_by_how_far_they_reach(ax):
    """A curve a sample, with a triangle where channels outlive the sequence; of what is no scan, one clear error."""
    records = [profile(step, kind="scan", channels=[2, 4, 30, 39]) for step in (0, 10)]
    plot_channels(records, ax=ax)
    curve, triangle = ax.lines[:2]
    assert list(curve.get_xdata()) == [1, 2, 4, 30, 39]
    assert list(curve.get_ydata()) == [100, 100, 75, 50, 25]
    assert triangle.get_marker() == ">"
    with pytest.raises(ValueError, match="must be a scan"):
        plot_channels([profile(0)], ax=ax)


def test_clipping_counts_what_was_clipped_and_skipped(tmp_path, ax):
    """The marks are as many as the steps that were clipped or skipped."""
    run = load_run(write_run(tmp_path, explode_at=100))
    plot_clipping(run, ax=ax)
    clipped = sum(record["clip_coefficient"] < 1 for record in run.step_records)
    assert len(curves(ax)[f"clipped ({clipped})"].get_xdata()) == clipped > 0
    assert list(curves(ax)["skipped (2)"].get_xdata()) == [100, 107]


def test_without_steps_the_error_says_how_to_have_them(tmp_path):
    """A run without AdaptiveClip has no steps to draw."""
    run = load_run(write_run(tmp_path, clipping=False))
    with pytest.raises(ValueError, match=r"Train with AdaptiveClip\(\)"):
        plot_clipping(run)


@pytest.mark.parametrize("count", [1, 3])
def test_the_picture_is_a_png(tmp_path, run, count):
    """One column per run; no axes means new ones, and the file is a picture."""
    path = profile_picture([run] * count, tmp_path / "picture.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="at least one run"):
        profile_picture([], path)


def test_without_matplotlib_the_error_names_the_extra(run, monkeypatch):
    """One clear error, and only when something is to be drawn."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'lightning-gradwatch\[report\]'"):
        plot_lag(run)
