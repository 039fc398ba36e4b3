"""The words of a verdict, and what belongs to one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_gradwatch.events import Severity, StrEnum


class Verdict(StrEnum):
    """What is to be thought of one layer's gradient through time."""

    HEALTHY = "healthy"
    VANISHING = "vanishing"
    SHORTENED = "shortened"
    EXPLODING = "exploding"
    SATURATED = "saturated"
    NO_GRADIENT_THROUGH_TIME = "nothing flows through time"
    BARELY_REACHED = "barely reached"
    NOT_FINITE = "not finite"
    DIVERGED = "diverged"
    UNDECIDED = "undecided"
    NOT_OBSERVED = "not observed"


_SEVERITY = {
    Verdict.NOT_FINITE: Severity.CRITICAL,
    Verdict.DIVERGED: Severity.CRITICAL,
    Verdict.EXPLODING: Severity.WARNING,
    Verdict.VANISHING: Severity.WARNING,
    Verdict.SATURATED: Severity.WARNING,
    Verdict.BARELY_REACHED: Severity.WARNING,
    Verdict.NO_GRADIENT_THROUGH_TIME: Severity.WARNING,
}


@dataclass(frozen=True)
class LayerSummary:
    """One layer and direction of one module.

    Args:
        module, kind, layer, direction: which; ``layer`` and ``direction`` are
            None for a module never observed.
        timesteps: the longest sequence among the last samples.
        horizon: timesteps, median over the last samples; ``horizon_censored``: the
            gradient outlives the sequence.
        growth_rate: nats per timestep, median over the last samples.
        exact: whether every one of the last samples was.
        samples: sampled steps in the whole run; ``events``: events that name this place.
        verdict: one word; ``sentence``: the same in a sentence, without the place.
        inexact_reason: why the last sample that is not exact is not.
        horizon_range: from where to where the horizon moved in the last samples, in
            words; None where it hardly did.
        since: the step from which on ``verdict`` holds, where that is known.
        troubled: whether warnings or critical events came before a verdict that names none of them.
        cut_share: of the gradient over two segments of a sequence whose state is carried over, what
            the cut between them throws away; None where that is not known.
        unchanged: whether its weights get a gradient, and nothing changes them.
        risen: whether the loss of the last samples is well above that of the first.
        starves: some timesteps get under 1 % of the largest total gradient. Where none does,
            vanishing is no more than a note.
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
    horizon_range: str | None = None
    since: int | None = None
    inexact_reason: str = ""
    troubled: bool = False
    risen: bool = False
    cut_share: float | None = None
    unchanged: bool = False

    def truncation(self) -> dict[str, Any]:
        """An entry of ``truncation`` in run.json: window, horizon within it, share of the gradient
        that the cut throws away.
        """
        names = ("module", "layer", "direction", "timesteps", "horizon", "horizon_censored", "cut_share")
        return {name: getattr(self, name) for name in names}

    @property
    def line(self) -> str:
        """The whole verdict in one line of text."""
        return f"{self.place}{f' ({self.kind})' if self.kind else ''}: {self.said}. {self.sentence}"

    @property
    def said(self) -> str:
        """The verdict, and since when: ``not finite since step 12``; ``healthy now`` where it was
        not so all along.
        """
        still = ", but nothing changes its weights" * self.unchanged
        if self.verdict is Verdict.HEALTHY:
            return f"healthy{' now' * self.troubled}{', but the loss has risen' * self.risen}{still}"
        return f"{self.verdict}{'' if self.since is None else f' since step {self.since}'}{still}"

    @property
    def severity(self) -> Severity | None:
        """How grave the verdict is; None where nothing is wrong, or nothing is known."""
        severity = Severity.INFO if self.is_note else _SEVERITY.get(self.verdict)
        return Severity.WARNING if self.unchanged and severity in (None, Severity.INFO) else severity

    @property
    def is_note(self) -> bool:
        """Whether the gradient vanishes and no timestep starves of it: nothing to be
        alarmed about, as the event says too.
        """
        return self.verdict is Verdict.VANISHING and not self.starves

    @property
    def place(self) -> str:
        """Where, in words: ``rnn, layer 1 (reverse)``."""
        if self.layer is None:
            return self.module
        return f"{self.module}, layer {self.layer}" + (" (reverse)" if self.direction == "reverse" else "")
