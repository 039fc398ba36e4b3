"""What is kept of the losses between two steps."""

from __future__ import annotations

import copy
import pickle

import torch

from lightning_gradwatch.clip.step.losses import MOST, PassLosses


def test_a_step_has_the_losses_of_its_passes() -> None:
    """Those of the passes before it, for each optimizer that steps; the next pass begins anew."""
    losses = PassLosses()
    losses.begin_pass(torch.tensor(1.0))
    losses.begin_pass(None)
    losses.begin_pass(torch.tensor(2.0))
    assert [float(one) for one in losses.of_step()] == [1, 2]
    assert [float(one) for one in losses.of_step()] == [1, 2]
    losses.begin_pass(torch.tensor(3.0))
    assert [float(one) for one in losses.of_step()] == [3]


def test_they_do_not_pile_up() -> None:
    """Where no step is ever taken."""
    losses = PassLosses()
    for value in range(MOST + 5):
        losses.begin_pass(torch.tensor(float(value)))
    assert float(losses.of_step()[0]) == 5
    assert len(losses.of_step()) == MOST


def test_a_copy_has_none() -> None:
    """A loss with a graph can neither be copied nor pickled."""
    losses = PassLosses()
    losses.begin_pass(torch.ones((), requires_grad=True) * 2)
    assert copy.deepcopy(losses).of_step() == pickle.loads(pickle.dumps(losses)).of_step() == []
    assert len(losses.of_step()) == 1
