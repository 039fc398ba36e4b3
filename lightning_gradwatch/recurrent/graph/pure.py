"""Code in the graph that may run twice in one backward pass."""

from __future__ import annotations

from typing import Any

PURE = ("torch._functorch", "torch._dynamo", "torch.autograd.graph", "lightning_gradwatch")
"""Whose Python code in the graph may run twice: compiled functions, ``save_on_cpu``, and
our own, which rests meanwhile.
"""


def is_pure(code: Any) -> bool:
    """Whether running it twice in one backward pass changes nothing."""
    owner = getattr(code, "__self__", None)
    module = type(owner).__module__ if owner is not None else getattr(code, "__module__", None)
    return (module or "").startswith(PURE)
