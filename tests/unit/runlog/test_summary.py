"""Verdicts in words."""

# Over 300 lines: one test a sentence of a verdict, over records that they share.

from __future__ import annotations

import dataclasses
import math

import pytest

from lightning_gradwatch.events import ENDED, ONGOING, Event, EventKind
from lightning_gradwatch.report.summary import horizon_text
from lightning_gradwatch.runlog import summarise
from lightning_gradwatch.runlog.summary import Verdict
from tests.runlogs import profile


def judge(*records, events=()):
    (found,) = summarise(records, [event.to_record() for event in events])
    return found


@pytest.mark.parametrize(
    ("rate", "verdict", "horizon", "censored"),
    [
        (-0.01, Verdict.HEALTHY, 39, True),
        (-0.15, Verdict.HEALTHY, 31, False),  # 1 % after 31 of 40 timesteps
        (-0.5, Verdict.VANISHING, 10, False),
        (0.3, Verdict.EXPLODING, 39, True),
    ],
)
def test_a_growth_rate_leads_to_its_verdict(rate, verdict, horizon, censored):
    """Horizon and rate are those of the profiles, and the sentence says them."""
    found = judge(*[profile(step, rate=rate) for step in range(5)])
    assert (found.verdict, found.horizon, found.horizon_censored) == (verdict, horizon, censored)
    assert found.growth_rate == rate
    assert (found.samples, found.timesteps) == (5, 40)
    assert f"{rate:+.3g} nats" in found.sentence


def test_vanishing_is_never_judged_from_fewer_than_three_samples():
    """Two samples that look like vanishing leave it undecided."""
    records = [profile(step, rate=-0.5) for step in range(3)]
    assert judge(*records[:2]).verdict == Verdict.UNDECIDED
    assert judge(*records).verdict == Verdict.VANISHING


def test_a_horizon_that_shrank_is_no_failure():
    """A gradient that once reached far and no longer does is called shortened, with where it reached; never vanishing."""
    found = judge(profile(0, rate=-0.01), *[profile(step, rate=-0.5) for step in range(1, 20)])
    assert found.verdict == Verdict.SHORTENED
    assert "at step 0 it reached 39" in found.sentence


def test_a_horizon_that_grew_is_not_shortened():
    """A short run is judged by its end, and a horizon is shortened only if it reached further before."""
    grown = judge(*[profile(50 * place, rate=-0.5 + 0.07 * place) for place in range(7)])
    assert (grown.verdict, grown.horizon) == (Verdict.HEALTHY, 31)
    late = [profile(step, rate=-0.5) for step in range(30)]
    assert judge(*late, profile(30, rate=-0.01)).verdict == Verdict.VANISHING
    shorter = [profile(step, timesteps=5, rate=-0.1) for step in range(20)]
    assert judge(*shorter, *[profile(step, rate=-0.5) for step in range(20, 60)]).verdict == Verdict.VANISHING


def test_an_exploding_sample_is_no_reach():
    """A gradient that exploded once outlived its sequence, which says nothing of what it could have taught."""
    exploded = profile(0, rate=0.3)
    assert judge(exploded, *[profile(step, rate=-0.5) for step in range(1, 20)]).verdict == Verdict.VANISHING


def test_vanishing_where_every_timestep_has_a_loss_near_is_a_note():
    """As in the event: what starves is not learned; otherwise the horizon matters only to a task that needs a longer memory."""
    near = judge(*[profile(step, rate=-0.5) for step in range(5)])
    far = judge(*[profile(step, rate=-0.5, every_step_has_loss=False) for step in range(5)])
    back = judge(*[{**profile(step, rate=-0.5), "direction": "reverse"} for step in range(5)])
    assert [found.verdict for found in (near, far, back)] == [Verdict.VANISHING] * 3
    assert [found.starves for found in (near, far, back)] == [False, True, False]
    assert "only if the task needs a longer memory" in near.sentence
    assert "not learned" not in near.sentence
    assert far.sentence.endswith("what lies further back is not learned.")


def test_several_calls_of_one_step_are_one_sample():
    """A module called three times in one step has been sampled once."""
    calls = [{**profile(0, rate=-0.5), "call": call} for call in range(3)]
    assert judge(*calls).samples == 1
    assert judge(*calls).verdict == Verdict.UNDECIDED


def test_the_verdict_is_about_the_end_of_training():
    """A gradient that vanished early and no longer does is healthy; one odd sample changes nothing."""
    early = [profile(step, rate=-0.5) for step in range(30)]
    late = [profile(step, rate=-0.01) for step in range(30, 39)]
    assert judge(*early, *late, profile(39, rate=-0.5)).verdict == Verdict.HEALTHY


