"""What went wrong, where, and what to do about it: the one
vocabulary that every part reports in.
"""

# Over 300 lines: the vocabulary of events is one list, with the texts that every view shows.
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from lightning_gradwatch.tools import Tools, tools_at_hand


class StrEnum(str, Enum):  # Python 3.10 has none of its own
    """Texts, which print as such."""

    __str__ = str.__str__
    __format__ = str.__format__


class Severity(StrEnum):
    """How much an event matters: ``info`` is a note, ``warning`` wants a
    look, ``critical`` spoils the run.
    """

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True)
class _Text:
    """The remedy may hold the fields of :class:`Tools`."""

    severity: Severity
    message: str
    remedy: str


class EventKind(StrEnum):
    """Every kind of event. A kind carries its severity, its message and its remedy,
    shown alike wherever it appears.
    """

    NONFINITE_LOSS = "NONFINITE_LOSS"
    NONFINITE_INPUT = "NONFINITE_INPUT"
    NONFINITE_STATE = "NONFINITE_STATE"
    NONFINITE_HIDDEN_GRADIENT = "NONFINITE_HIDDEN_GRADIENT"
    NONFINITE_GRADIENT = "NONFINITE_GRADIENT"
    EXPLODING_HIDDEN_GRADIENT = "EXPLODING_HIDDEN_GRADIENT"
    EXPLODING_GRADIENT = "EXPLODING_GRADIENT"
    DIVERGED = "DIVERGED"
    VANISHING_HIDDEN_GRADIENT = "VANISHING_HIDDEN_GRADIENT"
    SATURATED_GATES = "SATURATED_GATES"
    FEW_TIMESTEPS_REACHED = "FEW_TIMESTEPS_REACHED"
    ONE_SEQUENCE_REACHED = "ONE_SEQUENCE_REACHED"
    NO_GRADIENT_THROUGH_TIME = "NO_GRADIENT_THROUGH_TIME"
    ZERO_GRADIENT = "ZERO_GRADIENT"
    WEIGHTS_UNCHANGED = "WEIGHTS_UNCHANGED"
    SCAN_MISMATCH = "SCAN_MISMATCH"
    AMP_OVERFLOW = "AMP_OVERFLOW"
    GRADIENT_CLIPPED = "GRADIENT_CLIPPED"
    CLIPPING_LIMITS_STEPS = "CLIPPING_LIMITS_STEPS"
    CLIPPING_WITHOUT_EFFECT = "CLIPPING_WITHOUT_EFFECT"
    STEP_SKIPPED = "STEP_SKIPPED"
    NOT_OBSERVED = "NOT_OBSERVED"

    @property
    def severity(self) -> Severity:
        """The severity that events of this kind have unless their maker says otherwise."""
        return _TEXTS[self].severity

    @property
    def page(self) -> str:
        """The name of the page that explains it, in the documentation and for
        ``gradwatch explain``: ``not-observed``.
        """
        return self.value.lower().replace("_", "-")

    @property
    def message(self) -> str:
        """The message template; its fields are those of :class:`Event`, and
        ``place``, ``what``, ``detail``, and the noun ``timesteps``.
        """
        return _TEXTS[self].message

    @property
    def remedy(self) -> str:
        """What to do about it, in a sentence or two, with a Trainer."""
        return self.remedy_with(tools_at_hand(in_loop=False))

    def remedy_with(self, tools: Tools) -> str:
        """What to do about it, with what is at hand."""
        return tools.fill(_TEXTS[self].remedy)


