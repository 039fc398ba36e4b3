"""What the watching of a fit finds: profiles and events, kept in
order until they are handed out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from lightning_gradwatch.engine.backward_pass import Step
from lightning_gradwatch.events import Event
from lightning_gradwatch.profile import Profile
from lightning_gradwatch.recurrent.capture.slots import Slots

Cells = Mapping[str, tuple[nn.Module, Slots | None]]
"""Qualified name → a cell, and where its state goes in and comes out, where that is known."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The profiles of one sampled backward pass."""

    profiles: list[Profile]
    step: Step


@dataclass(frozen=True, slots=True)
class Observation:
    """What was found since the last one.

    Args:
        samples: each with its profiles.
        events: in order.
        suspicious: whether something was out of the ordinary, so that the next
            steps are worth a closer look.
        norms: of all parameters' gradients, in each optimizer step whose gradient has arrived.
        cells: of the model's own, that the first step showed; ``Watch.adopt``
            takes those that can be measured.
    """

    samples: tuple[Sample, ...] = ()
    events: tuple[Event, ...] = ()
    suspicious: bool = False
    norms: tuple[float, ...] = ()
    cells: Cells = field(default_factory=dict[str, tuple[nn.Module, Slots | None]])


class Collector:
    """Gathers what is found in the course of a step, so that an
    error in its midst loses nothing.
    """

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._events: list[Event] = []
        self._norms: list[float] = []
        self.suspicious = False

    def add(self, event: Event | None) -> None:
        """Keep an event, if there is one."""
        if event is not None:
            self._events.append(event)

    def add_sample(self, profiles: list[Profile], step: Step) -> None:
        """Keep the profiles of a sampled backward pass."""
        self._samples.append(Sample(profiles, step))

    def add_norm(self, norm: float) -> None:
        """Keep the gradient norm of all parameters, of one optimizer step."""
        self._norms.append(norm)

    def take(self, cells: Cells | None = None) -> Observation:
        """Hand out what was gathered, once."""
        samples, events, norms = tuple(self._samples), tuple(self._events), tuple(self._norms)
        observation = Observation(samples, events, self.suspicious, norms, cells or {})
        for kept in (self._samples, self._events, self._norms):
            kept.clear()
        self.suspicious = False
        return observation