def test_short_sequences_say_nothing_of_a_horizon_that_outlasts_them():
    """They cut it off: that pulls the median neither down, nor over what long sequences show; the sentence says that lengths differ."""
    cut = [{**profile(step, rate=-0.1, timesteps=5), "step": 4} for step in range(3)]
    seen = [profile(step, rate=-0.2, timesteps=60) for step in range(3, 5)]
    for records in ([*seen, *cut], [*seen, *cut[:1]], [*cut * 5, *seen]):
        found = judge(*records)
        assert (found.horizon, found.horizon_censored) == (24, False)
        assert "falls under 1 % after 24 of 60 timesteps (its sequences have 5 to 60 timesteps; " in found.sentence


@pytest.mark.parametrize("longest", [13, 20, 40])
def test_the_longest_of_many_sequences_decides_nothing(longest):
    """A horizon is held against the middle one of the lengths at which the gradient fell, as it is not said of one odd sequence."""
    usual = [_cut(step, 7, censored=False, timesteps=9) for step in range(6)]
    found = judge(*usual, _cut(5, 7, censored=False, timesteps=longest), _cut(5, 2, censored=True, timesteps=3))
    assert found.verdict == Verdict.HEALTHY
    assert f"after 7 of 9 timesteps (its sequences have 3 to {longest} timesteps; " in found.sentence


@pytest.mark.parametrize(("reached", "timesteps"), [(8, 24), (7, 8), (9, 10)])
def test_a_sequence_too_short_to_tell_shows_no_far_reach(reached, timesteps):
    """What was cut off after 8 timesteps does not make a horizon of 7 in 24 one that was shortened."""
    early = _cut(0, reached, censored=True, timesteps=timesteps)
    found = judge(early, *[_cut(step, 7, censored=False, timesteps=24) for step in range(1, 20)])
    assert found.verdict == Verdict.VANISHING
    assert "it reached" not in found.sentence


def _spoilt(step):
    record = profile(step, rate=-0.5)
    record["total_max"][3] = math.inf
    return record


def test_one_bad_batch_is_no_verdict_on_the_run():
    """A sample that is not finite is passed over where finite ones follow, or its step was skipped."""
    sound = [profile(step) for step in range(6)]
    skipped = Event(EventKind.STEP_SKIPPED, 9, value=math.nan, action="skipped")
    assert judge(*sound, _spoilt(9), profile(10)).verdict == Verdict.HEALTHY
    assert judge(*sound, _spoilt(9), events=[skipped]).verdict == Verdict.HEALTHY
    assert judge(*sound, _spoilt(9)).verdict == Verdict.NOT_FINITE


def test_steps_that_are_skipped_to_the_end_are_a_verdict():
    """Skipping kept the weights as they were, and yet nothing more was learned: not finite, since the first of them."""
    sound = [profile(step) for step in range(6)]
    skipped = [Event(EventKind.STEP_SKIPPED, step, value=math.nan, action="skipped") for step in range(6, 30)]
    found = judge(*sound, *map(_spoilt, range(6, 30)), events=skipped)
    assert (found.verdict, found.since, found.severity) == (Verdict.NOT_FINITE, 6, "critical")
    assert judge(*sound, *map(_spoilt, range(6, 30)), profile(30), events=skipped).verdict == Verdict.HEALTHY


def test_a_run_that_ends_not_finite_says_since_when_and_how_it_began():
    """The first event since the last sound sample names it; earlier ones were survived. There is no horizon any more."""
    events = [
        Event(EventKind.NONFINITE_INPUT, 2, module="rnn", value=math.nan),
        Event(EventKind.NONFINITE_LOSS, 8, value=math.inf),
        Event(EventKind.NONFINITE_STATE, 9, module="rnn", layer=0, value=math.nan),
    ]
    found = judge(profile(0), _spoilt(2), profile(5), *map(_spoilt, range(9, 30)), events=events)
    assert (found.verdict, found.horizon, found.growth_rate) == (Verdict.NOT_FINITE, None, None)
    assert found.sentence.startswith("No sample from then on is finite. First came NONFINITE_LOSS at step 8: The loss")
    assert "not finite since step 8. No sample" in found.line
    assert judge(_spoilt(0)).line.endswith("not finite since step 0. It was the last sample.")


def _end(event: Event, step: int, action: str = ENDED) -> Event:
    return dataclasses.replace(event, step=step, action=action, severity="info", detail="")