_TEXTS: dict[EventKind, _Text] = {
    EventKind.NONFINITE_LOSS: _Text(
        Severity.CRITICAL,
        "The loss is {value} although every recurrent input and state is finite.{detail}",
        "Look at what stands between the recurrent output and the loss: a log or a division of 0, an overflowing exp, "
        "a target out of range. {clipper} skips such a step.",
    ),
    EventKind.NONFINITE_INPUT: _Text(
        Severity.CRITICAL,
        "The input of {place} holds {value}.{detail}",
        "Look at this sequence of this batch in the data, and at the layers in front of the recurrent one. "
        "{clipper} skips such a step, so that the weights stay finite.",
    ),
    EventKind.NONFINITE_STATE: _Text(
        Severity.CRITICAL,
        "The {what} of {place} became {value} in the forward pass, from a finite input.{detail}",
        "If a parameter is named, it is not finite: go back to a checkpoint from before it was spoilt, and clip or "
        "lower the learning rate. Otherwise the state outgrew its number format: use a gated cell, a normalisation, or a wider dtype.",
    ),
    EventKind.NONFINITE_HIDDEN_GRADIENT: _Text(
        Severity.CRITICAL,
        "On its way back from the loss, the gradient of {place} became {value}.{detail}",
        "Where it arrives so from outside, or begins in the cell's own arithmetic, look for an operation with an infinite slope: a root, a "
        "logarithm or a division at 0. Where it grew until it overflowed, use {clip}, lower the learning rate, or shorten the "
        "sequences (Pascanu et al. 2013). The event says which.",
    ),
    EventKind.NONFINITE_GRADIENT: _Text(
        Severity.CRITICAL,
        "The gradient of {place} is {value} although the recurrent states and their gradients are finite.{detail}",
        "Look at the operation that this parameter enters. {clipper} skips such a step, so that the weights stay finite.",
    ),
    EventKind.EXPLODING_HIDDEN_GRADIENT: _Text(
        Severity.WARNING,
        "The gradient of {place} grows {value:.3g}-fold on its way back through time (bound {threshold:.3g}).{detail}",
        "Use {clip}, which brings such steps back to their ordinary size (Pascanu et al. 2013); lower the learning rate, "
        "shorten the sequences, or initialise the recurrent weight orthogonally.",
    ),
    EventKind.EXPLODING_GRADIENT: _Text(
        Severity.WARNING,
        "The gradient norm of {place} jumped to {value:.3g}; an ordinary step stays under {threshold:.3g}.{detail}",
        "Use {clip}, which brings such a step back to its ordinary size; lower the learning rate if it happens often.",
    ),
    EventKind.DIVERGED: _Text(
        Severity.WARNING,
        "The training has diverged: the loss is {value:.4g}, and was {threshold:.4g} at the start.{detail}",
        "Begin anew with a learning rate ten times lower, or let it rise slowly (warm-up). Clipping alone does not shorten the steps of "
        "Adam and its like, which rescale the gradient.",
    ),
    EventKind.VANISHING_HIDDEN_GRADIENT: _Text(
        Severity.WARNING,
        "The gradient of {place} falls under 1 % after {value:.0f} {timesteps}.{detail}",
        "What lies further back cannot be learned. Use a gated cell (nn.LSTM, nn.GRU), start an LSTM's forget-gate bias at ln T for T "
        "timesteps (Tallec and Ollivier 2018), or initialise the recurrent weight orthogonally or as the identity (Le et al. 2015).",
    ),
    EventKind.SATURATED_GATES: _Text(
        Severity.WARNING,
        "Little gradient reaches the weights of {place}: {value:.2g} times what the loss sends to its hidden states "
        "(bound {threshold:.2g}).{detail}",
        "Standardise the inputs, or begin with smaller weights and a lower learning rate: a saturated gate has no slope that a gradient "
        "could pass through.",
    ),
    EventKind.FEW_TIMESTEPS_REACHED: _Text(
        Severity.WARNING,
        "The loss reaches {place} at {value:.0f} of its timesteps only.{detail}",
        "Read the state where it has seen the whole sequence: the final state h_n, of both directions where there are two, or the output "
        "at all timesteps. Where the loss belongs to early timesteps alone, cut the sequences behind it.",
    ),
    EventKind.ONE_SEQUENCE_REACHED: _Text(
        Severity.WARNING,
        "The loss reaches {value:.0f} of the {threshold:.0f} sequences of {place} only.{detail}",
        "See which axis of the input is time, and which one the loss reads. If one sequence alone "
        "is meant to be learned from, there is nothing to do.",
    ),
    EventKind.NO_GRADIENT_THROUGH_TIME: _Text(
        Severity.WARNING,
        "No gradient flows through time in {place}.{detail}",
        "Pass the state of one step on to the next without detach() and without a new initial state. "
        "If that is meant, there is nothing to do.",
    ),
    EventKind.ZERO_GRADIENT: _Text(
        Severity.WARNING,
        "The gradient of every parameter of the model is exactly 0: nothing is learned.{detail}",
        "Look at what the loss is made of, from its end: a factor or a mask of 0, a clamp or a relu on its flat side, a round "
        "or an argmax. Under float16 it may be gradients too small for it: use a loss scale, or bfloat16.",
    ),
    EventKind.WEIGHTS_UNCHANGED: _Text(
        Severity.WARNING,
        "None of the weights of {place} changes, although they get a gradient.{detail}",
        "Give them to the optimizer: those of the whole model, self.parameters(), and not those of a part of it, or of a copy. If "
        "the module is meant to stay as it is, module.requires_grad_(False) says so, and saves its part of the backward pass.",
    ),
    EventKind.SCAN_MISMATCH: _Text(
        Severity.WARNING,
        "From {place} on, the states differ from a·h + b of the state before and the inputs that were named, by {value:.2g} of their "
        "size (rounding explains {threshold:.2g}).{detail}",
        "Compare the parallel form with a loop over the timesteps on one batch, in float64. If it is right, what was named as decay and "
        "inputs is not what the scan is given: a decay of another timestep (off by one), before its exp or sigmoid, or inputs "
        "without their factor (1 − a, Δ).",
    ),
    EventKind.AMP_OVERFLOW: _Text(
        Severity.INFO,
        "Gradients overflowed under the loss scale {value}; the gradient scaler skips the step and lowers its scale.{detail}",
        "Nothing to do unless it does not end: then use {bfloat16}, or a smaller initial scale.",
    ),
    EventKind.GRADIENT_CLIPPED: _Text(
        Severity.INFO,
        "The gradient norm {value:.4g} was clipped to {threshold:.4g}.{detail}",
        "Nothing to do: this is what clipping is for. If it happens at most steps, lower the learning rate.",
    ),
    EventKind.CLIPPING_LIMITS_STEPS: _Text(
        Severity.WARNING, "Clipping acts on most of the steps.{detail}", "Raise the bound, so that it acts on a few."
    ),
    EventKind.CLIPPING_WITHOUT_EFFECT: _Text(
        Severity.WARNING, "Clipping is asked for and has no effect.{detail}", "Clip between backward pass and step."
    ),
    EventKind.STEP_SKIPPED: _Text(
        Severity.WARNING,
        "The optimizer step was skipped: the gradient norm is {value}.{detail}",
        "Weights and optimizer state are as they were. A single one is harmless; if it goes on, the events before it name "
        "the place where it began. A hidden state that the module carries from batch to batch keeps a NaN.",
    ),
    EventKind.NOT_OBSERVED: _Text(
        Severity.WARNING,
        "{place} was not observed.{detail}",
        "Call the module itself rather than its .forward, let its output reach the loss, or mark the hidden states with tap().",
    ),
}


