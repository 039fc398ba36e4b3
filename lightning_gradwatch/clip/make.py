"""Policies by name."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gradwatch.clip.autoclip import AutoClip
from lightning_gradwatch.clip.norm import Norm
from lightning_gradwatch.clip.policy import ClipPolicy
from lightning_gradwatch.clip.spike import Spike
from lightning_gradwatch.clip.zclip import ZClip

POLICIES: dict[str, Callable[[], ClipPolicy]] = {"norm": Norm, "autoclip": AutoClip, "zclip": ZClip, "spike": Spike}
"""What each name stands for; a name means the policy with its defaults."""


def make_policy(policy: str | ClipPolicy) -> ClipPolicy:
    """A policy from its name, or the one given.

    Raises:
        ValueError: no policy has this name.
        TypeError: neither a name nor a policy.
    """
    if isinstance(policy, str):
        if policy.lower() not in POLICIES:
            names = ", ".join(f'"{name}"' for name in POLICIES)
            raise ValueError(
                f"`policy` must be one of {names}, or a ClipPolicy; found {policy!r}. "
                'Use "spike" for the default, or an instance such as Norm(max_norm=0.5) to set arguments.'
            )
        return POLICIES[policy.lower()]()
    if isinstance(policy, type) or not isinstance(policy, ClipPolicy):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            "`policy` must be a name or an object with `decide`, `state_dict` and `load_state_dict`; "
            f"found {policy!r}. Pass an instance, such as Norm(max_norm=0.5)."
        )
    return policy
