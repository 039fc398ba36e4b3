"""Detectors fed with profiles and norms."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.detect import ExplodingDetector, NormJumpDetector, ScaleSearch, VanishingDetector
from lightning_gradwatch.events import Event, EventKind, Moment
from tests.unit.test_profile import profile


def decaying(rate: float, steps: int = 40, *, flat: bool = False, **fields):
    """A loss at the last timestep alone, whose gradient is e^(rate·lag); ``flat``: one at every timestep, so that the total hides it."""
    curve = np.exp(rate * np.arange(steps))
    made = profile([np.ones(steps) if flat else curve[::-1]], curves=[curve])
    return dataclasses.replace(made, **fields)


def run(detector, rates):
    """``(step, value)`` of the events that begin an episode."""
    found = [detector(decaying(rate), Moment(step)) for step, rate in enumerate(rates)]
    return [(event.step, event.value) for event in found if event is not None and event.action is None]


def ends(detector, rates):
    """The records that close an episode."""
    found = [detector(decaying(rate), Moment(step)) for step, rate in enumerate(rates)]
    return [event for event in found if event is not None and event.action is not None]


class TestVanishing:
    def test_it_takes_three_samples_in_a_row(self) -> None:
        """Two short horizons, one long, then three short ones: one event, at the third."""
        assert [step for step, _ in run(VanishingDetector(), [-1, -1, 0, -1, -1, -1, -1])] == [5]

    def test_it_says_how_far_the_gradient_reaches(self) -> None:
        """The event's value is the median horizon in timesteps, its threshold half of the sequence."""
        detector = VanishingDetector()
        events = [detector(decaying(-1.0), Moment(step)) for step in range(3)]
        assert (events[2].kind, events[2].value, events[2].threshold) == (
            EventKind.VANISHING_HIDDEN_GRADIENT,
            5.0,
            20.0,
        )
        assert "after 5 timesteps" in events[2].message
        assert "The sequences have 40" in events[2].message

    def test_a_censored_horizon_never_counts(self) -> None:
        """A gradient that outlives the sequence is none that vanishes."""
        assert not run(VanishingDetector(), [-0.05] * 10)

    def test_a_horizon_over_half_of_the_sequence_never_counts(self) -> None:
        """ln 100/0.2 = 23 of 40 timesteps is no alarm."""
        assert not run(VanishingDetector(), [-0.2] * 10)

    def test_a_horizon_that_grows_is_waited_for(self) -> None:
        """One that doubles from sample to sample is left in peace as long as it does; once it stands still, or creeps, it is judged."""
        rates = [-3, -1.5, -0.75, -0.4]
        assert not run(VanishingDetector(), rates)
        assert [step for step, _ in run(VanishingDetector(), [*rates, -0.4, -0.4])] == [5]
        assert [step for step, _ in run(VanishingDetector(), [-1.5, -1.2, -1.0])] == [2]

    def test_one_that_was_waited_for_in_vain_is_told_when_training_ends(self) -> None:
        """With the step of its last sample; of fewer than three nothing can be told."""
        detector = VanishingDetector()
        assert not run(detector, [-3, -1.5, -0.75])
        begun, record = detector.finish(Moment(9))
        assert (begun.step, begun.action, begun.severity, begun.value) == (2, None, "warning", 7)
        assert (record.step, record.action) == (9, "ongoing")
        few = VanishingDetector()
        run(few, [-3, -1.5])
        assert few.finish(Moment(9)) == []

    def test_an_episode_is_one_event_and_one_record_of_its_end(self) -> None:
        """It ends after two long horizons in a row; the record holds begin, end and the shortest horizon, and is a note."""
        detector = VanishingDetector()
        (record,) = ends(detector, [-1] * 3 + [-2] + [-1] * 4 + [0] + [-1] + [0, 0])
        assert (record.action, record.severity, record.step, record.value) == ("ended", "info", 11, 3.0)
        assert record.message.startswith(
            "Vanishing of rnn, layer 0 from step 2 to step 11; the horizon was shortest, 3 timesteps, at step 3 ("
        )

    def test_a_new_episode_is_a_new_event(self) -> None:
        """After a recovery it may be reported again."""
        first, second = run(VanishingDetector(), [-1] * 3 + [0, 0] + [-1] * 3)
        assert (first[0], second[0]) == (2, 7)

    def test_an_episode_that_training_does_not_outlast_is_closed_as_such(self) -> None:
        """At the end of training what still goes on is said, once."""
        detector = VanishingDetector()
        run(detector, [-1] * 5)
        (record,) = detector.finish(Moment(9))
        assert (record.action, record.severity, record.step) == ("ongoing", "info", 9)
        assert "since step 2, not over when training ended; " in record.message
        assert detector.finish(Moment(9)) == []

    def test_where_no_timestep_starves_it_is_a_note(self) -> None:
        """With a loss at every timestep the total gradient is flat: a short horizon is information, no alarm."""
        severities = []
        for flat in (False, True):
            detector = VanishingDetector()
            events = [detector(decaying(-1.0, flat=flat), Moment(step)) for step in range(3)]
            severities.append(events[2].severity)
        assert severities == ["warning", "info"]
        assert "Every timestep gets 1 % of the largest gradient or more" in events[2].message

    @pytest.mark.parametrize(
        ("losses", "low"), [((0.69, 0.1, 0.004), True), ((0.69, 0.6, 0.5), False), ((None, 0.6, 0.004), False)]
    )
    def test_a_loss_that_is_low_is_said_first(self, losses, low: bool) -> None:
        """Under a tenth of the first one it is a note that begins with the loss, and does not say that nothing is learned."""
        detector = VanishingDetector()
        event = [detector(decaying(-1.0), Moment(step, loss=loss)) for step, loss in enumerate(losses)][2]
        assert (event.severity == "info") == low
        assert event.message.partition("timesteps. ")[2].startswith("The loss is down to 0.004 from 0.69") == low
        assert ("nothing is learned from them" in event.message) != low

    @pytest.mark.parametrize("direction", ["forward", "reverse"])
    def test_it_counts_the_timesteps_that_starve(self, direction: str) -> None:
        """e^(−lag) is under 1 % from lag 5 on: 35 of 40 timesteps get nothing, whichever way the recurrence runs."""
        detector = VanishingDetector()
        curve = np.exp(-1.0 * np.arange(40))
        total = curve[::-1] if direction == "forward" else curve
        starving = dataclasses.replace(profile([total], curves=[curve]), direction=direction)
        events = [detector(starving, Moment(step)) for step in range(3)]
        assert "The 35 timesteps furthest from the loss" in events[2].message

    def test_timesteps_behind_the_loss_do_not_starve(self) -> None:
        """A loss at timestep 10 of 40 sends nothing to those after it; that is no vanishing of theirs."""
        curve = np.full(11, 0.9) ** np.arange(11)
        short = profile([np.concatenate([curve[::-1], np.zeros(29)])], curves=[np.exp(-1.0 * np.arange(40))])
        detector = VanishingDetector()
        events = [detector(short, Moment(step)) for step in range(3)]
        assert events[2].severity == "info"

    def test_what_reached_further_before_is_a_note(self) -> None:
        """A horizon that shrank in training is information, one that was short from the start a warning."""
        always, shrunk = VanishingDetector(), VanishingDetector()
        for step in range(3):
            event = always(decaying(-1.0), Moment(step))
        shrunk(decaying(-0.05), Moment(0))
        for step in range(1, 4):
            note = shrunk(decaying(-1.0), Moment(step))
        assert event.severity == "warning"
        assert note.severity == "info"
        assert "Earlier it reached 39" in note.message

    def test_what_reached_further_before_the_loss_rose_is_a_warning(self) -> None:
        """A horizon that shrank while the loss rose was lost and not learned: the learning rate is the remedy, the cell is none."""
        for loss, severity in ((1.5, "info"), (5.0, "warning")):
            detector = VanishingDetector()
            detector(decaying(-0.05), Moment(0, loss=1.0))
            for step in range(1, 4):
                event = detector(decaying(-1.0), Moment(step, loss=loss))
            assert event.severity == severity
        assert "Earlier it reached 39, and the loss has risen since, to 5 from 1." in event.message
        assert "lower learning rate" in event.remedy
        assert "gated cell" not in event.remedy

    def test_samples_whose_gates_let_nothing_through_do_not_count(self) -> None:
        """Two of a saturated layer and one that is not are not three in a row of a gradient that vanishes."""
        detector = VanishingDetector()
        shut = dataclasses.replace(decaying(-1.0), gate_gradient=0.0)
        assert [detector(one, Moment(step)) for step, one in enumerate((shut, shut, decaying(-1.0)))] == [None] * 3
        assert detector(decaying(-1.0), Moment(3)) is None
        event = detector(decaying(-1.0), Moment(4))
        assert event is not None
        assert event.kind == "VANISHING_HIDDEN_GRADIENT"

    def test_calls_of_one_module_are_judged_apart(self) -> None:
        """Three calls in one step are not three samples, and what all of them show is one event."""
        detector = VanishingDetector()
        calls = [decaying(-1.0, call=index) for index in range(3)]
        assert all(detector(call, Moment(0)) is None for call in calls)
        found = [detector(call, Moment(step)) for step in (1, 2, 3) for call in calls]
        assert len([event for event in found if event is not None]) == 1

    def test_truncated_backpropagation_is_told_from_a_short_horizon(self) -> None:
        """With a state that comes in cut off, the event says that the horizon is the limit; its end, that the segments are."""
        detector = VanishingDetector()
        events = [detector(decaying(-1.0, truncated=True), Moment(step)) for step in range(3)]
        assert "the horizon is the limit here" in events[2].message
        assert "Longer segments do not help" in events[2].remedy
        last = [detector(decaying(0.0, truncated=True), Moment(step)) for step in (3, 4)][-1]
        assert "their length is the limit" in last.message

    def test_no_samples_is_refused(self) -> None:
        """`samples` must be at least 1."""
        with pytest.raises(ValueError, match="`samples` must be ≥ 1; found 0"):
            VanishingDetector(0)


