"""What a clipping policy is: a norm in, a decision out, and a state that survives a checkpoint."""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

_P = TypeVar("_P")


@dataclass(frozen=True)
class Decision:
    """What a policy says about one step.

    Args:
        threshold: the bound that the norm was held against, in the norm's
            unit; None while there is none yet.
        coefficient: what the gradients are multiplied by, in (0, 1]; 1.0 leaves them untouched.
            Only a policy ``as_published`` may return NaN here, where its original does. Of a policy
            that clips tensors it is the norm after, divided by the norm before; over 1 only with
            ``AGGC(raise_small=True)``.
        share: of a policy that clips tensors, the share of what it
            judges that was clipped; else None.
        reason: why the step was clipped, in a sentence; empty where the policy does not say.
    """

    threshold: float | None
    coefficient: float
    share: float | None = None
    reason: str = ""

    @property
    def clipped(self) -> bool:
        """Whether anything was."""
        return self.coefficient < 1.0 or bool(self.share)


@dataclass(frozen=True)
class StepReading:
    """What is known of one step before it is taken; what is not known is None.

    Args:
        norm: the gradient's L2 norm.
        parameter_norm: that of the parameters; given while the policy has a true
            ``wants_parameter_norm``.
        step_size: how far the optimizer moves the parameters per unit of the norm, in this step:
            SGD's learning rate. None where it does not go along the gradient (Adam); given while
            the policy has a true ``wants_step_size``.
        loss: the mean over all processes; given while the policy has a true ``wants_loss``.
        direct_norm: L2 norm of what the loss sends to the outputs of the recurrent modules, before
            it flows back through time; given while the policy has a true ``wants_growth``, in one
            process, of modules that run over a whole sequence in a call.
        growth: norm of the recurrent weights' gradient per unit of ``direct_norm``. It says nothing
            by itself; beside that of other steps of the run it tells how the gradient grew through
            time.
        momentum: of SGD, the share of a step that it adds to the next one.
    """

    norm: float
    parameter_norm: float | None = None
    step_size: float | None = None
    loss: float | None = None
    direct_norm: float | None = None
    growth: float | None = None
    momentum: float = 0.0


@runtime_checkable
class ClipPolicy(Protocol):
    """A rule for adaptive clipping by the global norm. One instance serves one optimizer.

    A policy of your own needs these three methods and nothing else::

        class Halfway:
            def decide(self, reading: StepReading) -> Decision:
                return Decision(1.0, min(1.0, reading.norm**-0.5))

            def state_dict(self) -> dict[str, Any]:
                return {}

            def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...

    ``AdaptiveClip`` hands it only norms that are finite and greater than zero. What else a
    :class:`StepReading` holds is measured while the policy has an attribute that asks for it.
    """

    def decide(self, reading: StepReading) -> Decision:
        """Judge one step by what was read of it, and remember what later decisions need."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state, of int, float, str, bool, None, list and dict only
        (``torch.load(weights_only=True)``).
        """
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state that :meth:`state_dict` gave."""
        ...


def usable(norm: float) -> bool:
    """Whether a norm may enter a history: finite and greater than zero."""
    return math.isfinite(norm) and norm > 0.0


def bounded(norm: float, threshold: float) -> Decision:
    """Scale by threshold/norm where the norm exceeds the threshold
    (Pascanu et al. 2013, algorithm 1).
    """
    return Decision(threshold, ratio(threshold, norm) if norm > threshold else 1.0)


def ratio(target: float, norm: float) -> float:
    """The coefficient that brings ``norm`` to ``target``; never 0, which
    would drop the gradient for good.
    """
    return max(target / norm, sys.float_info.min)


def describe(policy: object) -> str:
    """A text that is the same in every process for the same policy with the same arguments."""
    arguments = getattr(policy, "arguments", None)
    listed = ", ".join(f"{name}={value!r}" for name, value in arguments().items()) if callable(arguments) else ""  # pyright: ignore
    return f"{type(policy).__qualname__}({listed})"


class StatelessMixin:
    """For policies that remember nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""


class ArgumentsMixin:
    """Keeps a policy's arguments as public attributes, and shows them."""

    _arguments: tuple[str, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """The arguments by name."""
        return {name: getattr(self, name) for name in self._arguments}

    def __repr__(self) -> str:
        return describe(self)


def copy_of(policy: _P) -> _P:
    """An independent policy in the same state, for another optimizer."""
    return copy.deepcopy(policy)
