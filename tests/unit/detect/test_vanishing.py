"""A horizon that stays short is an event; what is long, or short once, is none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lightning_gradwatch.detect import VanishingDetector
from lightning_gradwatch.events import EventKind, Moment
from tests.profiles import profile
from tests.unit.detect.samples import decaying, ends, run


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

    @pytest.mark.parametrize("seen", [2, 3, 5])
    def test_a_horizon_that_was_cut_off_is_never_the_shortest(self, seen: int) -> None:
        """A short segment, which it outlives, tells neither how short it was nor that it is over, in 40 timesteps or in few."""
        detector = VanishingDetector()
        run(detector, [-0.8] * 3)  # 6 timesteps
        whole = decaying(-0.1, seen)
        part = dataclasses.replace(decaying(-0.8), curves=whole.curves)
        assert [detector(one, Moment(step)) for step, one in enumerate([whole, part] * 3, 3)] == [None] * 6
        (record,) = detector.finish(Moment(9))
        assert record.action == "ongoing"
        assert "the horizon was shortest, 6 timesteps, at step 2" in record.message

    @pytest.mark.parametrize("seen", [2, 8, 15])
    def test_what_was_cut_off_early_is_no_further_reach(self, seen: int) -> None:
        """A segment too short to tell is not what the gradient reached earlier, and nothing was lost since, though the loss rose."""
        detector = VanishingDetector()
        detector(dataclasses.replace(decaying(-0.8), curves=decaying(-0.1, seen).curves), Moment(0, loss=1.0))
        (event,) = [e for step in (1, 2, 3) if (e := detector(decaying(-0.8), Moment(step, loss=2.0)))]
        assert "Earlier" not in event.message
        assert "checkpoint" not in event.remedy

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
        """Where nothing lies beyond the cut, the event says that the horizon is the limit; its end, that the segments are."""
        detector = VanishingDetector()
        events = [detector(decaying(-1.0, truncated=True, cut_share=1e-4), Moment(step)) for step in range(3)]
        assert "the horizon is the limit here" in events[2].message
        assert "Longer segments do not help" in events[2].remedy
        last = [detector(decaying(0.0, truncated=True), Moment(step)) for step in (3, 4)][-1]
        assert "their length is the limit" in last.message

    @pytest.mark.parametrize(
        ("share", "why", "said"),
        [
            (0.057, None, "5.7 % of it over both"),
            (0.3, None, "30 % of it over both"),
            (None, None, "is not known here."),
            (None, "it is a cell in a loop", "is not known here: it is a cell in a loop."),
        ],
    )
    def test_nothing_is_said_of_longer_segments_that_was_not_measured(
        self, share: float | None, why: str | None, said: str
    ) -> None:
        """The event tells the measured share beyond the cut, or that it is not known, and does not call longer segments useless."""
        detector = VanishingDetector()
        made = decaying(-1.0, truncated=True, cut_share=share, cut_unknown=why)
        (event,) = filter(None, [detector(made, Moment(step)) for step in range(3)])
        assert said in event.message
        assert "the limit here" not in event.message
        assert "Longer segments" not in event.remedy

    def test_no_samples_is_refused(self) -> None:
        """`samples` must be at least 1."""
        with pytest.raises(ValueError, match="`samples` must be ≥ 1; found 0"):
            VanishingDetector(0)
