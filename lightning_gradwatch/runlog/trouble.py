"""What went wrong in a run that is in order by now: beside such a verdict it has to be said."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.events import ENDED, EventKind, Severity, closes_episode
from lightning_gradwatch.runlog.evidence import Evidence
from lightning_gradwatch.runlog.measures import Record
from lightning_gradwatch.thresholds import RISEN_LOSS

_NOT_FINITE = "something was not finite"
_WHAT = {
    EventKind.NONFINITE_LOSS: "the loss was not finite",
    EventKind.NONFINITE_INPUT: "an input was not finite",
    EventKind.NONFINITE_STATE: _NOT_FINITE,
    EventKind.NONFINITE_HIDDEN_GRADIENT: _NOT_FINITE,
    EventKind.NONFINITE_GRADIENT: _NOT_FINITE,
    EventKind.EXPLODING_HIDDEN_GRADIENT: "it exploded through time",
    EventKind.EXPLODING_GRADIENT: "the gradient norm jumped",
    EventKind.DIVERGED: "the loss was far above its start",
    EventKind.VANISHING_HIDDEN_GRADIENT: "it vanished",
    EventKind.SATURATED_GATES: "its gates were saturated",
    EventKind.FEW_TIMESTEPS_REACHED: "the loss reached few of its timesteps",
    EventKind.ONE_SEQUENCE_REACHED: "the loss reached one of its sequences",
    EventKind.ZERO_GRADIENT: "every gradient was 0",
    EventKind.STEP_SKIPPED: "the optimizer step was skipped",
}
_NOT_GOT_OVER = (
    EventKind.CLIPPING_LIMITS_STEPS,
    EventKind.CLIPPING_WITHOUT_EFFECT,
    EventKind.WEIGHTS_UNCHANGED,
)
"""Of the whole training: nothing that a layer went through and got over."""

_MOST = 3
"""Steps that are named; of more the first ones."""

_GRAVE = (Severity.CRITICAL, Severity.WARNING)


def earlier(evidence: Evidence) -> str:
    """In a sentence, the warnings and critical events of this place, or of the whole model."""
    kinds: dict[str, list[Record]] = {}
    for event in evidence.everywhere:
        mine = event.get("module") is None or any(event is one for one in evidence.here)
        grave = event.get("severity") in _GRAVE and event["kind"] not in _NOT_GOT_OVER
        if mine and grave and not closes_episode(event):
            kinds.setdefault(event["kind"], []).append(event)
    if any(kind.startswith("NONFINITE") for kind in kinds):
        kinds.pop(EventKind.STEP_SKIPPED, None)  # that is why
    if not kinds:
        return ""
    told = [f"{_what(kind)} {_when(events, evidence.everywhere)}" for kind, events in kinds.items()]
    return f" Not all along: {'; '.join(told)}."


def is_unchanged(evidence: Evidence) -> bool:
    """Whether the weights get a gradient, and nothing changes them."""
    return any(event["kind"] == EventKind.WEIGHTS_UNCHANGED for event in evidence.here)


def risen_loss(evidence: Evidence) -> str:
    """In a sentence, that the loss is higher than it was in the first sample."""
    if not has_risen(evidence) or evidence.losses is None:
        return ""
    first, last = evidence.losses
    return f" The loss has risen, to {last:.3g} from {first:.3g}."


def has_risen(evidence: Evidence) -> bool:
    """Whether the losses of all the last samples are well above that of the first one, which may
    have been that of an easy batch.
    """
    return evidence.losses is not None and min(evidence.last_losses) > RISEN_LOSS * evidence.losses[0] > 0


def _what(kind: str) -> str:
    return next((said for known, said in _WHAT.items() if known == kind), f"{kind} was told")


def _when(events: Sequence[Record], everywhere: Sequence[Record]) -> str:
    steps = list(dict.fromkeys(event["step"] for event in events))
    if len(steps) == 1:
        return f"at step {steps[0]}{_over(events[0], everywhere)}"
    if len(steps) > _MOST:
        return f"at {len(steps)} steps, first at step {steps[0]}"
    return f"at steps {', '.join(map(str, steps[:-1]))} and {steps[-1]}"


def _over(event: Record, everywhere: Sequence[Record]) -> str:
    """By when it was over, where that is known."""
    for record in everywhere:
        same = all(record.get(name) == event.get(name) for name in ("kind", "module", "layer", "direction"))
        if same and closes_episode(record) and record["step"] >= event["step"]:
            ended = record.get("action") == ENDED
            return f" (over by step {record['step']})" if ended else " (not over when training ended)"
    return ""