class TestExploding:
    grown, half, far = math.log(150) / 39, math.log(50) / 39, math.log(1e5) / 39

    def test_one_sample_is_not_enough(self) -> None:
        """Growth of 150 in one sample is no event, in two in a row it is one."""
        assert not run(ExplodingDetector(), [0, self.grown, 0, self.grown, 0])
        assert [step for step, _ in run(ExplodingDetector(), [0, self.grown, self.grown, 0])] == [2]

    def test_one_sample_beyond_doubt_is_enough(self) -> None:
        """Growth of the bound's square needs no second sample."""
        assert [step for step, _ in run(ExplodingDetector(), [0, self.far, 0])] == [1]

    def test_an_open_episode_is_no_suspicion(self) -> None:
        """A sample over its bound is suspicious until the event is told: what lasts is not looked at closer for ever."""
        detector = ExplodingDetector()
        assert detector.suspects(decaying(self.grown))
        run(detector, [self.grown, self.grown])
        assert not detector.suspects(decaying(self.grown))

    def test_what_ends_in_nan_is_confirmed(self) -> None:
        """A suspicion becomes an event, of its own step, when numbers stop being finite; one that the next sample cleared does not."""
        detector = ExplodingDetector()
        assert not run(detector, [0, self.grown])
        assert [(event.step, event.kind) for event in detector.confirmed()] == [
            (1, EventKind.EXPLODING_HIDDEN_GRADIENT)
        ]
        assert detector.confirmed() == []
        cleared = ExplodingDetector()
        run(cleared, [self.grown, 0])
        assert cleared.confirmed() == []

    def test_an_episode_is_one_event_and_one_record_of_its_end(self) -> None:
        """It ends after two samples in a row under the root of the bound, and its record holds the largest growth."""
        detector = ExplodingDetector()
        (record,) = ends(detector, [self.grown, self.grown, self.half, self.far, 0, self.half, 0, 0, 0])
        assert (record.action, record.step) == ("ended", 7)
        assert record.value == pytest.approx(1e5)
        assert record.message.startswith("Explosion through time of rnn, layer 0")
        assert "from step 1 to step 7; the growth was largest, 1e+05-fold, at step 3 (bound 100)." in record.message

    @given(st.integers(0, 2**32 - 1))
    def test_what_is_ordinary_in_a_run_is_learned(self, seed: int) -> None:
        """A run that ordinarily grows 60-fold has a bound of 600 and more, and 150-fold growth is no event there."""
        generator = np.random.default_rng(seed)
        ordinary = [(math.log(60) + 0.1 * generator.standard_normal()) / 39 for _ in range(32)]
        detector = ExplodingDetector()
        assert not run(detector, ordinary + [self.grown] * 3)
        assert detector.bound(decaying(0.0)) >= 500

    @pytest.mark.parametrize("direction", ["forward", "reverse"])
    def test_it_names_where_the_gradient_outgrows_its_bound(self, direction: str) -> None:
        """With 2-fold growth a step the total is over 100-fold 7 steps back from the loss, in the sequence that grows most."""
        curve = 2.0 ** np.arange(40)
        rows = [np.ones(40), curve, np.ones(40)]
        total = [row[::-1] if direction == "forward" else row for row in rows]
        made = dataclasses.replace(profile(total, curves=[curve]), direction=direction, sequences=(4, 7, 9))
        event = ExplodingDetector()(made, Moment(0))
        assert (event.timestep, event.sequence) == (39 - 7 if direction == "forward" else 7, 7)

    def test_the_value_is_the_largest_growth(self) -> None:
        """e^(0.3·39) = 120,000-fold."""
        ((_, value),) = run(ExplodingDetector(), [0.3])
        assert value == pytest.approx(math.exp(0.3 * 39))

    def test_what_is_not_finite_is_another_detectors(self) -> None:
        """An infinite curve makes no event here."""
        assert ExplodingDetector()(profile([[1.0] * 3], curves=[[1.0, math.inf, math.inf]]), Moment(0)) is None

    def test_a_factor_of_one_is_refused(self) -> None:
        """`factor` must be over 1."""
        with pytest.raises(ValueError, match="`factor` must be > 1; found 1"):
            ExplodingDetector(1)


