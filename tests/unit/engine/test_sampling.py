"""Which steps are measured, and how many more after an anomaly."""

from __future__ import annotations

import pytest

from lightning_gradwatch.engine.sampling import Sampling, closer_steps


def measured(sampling: Sampling, modules: list[str], steps: range) -> list[int]:
    """The steps of ``steps`` that are due, each noted as measured."""
    found: list[int] = []
    for step in steps:
        if sampling.due(modules, (step, step), again=False):
            sampling.note(modules, (step, step))
            found.append(step)
    return found


def test_the_first_step_and_one_in_every_n() -> None:
    """Also where a training is resumed in between."""
    assert measured(Sampling(10), ["rnn"], range(25)) == [0, 10, 20]
    assert measured(Sampling(10), ["rnn"], range(7, 25)) == [7, 10, 20]


def test_of_modules_that_take_turns_neither_is_missed() -> None:
    """A module that is reached at odd steps only is sampled as often as one at even steps."""
    sampling = Sampling(10)
    even = [step for step in range(0, 40, 2) if measured(sampling, ["even"], range(step, step + 1))]
    odd = [step for step in range(1, 40, 2) if measured(sampling, ["odd"], range(step, step + 1))]
    assert even == [0, 10, 20, 30]
    assert odd == [1, 11, 21, 31]


def test_micro_batches_of_one_batch_are_measured_once() -> None:
    """Unless the training calls backward by itself: there each backward pass is another part of it."""
    sampling = Sampling(10)
    sampling.note(["rnn"], (0, 0))
    assert not sampling.due(["rnn"], (0, 0), again=False)
    assert sampling.due(["rnn"], (0, 0), again=True)


@pytest.mark.parametrize(
    ("every", "expected"),
    [(1, []), (2, [11]), (4, [11, 12, 13, 15]), (16, [11, 12, 13, 14, 16, 20, 28])],
)
def test_a_closer_look_thins_out(every: int, expected: list[int]) -> None:
    """Four steps in a row, then ever further apart, until the ordinary distance is reached."""
    assert closer_steps(10, every) == expected


def test_a_closer_look_does_not_begin_in_another() -> None:
    """A second anomaly a few steps later asks for nothing more."""
    sampling = Sampling(50)
    sampling.look_closer((10, 10))
    sampling.look_closer((12, 12))
    assert [step for step in range(10, 30) if sampling.is_closer(["rnn"], (step, step))] == [11, 12, 13, 14, 16, 20, 28]