@pytest.mark.parametrize(
    ("event", "end", "said"),
    [
        (Event(EventKind.EXPLODING_HIDDEN_GRADIENT, 0, module="rnn", layer=0, direction="forward", value=1e5, threshold=1e2),
         2, "it exploded through time at step 0 (over by step 2)"),
        (Event(EventKind.SATURATED_GATES, 1, module="rnn", layer=0, direction="forward", value=0.0, threshold=0.01),
         4, "its gates were saturated at step 1 (over by step 4)"),
        (Event(EventKind.EXPLODING_GRADIENT, 3, value=1e5, threshold=1e2),
         None, "the gradient norm jumped at step 3"),
        (Event(EventKind.NONFINITE_LOSS, 2, value=math.nan), None, "the loss was not finite at step 2"),
        (Event(EventKind.NOT_OBSERVED, 4, module="rnn", parameter="rnn.weight_hh_l0"), None, "NOT_OBSERVED was told at step 4"),
    ],
)  # fmt: skip
def test_a_verdict_that_all_is_well_does_not_hide_what_was_told(event, end, said):
    """Critical events and warnings of the place, or of the whole model, are named beside it."""
    records = [profile(step, rate=-0.01) for step in range(5)]
    found = judge(*records, events=[event] if end is None else [event, _end(event, end)])
    assert (found.verdict, found.said, found.troubled) == (Verdict.HEALTHY, "healthy now", True)
    assert f"Not all along: {said}." in found.sentence


def test_what_was_told_of_other_places_and_notes_leave_it_healthy():
    """So does a step that was skipped beside what made it so: one phrase is enough."""
    records = [profile(step, rate=-0.01) for step in range(5)]
    elsewhere = Event(EventKind.SATURATED_GATES, 1, module="other", layer=0, value=0.0, threshold=0.01)
    assert judge(*records, events=[elsewhere, Event(EventKind.AMP_OVERFLOW, 1, value=2.0)]).said == "healthy"
    bad = [Event(EventKind.NONFINITE_LOSS, 2, value=math.nan), Event(EventKind.STEP_SKIPPED, 2, value=math.nan)]
    assert judge(*records, events=bad).sentence.count("at step 2") == 1


def test_many_jumps_are_counted():
    """Of three the steps are named, of more how many there were."""
    jumps = [Event(EventKind.EXPLODING_GRADIENT, step, value=9.0, threshold=1.0) for step in (1, 5, 9, 13)]
    records = [profile(step, rate=-0.01) for step in range(20)]
    assert "the gradient norm jumped at steps 1, 5 and 9." in judge(*records, events=jumps[:3]).sentence
    assert "jumped at 4 steps, first at step 1." in judge(*records, events=jumps).sentence


def test_a_loss_that_has_risen_is_said_beside_a_healthy_gradient():
    """What flows through time is not all of a training."""
    records = [{**profile(step, rate=-0.01), "loss": loss} for step, loss in enumerate((1.0, 4.0, 5.0, 6.0))]
    found = judge(*records)
    assert (found.verdict, found.said) == (Verdict.HEALTHY, "healthy, but the loss has risen")
    assert "The loss has risen, to 5 from 1." in found.sentence
    assert judge(*[{**record, "loss": -record["loss"]} for record in records]).said == "healthy"


def test_a_missing_norm_is_not_one_that_is_not_finite():
    """NaN stands where no measured sequence reached."""
    short = profile(9)
    short["total"][39] = short["total_max"][39] = math.nan
    assert judge(profile(0), short).verdict == Verdict.HEALTHY


def test_zeros_are_not_observed():
    """All-zero gradients are reported as not observed, with the reason that an event gives."""
    zero = {**profile(), "total": [0.0] * 40, "total_max": [0.0] * 40, "lagged": [], "horizon": None}
    assert judge(zero).verdict == Verdict.NOT_OBSERVED
    event = Event(EventKind.NOT_OBSERVED, 0, module="rnn", detail="It is frozen.")
    assert "It is frozen." in judge(zero, events=[event]).sentence


def test_a_module_without_profiles_is_named_with_its_reason():
    """A module that was never observed is in the summary although it has no profile."""
    event = Event(EventKind.NOT_OBSERVED, 0, module="encoder", detail="Its .forward was called directly.")
    seen, unseen = summarise([profile()], [event.to_record()])
    assert seen.module == "rnn"
    assert (unseen.place, unseen.verdict) == ("encoder", Verdict.NOT_OBSERVED)
    assert ".forward was called directly" in unseen.line


def test_one_timestep_is_not_observed():
    """Where there is no time, nothing flows through it."""
    assert judge(profile(timesteps=1)).verdict == Verdict.NOT_OBSERVED


def test_events_are_counted_where_they_belong():
    """An event of one layer counts there; one of the whole module counts for each of its layers."""
    records = [profile(layer=layer) for layer in (0, 1)]
    events = [
        Event(EventKind.VANISHING_HIDDEN_GRADIENT, 1, module="rnn", layer=1, direction="forward", value=3.0),
        Event(EventKind.NONFINITE_INPUT, 1, module="rnn", value=math.nan),
        Event(EventKind.STEP_SKIPPED, 1),
    ]
    found = summarise(records, [event.to_record() for event in events])
    assert [layer.events for layer in found] == [1, 2]


