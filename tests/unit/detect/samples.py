"""Profiles of a run, sample by sample, and what a detector says of them."""

from __future__ import annotations

import dataclasses

import numpy as np

from lightning_gradwatch.detect import NormJumpDetector
from lightning_gradwatch.events import Event, Moment
from tests.profiles import profile


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


def jumps(detector: NormJumpDetector, norms) -> list[Event]:
    found = [detector(float(norm), Moment(step)) for step, norm in enumerate(norms)]
    return [event for event in found if event is not None]
