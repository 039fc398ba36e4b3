"""The live view's frame: what the records say, in the room that there is."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from lightning_gradwatch.events import ENDED, Event, EventKind, Severity
from lightning_gradwatch.report import sparks
from lightning_gradwatch.report.live import frame
from lightning_gradwatch.report.live_heatmap import heatmap
from lightning_gradwatch.runlog import Run, load_run
from tests.runlogs import profile, write_run


def shown(run: Run, *, width: int = 100, height: int | None = None, **options) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(frame(run, width=width, height=height, **options))
    return console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]


def of(tmp_path, profiles=(), events=(), steps=()) -> Run:
    return Run(tmp_path, {}, list(profiles), [event.to_record() for event in events], list(steps))


def test_bars_are_logarithmic():
    """A bar is as high as the logarithm of its value; infinity, zero and what is not there have signs of their own."""
    values = [1e-8, 1e-4, 1.0, math.inf, 0.0, math.nan, None]
    assert sparks.spark(values, sparks.Scale(-8, 0)).plain == "▁▅█×·  "


def test_noise_makes_no_pattern():
    """Values within a decade are drawn on a scale of a whole decade, zeros alone on some scale."""
    among = sparks.scale([1.0, 1.05])
    assert among.high - among.low == pytest.approx(1.0)
    assert len(set(sparks.spark([1.0, 1.05], among).plain)) == 1
    assert sparks.spark([0.0], sparks.scale([0.0])).plain == "·"


def test_the_heatmap_holds_the_last_timestep_above_the_first(tmp_path):
    """A gradient that is lost on its way back is high in the upper row and low in the lower, column by column."""
    records = [profile(step, timesteps=21, rate=-0.5, every_step_has_loss=False) for step in range(3)]
    lines = shown(of(tmp_path, records))
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert rows[0] == ["20", "███"]
    assert rows[-1] == ["0", "▁▁▁"]
    assert any("vanishing" in line and "horizon 10 of 21" in line for line in lines)


def test_the_last_steps_are_shown_where_there_is_no_room_for_all(tmp_path):
    """The columns are the newest sampled steps."""
    lines = shown(of(tmp_path, [profile(step) for step in range(300)]), width=60)
    assert any("steps 248 to 299" in line for line in lines)


@pytest.mark.parametrize("height", [1, 5, 12, 24, 50])
@pytest.mark.parametrize("width", [20, 80])
def test_it_fits(tmp_path, width, height):
    """However small the terminal, no more lines and no wider ones."""
    run = load_run(write_run(tmp_path, kind="LSTM", layers=6, explode_at=400))
    lines = shown(run, width=width, height=height, counts={"critical": 2}, age=5.0)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("GradWatch step 599"[:width])


def test_what_is_not_well_comes_first(tmp_path):
    """Of many layers, those that fit are the ones with something to see, and the others are counted."""
    records = [
        profile(step, layer=layer, rate=-0.01 if layer < 6 else -0.7, every_step_has_loss=layer == 6)
        for step in range(5)
        for layer in range(8)
    ]
    lines = shown(of(tmp_path, records), height=11)
    assert any("layer 7" in line and "vanishing" in line for line in lines)
    assert any("7 more" in line for line in lines)


def test_norms_stand_above_their_threshold(tmp_path):
    """Both on one scale, which shows how near the norm comes; what is not finite is marked, clipped and skipped steps are counted."""
    steps = [
        {"step": step, "grad_norm": norm, "clip_threshold": 10.0, "clip_coefficient": coefficient, "skipped": skipped}
        for step, (norm, coefficient, skipped) in enumerate(
            [(1.0, 1.0, False), (100.0, 0.1, False), (math.nan, 1.0, True)]
        )
    ]
    lines = shown(of(tmp_path, steps=steps))
    norm, threshold, counts = (line for line in lines[1:] if "norm" in line or "threshold" in line or "clipped" in line)
    assert norm.endswith(" ▁█×  ▁ 1 … █ 1e+02")
    assert threshold.endswith(" ▅▅▅  ▁ 1 … █ 1e+02")
    assert "1 clipped, 1 skipped of the last 3 steps" in counts


def test_a_hostile_name_steers_nothing(tmp_path):
    """Escape sequences and markup in a module's name and a message are shown, not obeyed."""
    name = "\x1b[2J\x1b]0;owned\x07[bold]rnn[/bold]"
    lines = shown(of(tmp_path, [profile(0, module=name)], [Event(EventKind.NOT_OBSERVED, 0, module=name)]))
    text = "\n".join(lines)
    assert "[bold]rnn[/bold]" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_nothing_recorded_is_said(tmp_path):
    """An empty run log has a frame too."""
    text = "\n".join(shown(of(tmp_path)))
    assert "nothing recorded yet" in text
    assert "events none" in text


def test_the_loss_is_shown_as_far_as_it_is_known(tmp_path):
    """Of each optimizer step, or of the sampled ones; one that is not finite has its sign; of an older log there is no line."""
    steps = [{"step": n, "grad_norm": 1.0, "loss": value} for n, value in enumerate([100.0, 10.0, math.nan, 1.0])]
    (line,) = [line for line in shown(of(tmp_path, steps=steps)) if line.startswith("loss ")]
    assert line.split()[1:3] == ["1", "█▅×▁"]
    assert any(line.startswith("loss, sampled 3") for line in shown(of(tmp_path, [profile(0)])))
    older = [{**profile(0), "loss": None}]
    assert not any(line.startswith("loss") for line in shown(of(tmp_path, older)))


def test_the_loss_is_on_the_scale_of_what_is_shown(tmp_path):
    """A leap that is no longer on the screen does not flatten the row."""
    steps = [{"step": n, "grad_norm": 1.0, "loss": 1e9 if n < 9 else 2.0 + n % 2 * 50} for n in range(60)]
    (line,) = [line for line in shown(of(tmp_path, steps=steps), width=60) if line.startswith("loss ")]
    assert set(line.split()[2]) == {"▁", "█"}


def test_the_end_of_an_episode_is_no_further_event(tmp_path):
    """It is shown in the list, and not counted."""
    began = Event(EventKind.EXPLODING_GRADIENT, 1, value=9.0, threshold=1.0)
    ended = Event(EventKind.EXPLODING_GRADIENT, 5, value=9.0, threshold=1.0, severity=Severity.INFO, action=ENDED)
    lines = shown(of(tmp_path, events=[began, ended]))
    assert "events 1 warning" in lines
    assert sum("EXPLODING_GRADIENT" in line for line in lines) == 2


@pytest.mark.parametrize("most", [1e6, 1e21, 1e300])
def test_a_step_that_exploded_leaves_the_bars_of_the_others_and_is_said(most):
    """Ordinary steps keep bars of several heights; the scale says up to where what is taller rises."""
    ordinary = [profile(step, rate=-0.3, every_step_has_loss=False) for step in range(1, 6)]
    exploded = {**profile(0), "total": [most] * 40}
    *rows, scale = heatmap([exploded, *ordinary], width=70, rows=8)
    assert len({bar for row in rows for bar in row.plain[8:]}) > 3
    assert scale.plain.endswith(f"█ 1 and more, up to {most:.1g}")
    assert "more" not in heatmap(ordinary, width=70, rows=8)[-1].plain
