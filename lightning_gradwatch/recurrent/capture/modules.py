"""Which recurrent modules a model has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from lightning_gradwatch.plain import plain

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of a qualified name that compilers and wrappers put in."""


def plain_name(name: str) -> str:
    """A qualified name without what wrappers put into it; ``model`` for the model itself."""
    return ".".join(part for part in name.split(".") if part and part not in WRAPPERS) or "model"


def discover(model: nn.Module, patterns: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Qualified name → recurrent module: ``nn.RNN``, ``nn.LSTM``, ``nn.GRU``, their
    cells, and what derives from them.

    Args:
        patterns: shell-style patterns of qualified names; None takes all. A pattern may also name a
            module of one's own that is called once a timestep.

    Raises:
        ValueError: a pattern matches no recurrent module, nor any other.
    """
    named = {plain_name(name): module for name, module in model.named_modules()}
    recurrent = (nn.RNNBase, nn.RNNCellBase)
    found: dict[str, nn.Module] = {name: module for name, module in named.items() if isinstance(module, recurrent)}
    if patterns is None:
        return found
    chosen: dict[str, nn.Module] = {}
    for pattern in patterns:
        matching = {name: module for name, module in found.items() if fnmatchcase(name, pattern)}
        matching = matching or ({pattern: named[pattern]} if pattern in named else {})
        if not matching:
            names = plain(", ".join(found)) or "none"
            raise ValueError(
                f"`modules` must match a recurrent module; {pattern!r} matches none of those there are: {names}. "
                'Use modules="auto" to watch them all.'
            )
        chosen |= matching
    return chosen


def beside(model: nn.Module, known: Collection[nn.Module], *, holding: bool) -> MutableMapping[nn.Module, str]:
    """Module → qualified name of those of a model's modules that take hooks and are no part of
    ``known``; not the model itself.

    By identity: a metric's hash changes with what it has seen.

    Args:
        holding: those that hold a known one, too.
    """
    known = set(known)
    inside = {module for one in known for module in one.modules()}
    return WeakIdKeyDictionary(
        {
            module: plain_name(name)
            for name, module in model.named_modules()
            if name
            and module not in inside
            and not isinstance(module, torch.jit.ScriptModule)
            and (holding or known.isdisjoint(module.modules()))
        }
    )


def added(found: Mapping[str, nn.Module], known: Collection[nn.Module], patterns: Sequence[str] | None) -> list[str]:
    """Qualified names of those of the recurrent modules found that
    train and are not among ``known``.

    Args:
        patterns: as for :func:`discover`.
    """
    return [
        name
        for name, module in found.items()
        if module not in known
        and (patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns))
        and any(parameter.requires_grad for parameter in module.parameters())
    ]


def sharded(module: nn.Module) -> str | None:
    """Why a module whose weights are spread over processes cannot be measured; None where not.

    Gathering the weights would be a collective, which the ranks would have to reach together on a
    decision that each takes alone.
    """
    if any(hasattr(parameter, "full_tensor") for parameter in module.parameters()):  # of DTensor, which moved
        return "its weights are sharded over the processes (FSDP 2 or tensor parallelism)"
    return None


def describe(modules: Mapping[str, nn.Module], observed: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Qualified name → what run.json says of a watched module."""
    return {
        name: {
            "kind": type(module).__name__,
            "layers": getattr(module, "num_layers", 1),
            "hidden_size": getattr(module, "hidden_size", None),
            "observed": name in observed,
        }
        for name, module in modules.items()
    }
