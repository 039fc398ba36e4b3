"""How a hidden state's gradient came to be not finite: from outside, in the cell's own
arithmetic, or by growth through time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from lightning_gradwatch.detect.suspects import Suspect, remedies, suspects, told
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.recurrent.graph.between import is_reached, nodes_between

OUTSIDE_REMEDY = (
    "Look at what stands between this state and the loss for an operation whose slope is infinite or undefined at what it was given "
    "(a root, a logarithm or a division at 0, a softmax over nothing but -inf, what where() hides), and for a hook on the tensor. "
    "Clipping cannot mend it; {clip} only skips such a step."
)
ARITHMETIC_REMEDY = (
    "Look at the cell's forward for an operation whose value or slope is infinite or undefined at what it was given: a root, a logarithm, "
    "a norm in a divisor, a surrogate's formula. Clipping cannot mend it; {clip} only skips such a step."
)
GROWTH_REMEDY = (
    "The backward recurrence overflowed: use {clip}, lower the learning rate, shorten the sequences "
    "(truncated BPTT), or initialise the recurrent weight orthogonally (Pascanu et al. 2013)."
)
HUGE_REMEDY = "The gradient was huge where it came in: scale the loss or its targets down. {clip} skips such a step."

GREW = 100.0
"""A gradient that grew by less than this on its way was huge where it came in."""


@dataclass(slots=True)
class WayBack:
    """The way from the loss to the recurrent calls of a step, of which those looked
    at so far have finite gradients.

    Args:
        loss: of the step; None if it is not known. ``value`` is what it was.
    """

    loss: Tensor | None = None
    value: float | None = None
    _starts: list[Node | None] = field(default_factory=list[Node | None])
    _past: set[Node] = field(default_factory=set[Node])

    def passed(self, outputs: Sequence[Node | None], inputs: Sequence[Node | None]) -> None:
        """A call whose gradients are finite: what comes through it begins at its inputs."""
        self._past.update(node for node in outputs if node is not None)
        self._starts += inputs

    def between(self, targets: Sequence[Node]) -> list[Node]:
        """The operations on the way to where a gradient arrives, from the
        loss or from the calls passed.
        """
        roots = [*self._root(), *self._starts]
        return nodes_between(roots, set(targets), self._past - set(targets)) if targets else []

    def is_outside(self, targets: Sequence[Node]) -> bool:
        """Whether the loss sends a gradient there past the calls that were
        passed; true where it is not known.
        """
        return not targets or any(self.is_direct(target, list(self._past - {target})) for target in targets)

    def from_later(self, targets: Sequence[Node]) -> dict[str, str]:
        """Message and remedy of a gradient that comes from later
        calls alone, whose own are finite.
        """
        named = suspects(self.between(targets))
        message = f"The gradient that comes back to {{place}} from a later call is {{value}}, though its own are finite. {told(named)}"
        return {"message": message.rstrip(), "remedy": mend(named, "")}

    def is_direct(self, target: Node, past: Sequence[Node]) -> bool:
        """Whether the loss reaches a place without passing through
        ``past``; true where it is not known.
        """
        return self.loss is None or is_reached(self._root(), target, set(past))

    def outside(self, targets: Sequence[Node]) -> dict[str, str]:
        """Message and remedy of a gradient that is not finite where it arrives."""
        named = suspects(self.between(targets))
        loss = f", although the loss is finite ({self.value:.4g})" if self.value is not None else ""
        message = (
            f"The gradient that arrives at {{place}} from outside the recurrence is {{value}}{loss}. {told(named)}"
        )
        return {"message": message.rstrip(), "remedy": mend(named, OUTSIDE_REMEDY)}

    def _root(self) -> list[Node | None]:
        return [] if self.loss is None else [self.loss.grad_fn]


def on_the_way(entered: float, before: float, largest: float, step: int) -> dict[str, str] | None:
    """Detail and remedy of a gradient that overflowed, if it was large enough for that.

    Args:
        entered: its norm where the gradient came in; ``before``: at the
            last step at which it was finite.
        largest: number of its format.
        step: index of that timestep.
    """
    if not math.isfinite(before) or before < math.sqrt(largest):
        return None
    if before < GREW * entered:
        return {
            "detail": f"It was {entered:.3g} where it came in, and overflowed on the way.",
            "remedy": HUGE_REMEDY,
        }
    return {
        "detail": f"It had grown from {entered:.3g}, where it came in, to {before:.3g} at timestep {step}, and then overflowed.",
        "remedy": GROWTH_REMEDY,
    }


def in_arithmetic(before: float, step: int, nodes: Sequence[Node], *, only: bool) -> dict[str, str]:
    """Detail and remedy where the gradient of the step before, on the way
    back, was finite and not large.

    Args:
        nodes: the operations between the two states.
        only: whether nothing but the recurrence uses the state.
    """
    named = suspects(nodes)
    came = f"The gradient that came back to timestep {step} is finite and not large ({before:.3g})"
    other = "" if only else ", or in what else uses this state"
    message = f"The gradient of {{place}} became {{value}} in the cell's own arithmetic at timestep {step}{other}. {came}. {told(named)}"
    return {"message": message.rstrip(), "remedy": mend(named, ARITHMETIC_REMEDY if only else OUTSIDE_REMEDY)}


def made_in_arithmetic(nodes: Sequence[Node]) -> dict[str, str]:
    """Detail and remedy of a state that a cell made so, of finite numbers that are not large.

    Args:
        nodes: the operations of the cell's forward.
    """
    named = suspects(nodes)
    return {
        "detail": f"It began in the cell's own arithmetic. {told(named)}".rstrip(),
        "remedy": mend(named, ARITHMETIC_REMEDY),
    }


def hidden_gradient(moment: Moment, fields: Mapping[str, Any], cause: Mapping[str, Any] | None = None) -> Event:
    """The event of a hidden state's gradient.

    Args:
        fields: with what is known of how it came to be: a ``message`` may
            hold ``{place}`` and ``{value}``.
        cause: fields of a weight that is not finite, which then takes the
            place of what is known besides.
    """
    words = {"message", "remedy", "detail"} & fields.keys()
    plain = {name: value for name, value in fields.items() if not (cause and name in words)} | dict(cause or {})
    message = plain.pop("message", "")
    event = moment.event(EventKind.NONFINITE_HIDDEN_GRADIENT, **plain)
    message = message.replace("{place}", event.place).replace("{value}", str(event.value))
    return dataclasses.replace(event, message=message) if message else event


def bad_gradient(name: str, parameter: Tensor, value: float, way: WayBack, *, seen: bool) -> dict[str, str]:
    """Texts of the event of a parameter's gradient that alone is not finite.

    Args:
        seen: whether there are recurrent calls, whose states and gradients were found finite.
    """
    with torch.enable_grad():  # without it PyTorch 2.2 finds no edge of a leaf
        goals = [get_gradient_edge(parameter).node] if parameter.requires_grad else []
    named = suspects(way.between(goals) if goals else ())
    texts = {"detail": told(named), "remedy": mend(named, "")}
    if not seen:
        loss = "" if way.value is None else ", although the loss is finite"
        texts["message"] = f"The gradient of parameter {name} is {value}{loss}. {texts['detail']}".rstrip()
    return {key: text for key, text in texts.items() if text}


def largest_number(tensor: Tensor) -> float:
    """That its format holds."""
    return torch.finfo(tensor.dtype).max


def mend(named: list[Suspect], otherwise: str) -> str:
    advice = remedies(named)
    return f"{advice} Clipping cannot mend it; {{clip}} only skips such a step." if advice else otherwise
