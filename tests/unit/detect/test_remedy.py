"""The remedy fits what was seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lightning_gradwatch.detect import NormJumpDetector
from lightning_gradwatch.detect.remedy import exploding_remedy, vanishing_remedy
from lightning_gradwatch.events import Moment
from tests.profiles import profile


def shaped(rate: float, **fields):
    curve = np.exp(rate * np.arange(40))
    return dataclasses.replace(profile([curve[::-1]], curves=[curve]), **fields), curve


@pytest.mark.parametrize(
    ("kind", "said", "not_said"),
    [
        ("RNN", "use a gated cell", "forget-gate bias"),
        ("LSTM", "forget-gate bias of ln 40 = 3.7", "use a gated cell"),
        ("GRU", "update-gate bias of +ln 40 = 3.7", "use a gated cell"),
        ("MyCell", "an additive path through time", "forget-gate bias"),
    ],
)
def test_against_vanishing_it_is_the_cells(kind: str, said: str, not_said: str) -> None:
    """A plain recurrence is told of gates and initialisation, a gated one of its own gate's bias, another one of a path through time."""
    remedy = vanishing_remedy(*shaped(-1.0, kind=kind))
    assert said in remedy
    assert not_said not in remedy
    assert "normalise" not in remedy


def test_a_deep_stack_is_told_of_normalisation() -> None:
    """From three layers on."""
    assert "With 4 layers" in vanishing_remedy(*shaped(-1.0, layers=4))


def test_segments_are_no_remedy_before_the_horizon_is_longer() -> None:
    """Under truncated backpropagation it says so where next to nothing was measured beyond the cut, and nowhere else."""
    said = "Longer segments do not help"
    assert said in vanishing_remedy(*shaped(-1.0, truncated=True, cut_share=1e-4))
    assert said not in vanishing_remedy(*shaped(-1.0, truncated=True, cut_share=0.057))
    assert said not in vanishing_remedy(*shaped(-1.0, truncated=True))


def test_against_explosion_it_says_how_large_and_how_far() -> None:
    """It names the gradient's size at its largest, and after how many timesteps truncation would hold it: e^(0.5·4) = 7 is under 10."""
    made, curve = shaped(0.5)
    remedy = exploding_remedy(made, curve, in_total=True)
    assert f"at its largest {curve[-1]:.2g}, nearest to the loss 1" in remedy
    assert "Truncating backpropagation after 4 timesteps" in remedy
    assert "Shorter segments end it sooner: 4 timesteps instead of 40" in exploding_remedy(
        dataclasses.replace(made, truncated=True), curve, in_total=True
    )


def test_what_cancels_in_the_total_is_told_apart() -> None:
    """Where only single timesteps' gradients grow, there is nothing to clip yet."""
    assert "it does not show yet" in exploding_remedy(*shaped(0.5), in_total=False)


@pytest.mark.parametrize(("kind", "said"), [("RNN", "an orthogonal one of gain 1"), ("LSTM", "weight decay")])
def test_against_explosion_too_it_is_the_cells(kind: str, said: str) -> None:
    """A plain recurrence is told of its initialisation, a gated one of weight decay."""
    made, curve = shaped(0.5, kind=kind)
    assert said in exploding_remedy(made, curve, in_total=True)


def test_against_a_jump_it_names_the_ordinary_norm() -> None:
    """The level to clip at is that of the run itself."""
    detector = NormJumpDetector()
    events = [detector(norm, Moment(step)) for step, norm in enumerate([0.25] * 64 + [1e3])]
    assert "ordinary size, here about 0.25" in events[-1].remedy
