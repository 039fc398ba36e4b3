"""Which recurrent modules a model has."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of a qualified name that compilers and wrappers put in."""


def plain_name(name: str) -> str:
    """A qualified name without what wrappers put into it; ``model`` for the model itself."""
    return ".".join(part for part in name.split(".") if part and part not in WRAPPERS) or "model"


def discover(model: nn.Module, patterns: Sequence[str] | None = None) -> dict[str, nn.RNNBase]:
    """Qualified name → fused recurrent module (``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and what derives from them).

    Args:
        patterns: shell-style patterns of qualified names; None takes all.

    Raises:
        ValueError: a pattern matches none of the recurrent modules.
    """
    found = {plain_name(name): module for name, module in model.named_modules() if isinstance(module, nn.RNNBase)}
    if patterns is None:
        return found
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            names = ", ".join(found) or "none"
            raise ValueError(
                f"`modules` must match a recurrent module; {pattern!r} matches none of those there are: {names}. "
                'Use GradWatch(modules="auto") to watch them all.'
            )
    return {name: m for name, m in found.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
