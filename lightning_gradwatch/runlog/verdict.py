"""The words of a verdict, and what belongs to one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What is to be thought of one layer's gradient through time."""

    HEALTHY = "healthy"
    VANISHING = "vanishing"
    SHORTENED = "shortened"
    EXPLODING = "exploding"
    BARELY_REACHED = "barely reached"
    NOT_FINITE = "not finite"
    DIVERGED = "diverged"
    UNDECIDED = "undecided"
    NOT_OBSERVED = "not observed"


@dataclass(frozen=True)
class LayerSummary:
    """One layer and direction of one module.

    Args:
        module, kind, layer, direction: which; ``layer`` and ``direction`` are None for a module never observed.
        timesteps: the longest sequence among the last samples.
        horizon: timesteps, median over the last samples; ``horizon_censored``: the gradient outlives the sequence.
        growth_rate: nats per timestep, median over the last samples.
        exact: whether every one of the last samples was.
        samples: sampled steps in the whole run; ``events``: events that name this place.
        verdict: one word; ``sentence``: the same in a sentence, without the place.
        starves: some timesteps get under 1 % of the largest total gradient. Where none does, vanishing is no more than a note.
    """

    module: str
    kind: str
    layer: int | None
    direction: str | None
    timesteps: int
    horizon: int | None
    horizon_censored: bool
    growth_rate: float | None
    exact: bool
    samples: int
    events: int
    verdict: Verdict
    sentence: str
    starves: bool = False

    @property
    def line(self) -> str:
        """The whole verdict in one line of text."""
        return f"{self.place}{f' ({self.kind})' if self.kind else ''}: {self.verdict}. {self.sentence}"

    @property
    def is_note(self) -> bool:
        """Whether the gradient vanishes and no timestep starves of it: nothing to be alarmed about, as the event says too."""
        return self.verdict is Verdict.VANISHING and not self.starves

    @property
    def place(self) -> str:
        """Where, in words: ``rnn, layer 1 (reverse)``."""
        if self.layer is None:
            return self.module
        return f"{self.module}, layer {self.layer}" + (" (reverse)" if self.direction == "reverse" else "")