def test_the_end_of_an_episode_is_no_event_of_its_own():
    """The record that closes an episode is not counted, whether it ended or training did."""
    begun = Event(EventKind.VANISHING_HIDDEN_GRADIENT, 1, module="rnn", layer=0, direction="forward", value=3.0)
    closed = [dataclasses.replace(begun, action=action, detail="") for action in (ENDED, ONGOING)]
    (found,) = summarise([profile()], [event.to_record() for event in (begun, *closed)])
    assert found.events == 1


def test_an_inexact_measurement_says_so():
    """The reason is part of the sentence."""
    found = judge({**profile(), "exact": False, "inexact_reason": "cuDNN keeps its dropout mask"})
    assert not found.exact
    assert found.sentence.endswith("The measurement is not exact: cuDNN keeps its dropout mask.")


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (-0.5, "it fades, to 61 % with each"),
        (-6.0, "it fades, to under 1 % with each"),
        (-0.001, "it keeps its size"),
        (0.05, "it grows, by 5.1 % with each"),
        (1.5, "it grows, 4.48-fold with each"),
    ],
)
def test_a_growth_rate_is_said_in_words_too(rate, words):
    """What it makes of the gradient with each timestep back."""
    timesteps = 10 if rate > 1 else 40
    assert words in judge(*[profile(step, rate=rate, timesteps=timesteps) for step in range(5)]).sentence


def test_a_horizon_that_jumps_is_told_with_its_range():
    """On a plateau near 1 % a little makes much of a horizon: the median, and from where to where it went."""
    jumps = [{**profile(step, rate=-0.5), "horizon": horizon} for step, horizon in enumerate([4, 4, 4, 17, 4])]
    found = judge(*jumps)
    assert (found.horizon, found.horizon_range) == (4, "4 to 17")
    assert "after 4 of 40 timesteps (4 to 17 in the last 3 samples; growth rate" in found.sentence
    assert horizon_text(found) == "4 of 40 (4 to 17)"


def test_a_horizon_that_was_cut_off_in_some_samples_ranges_to_over_that():
    """The longest one is longer than it could be seen."""
    mixed = [profile(step, rate=-0.5) for step in range(3)] + [profile(step, rate=-0.01) for step in (3, 4)]
    assert judge(*mixed).horizon_range == "10 to over 39"


def _cut(step, horizon, *, censored, timesteps=40):
    return {**profile(step, rate=-0.5, timesteps=timesteps), "horizon": horizon, "horizon_censored": censored}


@pytest.mark.parametrize(
    ("samples", "horizon", "said"),
    [
        ([(1, False), (20, False), (10, True)], "20 of 40", "1 to 20 or more"),
        ([(2, True), (9, False), (30, False)], "9 of 40", "9 to 30 or more"),
        ([(4, False), (4, False), (17, True)], "4 of 40", "4 to over 17"),
    ],
)
def test_a_range_holds_the_horizon_that_it_is_of(samples, horizon, said):
    """One that was cut off early is longer than that, and nobody knows by how much: it is no end of the range."""
    found = judge(*[_cut(step, lags, censored=cut) for step, (lags, cut) in enumerate(samples)])
    assert horizon_text(found) == f"{horizon} ({said})"
    assert f"({said} in the last 3 samples" in found.sentence


@pytest.mark.parametrize("timesteps", [1, 40])
def test_where_no_lag_was_followed_there_is_no_horizon(timesteps):
    """ "At least 0" would say nothing."""
    nothing = {"lagged": [1.0], "horizon": 0, "horizon_censored": True, "growth_rate": None}
    found = judge(*[{**profile(step, timesteps=timesteps), **nothing} for step in range(3)])
    assert (found.horizon, found.horizon_censored, horizon_text(found)) == (None, False, "–")


def test_an_even_horizon_has_no_range():
    """Nor has one of several calls of a step that differ from one another, as an encoder's and a decoder's do."""
    assert judge(*[profile(step, rate=-0.5 + 0.01 * step) for step in range(5)]).horizon_range is None
    calls = [
        {**profile(step, rate=rate), "call": call} for step in range(5) for call, rate in enumerate((-0.5, -0.2, -0.5))
    ]
    assert judge(*calls).horizon_range is None


def test_lags_that_were_not_taken_leave_the_verdict_open_with_their_reason():
    """Once, as a sentence; without a reason, what is known."""
    unknown = {"lagged": [], "horizon": None, "horizon_censored": True, "growth_rate": None}
    reason = "a hook on its states would be called twice; no lags were measured"
    told = judge(*[{**profile(step), **unknown, "exact": False, "inexact_reason": reason} for step in range(5)])
    assert (told.verdict, told.sentence) == (Verdict.UNDECIDED, f"The horizon is not known: {reason}.")
    untold = judge(*[{**profile(step), **unknown} for step in range(5)])
    assert "no gradient was followed back from the loss of a single timestep" in untold.sentence