def jumps(detector: NormJumpDetector, norms) -> list[Event]:
    found = [detector(float(norm), Moment(step)) for step, norm in enumerate(norms)]
    return [event for event in found if event is not None]


class TestNormJump:
    @given(st.integers(0, 2**32 - 1), st.floats(1e-12, 1e12))
    def test_ordinary_norms_are_no_jump(self, seed: int, scale: float) -> None:
        """Log-normal norms with a standard deviation of 0.5 nats, at any scale, through a slow drift: silence."""
        generator = np.random.default_rng(seed)
        norms = scale * np.exp(0.5 * generator.standard_normal(400) + np.linspace(0, 3, 400))
        assert jumps(NormJumpDetector(), norms) == []

    def test_a_jump_is_told_once_and_its_end_too(self) -> None:
        """Jumps that follow each other within eight steps are one episode; the record of its end holds the largest."""
        norms = [1.0] * 64 + [1e3, 1e4, 1.0, 1e3] + [1.0] * 8 + [1.0, 1e3]
        found = jumps(NormJumpDetector(), norms)
        assert [(event.step, event.action, event.value) for event in found] == [
            (64, None, 1e3),
            (75, "ended", 1e4),
            (77, None, 1e3),
        ]

    def test_one_odd_batch_is_no_jump(self) -> None:
        """Thirty times the ordinary norm once is nothing, twice in a row it is a jump."""
        once = [1.0] * 64 + [30.0] + [1.0] * 20 + [30.0] + [1.0] * 20
        assert jumps(NormJumpDetector(), once) == []
        assert [event.step for event in jumps(NormJumpDetector(), [1.0] * 64 + [30.0, 30.0])] == [64]

    def test_norms_that_scatter_over_decades_hide_no_jump(self) -> None:
        """Twenty times the larger of two levels, twice in a row, is a jump; and so is four hundred times once."""
        levels = [1.0, 15.0] * 32
        assert jumps(NormJumpDetector(), [*levels, 290.0, 290.0]) == []
        assert jumps(NormJumpDetector(), [*levels, 310.0, *levels]) == []
        assert [event.step for event in jumps(NormJumpDetector(), [*levels, 310.0, 310.0])] == [64]
        assert [event.step for event in jumps(NormJumpDetector(), [*levels, 6.1e3])] == [64]

    def test_little_history_makes_a_wide_bound(self) -> None:
        """After 16 even steps of a window of 64 the bound is 20² = 400 times the ordinary norm, after 64 it is 20 times."""
        detector = NormJumpDetector()
        jumps(detector, [2.0] * 16)
        assert detector.bound() == pytest.approx(800)
        assert len(jumps(detector, [790.0, 790.0])) == 0
        detector = NormJumpDetector()
        assert len(jumps(detector, [2.0] * 16 + [810.0])) == 1
        detector = NormJumpDetector()
        jumps(detector, [2.0] * 64)
        assert detector.bound() == pytest.approx(40)

    def test_a_norm_that_stays_up_becomes_the_ordinary_one(self) -> None:
        """The episode of a lasting rise ends by itself, and there is one event of it."""
        found = jumps(NormJumpDetector(), [1.0] * 64 + [1e3] * 200)
        assert [event.action for event in found] == [None, "ended"]

    def test_what_comes_and_goes_is_told_no_more_unless_it_stays(self) -> None:
        """Large norms every third step are one event; the same in nine steps in a row are another."""
        found = jumps(NormJumpDetector(), [1.0] * 20 + [1.0, 1.0, 1e4] * 10 + [1e4] * 12)
        assert [(event.step, event.action) for event in found] == [(22, None), (29, "ended"), (57, None)]

    def test_nothing_absurd_enters_the_baseline(self) -> None:
        """NaN, inf, zeros and jumps leave the bound where it was."""
        detector = NormJumpDetector()
        jumps(detector, [1.0] * 64)
        before = detector.bound()
        jumps(detector, (math.nan, math.inf, 0.0, -1.0, 1e300))
        assert detector.bound() == before

    def test_there_is_no_judgement_without_history(self) -> None:
        """The first norms have no bound."""
        detector = NormJumpDetector()
        assert jumps(detector, [1.0, 1e9]) == []
        assert detector.bound() is None


