"""The axes of the figures fit what they show: no curve on their floor, no tick between whole numbers."""

from __future__ import annotations

import math

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from lightning_gradwatch.report import plot_clipping, plot_heatmap, plot_horizon, plot_lag, plot_profile
from lightning_gradwatch.report.figures import profile_picture
from lightning_gradwatch.report.figures.starts import plot_curves
from lightning_gradwatch.runlog import Run
from tests.runlogs import profile

mpl.use("Agg")


@pytest.fixture
def ax():
    return Figure().subplots()


def heights(ax, label: str) -> float:
    """The share of the axes' height that the curve of that name takes, as far as it is within."""
    (line,) = [line for line in ax.get_lines() if line.get_label() == label]
    low, high = map(math.log10, ax.get_ylim())
    logs = [math.log10(y) for y in line.get_ydata() if y > 0]
    within = [(place - low) / (high - low) for place in logs if low <= place <= high]
    return max(within) - min(within) if within else 0.0


@pytest.mark.parametrize("growth", [1.0, 3.0, 15.0])
def test_a_sample_that_exploded_once_does_not_flatten_the_last(ax, growth):
    """The last curve can be read, and the legend says up to where the other rises."""
    early = profile(0, rate=growth)
    plot_lag([early, profile(10, rate=-0.1)], ax=ax)
    assert heights(ax, "step 10") > 0.25
    assert f"step 0, up to {max(early['lagged']):.1e}" in [line.get_label() for line in ax.get_lines()]


def test_one_that_explodes_at_the_end_is_shown_in_full(ax):
    """Its largest value lies within the axes."""
    last = profile(10, rate=1.0)
    plot_lag([profile(0, rate=-0.1), last], ax=ax)
    assert ax.get_ylim()[0] < 0.01 < max(last["lagged"]) < ax.get_ylim()[1]


@pytest.mark.parametrize("timesteps", [200, 2000])
def test_a_curve_that_soon_falls_has_the_axis_to_itself(ax, timesteps):
    """The horizon lies within its first two thirds and off its edge; what is left out is said."""
    plot_lag([profile(0, timesteps=timesteps, rate=-0.6)], ax=ax)
    left, right = ax.get_xlim()
    assert 0.1 < (8 - left) / (right - left) < 0.67
    assert ax.get_xlabel() == f"lag (timesteps back); all is lower further back, up to {timesteps - 1:,}"


def test_curves_of_starts_share_axes_that_show_each(ax):
    """One start that falls by hundreds of decades does not press the others to the ceiling."""
    rates = {"falls": -2.0, "stays": -0.05, "grows": 0.02}
    plot_curves({name: profile(timesteps=150, rate=rate)["lagged"] for name, rate in rates.items()}, "starts", ax=ax)
    assert all(heights(ax, name) > 0.1 for name in rates)


def test_a_horizon_far_under_the_length_is_off_the_floor(ax):
    """A log axis tells 7 from 9 beside 2,000 timesteps; one horizon alone is a mark, and so is its length."""
    plot_horizon([profile(step, timesteps=2000, rate=-0.5 - step / 100) for step in range(0, 30, 10)], ax=ax)
    assert ax.get_yscale() == "log"
    alone = Figure().subplots()
    plot_horizon([profile(0)], ax=alone)  # of a sequence that cuts it off
    assert [line.get_marker() for line in alone.get_lines()][1:] == ["^", "_"]


def test_a_first_threshold_that_nothing_can_reach_is_cut_off_and_said(ax):
    """The norms take a good part of the height."""
    steps = [
        {"step": n, "optimizer": 0, "grad_norm": 0.1 + n % 5 / 10, "clip_threshold": 2.0 if n else 1e5}
        for n in range(20)
    ]
    plot_clipping(steps, ax=ax)
    assert heights(ax, "gradient norm") > 0.3
    assert heights(ax, "threshold (up to 1e+05)") < 0.1


def test_steps_and_timesteps_have_whole_ticks(ax):
    """One sample of two timesteps: no tick stands at half a step."""
    for draw in (plot_heatmap, plot_lag, plot_profile, plot_horizon):
        axes = Figure().subplots()
        draw([profile(3, timesteps=2)], ax=axes)
        assert all(tick == round(tick) for tick in axes.get_xticks()), draw.__name__


def test_what_is_not_finite_is_said_over_the_empty_axes():
    """A run that is lost from the first step on leaves no figure without words."""
    lost = {**profile(4), "total": [math.inf] * 40, "total_max": [math.inf] * 40, "lagged": [], "horizon": None}
    titles = [draw([lost], ax=Figure().subplots()).get_title() for draw in (plot_lag, plot_profile, plot_horizon)]
    assert titles == [
        "rnn, layer 0, h: no lagged gradient recorded",
        "rnn, layer 0, h, step 4: not finite",
        "rnn, layer 0, h: no horizon recorded",
    ]


def test_a_long_name_fits_over_its_picture(ax):
    """Of a label of 150 characters the ends stand in the title."""
    plot_heatmap([profile(0, module="decoder_with_attention." * 6 + "cell")], ax=ax)
    assert len(ax.get_title()) <= 48
    assert ax.get_title().startswith("decoder_with")
    assert ax.get_title().endswith("cell, layer 0, h")


def test_a_picture_of_several_runs_leaves_each_its_curves(tmp_path, monkeypatch):
    """Beside a run that explodes, another one's curve by lag takes a good part of its axes."""
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    runs = [Run(tmp_path, {}, [profile(0, rate=rate)], [], []) for rate in (3.0, -0.1)]
    profile_picture(runs, tmp_path / "picture.png", names=["exploding", "calm"])
    (calm,) = [axes for axes in drawn[0].axes if axes.get_title() == "horizon beyond 39 timesteps at step 0"][1:]
    assert heights(calm, "step 0") > 0.25