ENDED = "ended"
"""The ``action`` of a record that closes an episode, with its peak. It has the kind of the
event that began it, and is a note.
"""

ONGOING = "ongoing"
"""The same where the episode still went on when training ended."""


def closes_episode(record: Mapping[str, Any]) -> bool:
    """Whether an event's record only says that, and how, an episode ended: it is no
    event of its own to be counted.
    """
    return record.get("action") in (ENDED, ONGOING)


@dataclass(frozen=True)
class Moment:
    """When in a training something was found.

    Args:
        step: optimizer steps done when the forward ran.
        epoch, batch_idx, rank: where in the training.
        loss: of that step, as the training step returned it; None where it is not known.
        follow_up: whether it is a sample soon after an anomaly, one of
            several that lie side by side.
        in_loop: whether it is in a loop of the user's own, and not in a Trainer's.
    """

    step: int
    epoch: int | None = None
    batch_idx: int | None = None
    rank: int = 0
    loss: float | None = None
    follow_up: bool = False
    in_loop: bool = False

    @property
    def tools(self) -> Tools:
        """What the user has at hand, by name."""
        return tools_at_hand(in_loop=self.in_loop)

    def event(self, kind: EventKind, *, remedy: str = "", **fields: Any) -> Event:
        """An event of this moment.

        Args:
            remedy: from the kind unless given. Where it holds ``{clipper}``, ``{clip}`` or
                ``{bfloat16}``, that becomes what the user has at hand.
        """
        mend = self.tools.fill(remedy) or kind.remedy_with(self.tools)
        return Event(kind, self.step, self.epoch, self.batch_idx, self.rank, remedy=mend, **fields)


