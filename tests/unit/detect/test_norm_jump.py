"""A norm that leaps from one step to the next."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.detect import NormJumpDetector
from tests.unit.detect.samples import jumps


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