class TestScaleSearch:
    located = Moment(5).event(EventKind.NONFINITE_HIDDEN_GRADIENT, module="rnn", layer=1, timestep=3)

    def test_a_search_that_ends_is_a_note_each_time(self) -> None:
        """Three overflows, a finite step, another overflow: two notes."""
        search = ScaleSearch()
        first = [search.overflowed(self.located, 2.0**k, Moment(0)) for k in (16, 15, 14)]
        search.ended()
        again = search.overflowed(self.located, 2.0**13, Moment(9))
        assert [event and event.severity for event in (*first, again)] == ["info", None, None, "info"]

    def test_one_that_does_not_end_is_an_alarm_with_the_place(self) -> None:
        """After as many overflows as a search can need it is a warning, once, and names where it begins."""
        search = ScaleSearch()
        found = [search.overflowed(self.located, 65536.0, Moment(step)) for step in range(40)]
        said = [event for event in found if event is not None]
        assert [(event.step, event.severity) for event in said] == [(0, "info"), (16, "warning")]
        assert (said[1].module, said[1].layer, said[1].timestep) == ("rnn", 1, 3)

    def test_a_scale_under_one_is_an_alarm_at_once(self) -> None:
        """Where gradients overflow though they are made smaller, no search helps."""
        event = ScaleSearch().overflowed(self.located, 0.5, Moment(0))
        assert event is not None
        assert event.severity == "warning"
