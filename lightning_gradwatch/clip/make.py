"""Policies by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from lightning_gradwatch.clip.policies.adagc import AdaGC
from lightning_gradwatch.clip.policies.agc import AGC
from lightning_gradwatch.clip.policies.aggc import AGGC
from lightning_gradwatch.clip.policies.autoclip import AutoClip
from lightning_gradwatch.clip.policies.norm import Norm
from lightning_gradwatch.clip.policies.spike import Spike
from lightning_gradwatch.clip.policies.value import Value
from lightning_gradwatch.clip.policies.zclip import ZClip
from lightning_gradwatch.clip.policy import ClipPolicy
from lightning_gradwatch.clip.tensor_policy import TensorPolicy

POLICIES: dict[str, Callable[[], ClipPolicy | TensorPolicy]] = {
    "spike": Spike,
    "norm": Norm,
    "value": Value,
    "autoclip": AutoClip,
    "zclip": ZClip,
    "agc": AGC,
    "adagc": AdaGC,
    "aggc": AGGC,
}
"""What each name stands for; a name means the policy with its defaults."""


def make_policy(policy: str | ClipPolicy | TensorPolicy, argument: str = "policy") -> ClipPolicy | TensorPolicy:
    """A policy from its name, or the one given.

    Args:
        argument: what an error calls it.

    Raises:
        ValueError: no policy has this name.
        TypeError: neither a name nor a policy.
    """
    if isinstance(policy, str):
        if policy.lower() not in POLICIES:
            names = ", ".join(f'"{name}"' for name in POLICIES)
            raise ValueError(
                f"`{argument}` must be one of {names}, or a ClipPolicy or TensorPolicy; found {policy!r}. "
                'Use "spike" for the default, or an instance such as Norm(max_norm=0.5) to set arguments.'
            )
        return POLICIES[policy.lower()]()
    if isinstance(policy, type) or not isinstance(policy, ClipPolicy | TensorPolicy):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"`{argument}` must be a name or an object with `decide` (or `clip_`), `state_dict` and `load_state_dict`; "
            f"found {policy!r}. Pass an instance, such as Norm(max_norm=0.5)."
        )
    if isinstance(policy, ClipPolicy):
        _require_reading(policy, argument)
    return policy


def _require_reading(policy: ClipPolicy, argument: str) -> None:
    """See before training that ``decide`` takes a StepReading.

    Raises:
        TypeError: it takes a norm.
    """
    parameters = inspect.signature(policy.decide).parameters
    if "parameter_norm" in parameters or next(iter(parameters), "") == "norm":
        raise TypeError(
            f"`{argument}` must have a `decide` that takes one StepReading; that of {type(policy).__name__} takes a norm. "
            "Write `def decide(self, reading)` and use `reading.norm`."
        )
