"""Growth on the way back through time, beside what is ordinary in the run."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.detect import ExplodingDetector
from lightning_gradwatch.events import EventKind, Moment
from tests.profiles import profile
from tests.unit.detect.samples import decaying, ends, run


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
