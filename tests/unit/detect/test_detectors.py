"""Detectors fed with profiles and norms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.detect import ExplodingDetector, NormJumpDetector, VanishingDetector
from lightning_gradwatch.events import EventKind, Moment
from tests.unit.test_profile import profile


def decaying(rate: float, steps: int = 40):
    return profile([[1.0] * steps], curves=[np.exp(rate * np.arange(steps))])


def run(detector, rates):
    found = [detector(decaying(rate), Moment(step)) for step, rate in enumerate(rates)]
    return [(event.step, event.value) for event in found if event is not None]


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

    def test_a_censored_horizon_never_counts(self) -> None:
        """A gradient that outlives the sequence is none that vanishes."""
        assert not run(VanishingDetector(), [-0.05] * 10)

    def test_a_horizon_over_half_of_the_sequence_never_counts(self) -> None:
        """ln 100/0.2 = 23 of 40 timesteps is no alarm."""
        assert not run(VanishingDetector(), [-0.2] * 10)

    def test_a_new_episode_is_a_new_event(self) -> None:
        """After a recovery it may be reported again."""
        assert [step for step, _ in run(VanishingDetector(), [-1] * 3 + [0] + [-1] * 3)] == [2, 6]

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

    def test_calls_of_one_module_are_judged_apart(self) -> None:
        """Three calls in one step are not three samples."""
        detector = VanishingDetector()
        calls = [decaying(-1.0) for _ in range(3)]
        for index, call in enumerate(calls):
            object.__setattr__(call, "call", index)
        assert all(detector(call, Moment(0)) is None for call in calls)

    def test_no_samples_is_refused(self) -> None:
        """`samples` must be at least 1."""
        with pytest.raises(ValueError, match="`samples` must be ≥ 1; found 0"):
            VanishingDetector(0)


class TestExploding:
    def test_growth_is_one_event_an_episode(self) -> None:
        """100-fold growth is reported once until it has gone under a tenth of that."""
        grown = math.log(150) / 39
        half = math.log(50) / 39
        assert [step for step, _ in run(ExplodingDetector(), [0, grown, half, grown, 0, grown])] == [1, 5]

    def test_the_value_is_the_largest_growth(self) -> None:
        """e^(0.2·39) = 2,440-fold."""
        ((_, value),) = run(ExplodingDetector(), [0.2])
        assert value == pytest.approx(math.exp(0.2 * 39))

    def test_what_is_not_finite_is_another_detectors(self) -> None:
        """An infinite curve makes no event here."""
        assert ExplodingDetector()(profile([[1.0] * 3], curves=[[1.0, math.inf, math.inf]]), Moment(0)) is None

    def test_a_factor_of_one_is_refused(self) -> None:
        """`factor` must be over 1."""
        with pytest.raises(ValueError, match="`factor` must be > 1; found 1"):
            ExplodingDetector(1)


class TestNormJump:
    @given(st.integers(0, 2**32 - 1), st.floats(1e-12, 1e12))
    def test_ordinary_norms_are_no_jump(self, seed: int, scale: float) -> None:
        """Log-normal norms with a standard deviation of 0.5 nats, at any scale, through a slow drift: silence."""
        generator = np.random.default_rng(seed)
        norms = scale * np.exp(0.5 * generator.standard_normal(400) + np.linspace(0, 3, 400))
        detector = NormJumpDetector()
        assert not any(detector(float(norm)) for norm in norms)

    def test_a_jump_is_found_and_told_once(self) -> None:
        """A 1,000-fold norm is a jump, its neighbour the same one, and a later one another."""
        detector = NormJumpDetector()
        found = [detector(norm) is not None for norm in [1.0] * 20 + [1e3, 1e3, 1.0, 1e3]]
        assert [i for i, jump in enumerate(found) if jump] == [20, 23]

    def test_nothing_absurd_enters_the_baseline(self) -> None:
        """NaN, inf, zeros and jumps leave the bound where it was."""
        detector = NormJumpDetector()
        for _ in range(40):
            detector(1.0)
        before = detector.bound()
        for norm in (math.nan, math.inf, 0.0, -1.0, 1e300):
            detector(norm)
        assert detector.bound() == before

    def test_there_is_no_judgement_without_history(self) -> None:
        """The first norms have no bound."""
        detector = NormJumpDetector()
        assert detector(1.0) is None
        assert detector(1e9) is None
        assert detector.bound() is None
