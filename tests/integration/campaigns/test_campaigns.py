"""The quiet, the sick and the truth campaign, a slice of each; at full size they are in benchmarks/campaigns."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest
import torch

from benchmarks.campaigns import quiet, sick
from benchmarks.campaigns.truth import campaign as truth
from lightning_gradwatch.events import ENDED, Event, EventKind, Severity

RUNS, STEPS = 6, 160


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    quiet.quietly()


@pytest.mark.slow
def test_healthy_runs_raise_no_alarm() -> None:
    """Drawn as in the campaign, with seeds of their own: those that learn end without a warning or critical event, and most do learn."""
    outcomes = quiet.campaign(quiet.drawn(RUNS, seed=7), STEPS)
    healthy = [outcome for outcome in outcomes if outcome.healthy]
    assert len(healthy) >= RUNS // 2
    assert [(outcome.run, outcome.alarms) for outcome in healthy if outcome.alarms] == []
    assert quiet.table(outcomes, STEPS).splitlines()[1].split()[:3] == ["all", str(RUNS), str(len(healthy))]


def test_the_end_of_an_episode_is_no_note() -> None:
    """The column of notes counts what the last line counts."""
    noted = Event(EventKind.VANISHING_HIDDEN_GRADIENT, 1, module="rnn", value=3.0, severity=Severity.INFO)
    over = dataclasses.replace(noted, action=ENDED, detail="")
    table = quiet.table([quiet.Outcome(quiet.draw(Random(0)), 1.0, 0.1, True, (noted, over))], STEPS)
    assert table.splitlines()[1].split()[-2:] == ["0", "1"]
    assert "Notes: {'VANISHING_HIDDEN_GRADIENT': 1}" in table


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sort", "clearly"),
    [
        ("λ < 1", {}),
        ("gates shut", {}),
        ("too long", {}),
        ("λ > 1", {"radius": 2.5, "timesteps": 40, "task": "text"}),
        ("deep in time", {"radius": 1.8, "timesteps": 80, "task": "text"}),
        ("gated, λ > 1", {}),
    ],
)
def test_sick_runs_are_told_for_what_they_are(sort: str, clearly: dict) -> None:
    """A run that is sick by construction is so by the unrolled model, and GradWatch says the same of it, and not the opposite."""
    outcome = sick.judge(dataclasses.replace(sick.sick(sort, Random(11)), **clearly), 110)
    vanishing, exploding = EventKind.VANISHING_HIDDEN_GRADIENT, EventKind.EXPLODING_HIDDEN_GRADIENT
    expected = sort in ("λ < 1", "gates shut", "too long")
    assert (outcome.vanishes, outcome.explodes) == (expected, not expected)
    assert (outcome.has(vanishing), outcome.has(exploding)) == (expected, not expected)
    assert "100.0%" in sick.table_of_kinds([outcome])


@pytest.mark.slow
def test_a_learning_rate_too_high_is_seen_by_all_that_look_for_nan() -> None:
    """A relu network under plain SGD with a learning rate of 100 ends in NaN, which every one of them finds; its healthy twin none."""
    run = dataclasses.replace(
        sick.sick("learning rate", Random(1)),
        cell="RNN_RELU",
        optimizer="SGD",
        lr=100.0,
        task="text",
        precision="32-true",
    )
    outcome = sick.judge(run, 60)
    assert outcome.diverges
    assert outcome.has(*sick.NONFINITE)
    assert all(
        outcome.said[name] is not None for name in ("GradWatch", "detect_anomaly", "EarlyStopping", "loss is NaN")
    )
    calm = sick.judge(dataclasses.replace(run, lr=0.1, clip=1.0, sick=""), 60)
    assert calm.healthy
    assert all(calm.said[name] is None for name in ("GradWatch", "detect_anomaly", "EarlyStopping", "loss is NaN"))


def test_a_clipper_is_shown_the_norms() -> None:
    """Each published clipper says at which step it would have clipped: at a leap out of even norms, and not before."""
    norms = [1.0 + 0.01 * (step % 7) for step in range(150)]
    for make in (sick._zclip, sick._smartclip):
        torch.manual_seed(0)
        assert sick._first_clipped(make(), [*norms, 50.0]) == 150


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(truth.MAKERS)), ids=[make.__name__ for make in truth.MAKERS])
def test_every_sentence_is_true(number: int) -> None:
    """One run of each kind of the truth campaign: each sentence has a judge, and holds."""
    outcome = truth.judge(number, seed=7)
    assert outcome.sentences > 0
    assert outcome.faults == []