@dataclass(frozen=True)
class Event:
    """One anomaly, located and explained. What does not apply is None.

    Args:
        kind: what happened.
        step: optimizer steps done when the forward ran.
        epoch, batch_idx, rank: where in the training.
        module: qualified name of the recurrent module; ``layer`` its layer, ``direction``
            ``forward`` or ``reverse``, ``state`` ``h``, ``c``, or the gate whose pre-activation it
            is: ``gate i``, ``gate f`` …, ``gate`` of a plain recurrence.
        timestep: index into the sequence as the caller counts it;
            ``sequence``: index into the batch.
        parameter: qualified name of a parameter.
        value, threshold: what was found and what it was held against, in the kind's unit.
        action: what was done about it (``skipped``, ``clipped`` …); ``ended``
            and ``ongoing`` close an episode.
        detail: a sentence more for the message.
        severity, message, remedy: from the kind unless given.
    """

    kind: EventKind
    step: int
    epoch: int | None = None
    batch_idx: int | None = None
    rank: int = 0
    module: str | None = None
    layer: int | None = None
    direction: str | None = None
    state: str | None = None
    timestep: int | None = None
    sequence: int | None = None
    parameter: str | None = None
    value: float | None = None
    threshold: float | None = None
    action: str | None = None
    detail: dataclasses.InitVar[str] = ""
    severity: Severity | None = None  # of the kind, unless given
    message: str = ""
    remedy: str = ""

    def __post_init__(self, detail: str) -> None:
        set_field = object.__setattr__
        if not self.severity:
            set_field(self, "severity", self.kind.severity)
        if not self.remedy:
            set_field(self, "remedy", self.kind.remedy)
        if not self.message:
            what = "pre-activation" if (self.state or "").startswith("gate") else "hidden state"
            detail = f" {detail}" if detail else ""
            timesteps = "timestep" if self.value == 1 else "timesteps"
            fields = {**self.__dict__, "place": self.place, "what": what, "detail": detail, "timesteps": timesteps}
            set_field(self, "message", self.kind.message.format_map(fields))

    @property
    def place(self) -> str:
        """Where, in words: ``rnn, layer 1 (reverse), timestep 17, sequence 3``."""
        parts = [self.module] if self.module else []
        if self.layer is not None:
            parts.append(f"layer {self.layer}" + (" (reverse)" if self.direction == "reverse" else ""))
        if self.state == "c":
            parts.append("cell state")
        elif (self.state or "").startswith("gate"):
            parts.append(str(self.state))
        if self.timestep is not None:
            parts.append(f"timestep {self.timestep}")
        if self.sequence is not None:
            parts.append(f"sequence {self.sequence}")
        if self.parameter:
            parts.append(f"parameter {self.parameter}")
        return ", ".join(parts) or "the model"

    def to_record(self) -> dict[str, Any]:
        """The event as one flat record of the run log."""
        return dataclasses.asdict(self)
