"""Which recurrent modules a model has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
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
    recurrent_modules: dict[str, nn.Module] = {
        name: module for name, module in named.items() if isinstance(module, recurrent)
    }
    if patterns is None:
        return recurrent_modules
    chosen: dict[str, nn.Module] = {}
    for pattern in patterns:
        matching = {name: module for name, module in recurrent_modules.items() if fnmatchcase(name, pattern)}
        matching = matching or ({pattern: named[pattern]} if pattern in named else {})
        if not matching:
            names = plain(", ".join(recurrent_modules)) or "none"
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
    every = {plain_name(name): module for name, module in model.named_modules() if name} | unregistered(model)
    return WeakIdKeyDictionary(
        {
            module: name
            for name, module in every.items()
            if module not in inside
            and not isinstance(module, torch.jit.ScriptModule)
            and (holding or known.isdisjoint(module.modules()))
        }
    )


def unregistered(model: nn.Module) -> dict[str, nn.Module]:
    """Name → module of those that the model holds in a list, tuple or dictionary of its own, where
    PyTorch does not know of them, and of those inside: ``cells[0]``, ``cells[0].gate``.
    """
    registered = WeakIdKeyDictionary(dict.fromkeys(model.modules()))
    modules: dict[str, nn.Module] = {}
    for name, holder in model.named_modules():
        prefix = f"{plain_name(name)}." if name else ""
        for attribute, value in vars(holder).items():
            for key, item in _items(value):
                if isinstance(item, nn.Module) and item not in registered:
                    item_name = f"{prefix}{attribute}[{key}]"
                    modules |= {f"{item_name}.{inner}".rstrip("."): module for inner, module in item.named_modules()}
    return modules


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, list | tuple):
        return enumerate(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return value.items() if type(value) is dict else ()  # pyright: ignore[reportUnknownVariableType]


def added(modules: Mapping[str, nn.Module], known: Collection[nn.Module], patterns: Sequence[str] | None) -> list[str]:
    """Qualified names of those of the recurrent modules found that
    train and are not among ``known``.

    Args:
        patterns: as for :func:`discover`.
    """
    return [
        name
        for name, module in modules.items()
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
