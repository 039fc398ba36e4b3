"""Which recurrent modules a model has."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.plain import plain
from lightning_gradwatch.recurrent.loops import tensors

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of a qualified name that compilers and wrappers put in."""


def plain_name(name: str) -> str:
    """A qualified name without what wrappers put into it; ``model`` for the model itself."""
    return ".".join(part for part in name.split(".") if part and part not in WRAPPERS) or "model"


def discover(model: nn.Module, patterns: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Qualified name → recurrent module: ``nn.RNN``, ``nn.LSTM``, ``nn.GRU``, their cells, and what derives from them.

    Args:
        patterns: shell-style patterns of qualified names; None takes all. A pattern may also name a module of one's own that is
            called once a timestep.

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
                'Use GradWatch(modules="auto") to watch them all.'
            )
        chosen |= matching
    return chosen


def added(found: Mapping[str, nn.Module], known: Collection[nn.Module], patterns: Sequence[str] | None) -> list[str]:
    """Qualified names of those of the recurrent modules found that train and are not among ``known``.

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


def scripted(model: nn.Module) -> dict[str, str]:
    """Qualified name → class of the recurrent modules that TorchScript holds, which take no hooks."""
    kinds = {"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"}
    return {
        plain_name(name): module.original_name
        for name, module in model.named_modules()
        if isinstance(module, torch.jit.ScriptModule) and getattr(module, "original_name", "") in kinds
    }


class Discovery:
    """Finds cells of one's own: modules called several times in one forward whose output comes back as their input.

    It watches every module without a recurrent one inside for one training step. Its hooks hold no tensor, so that the step needs no
    more memory than any other.

    Attributes:
        found: qualified name → the module, and which of the tensors that it returns comes back.
        failure: an error of our own in a hook, kept for whoever ends the search instead of breaking the forward.
    """

    def __init__(self, model: nn.Module, known: Iterable[nn.Module]) -> None:
        self.found: dict[str, tuple[nn.Module, int]] = {}
        self.failure: Exception | None = None
        self._made: dict[nn.Module, dict[int, tuple[weakref.ref[Tensor], int]]] = {}
        known = set(known)
        inside = {module for recurrent in known for module in recurrent.modules()}
        self._names = {
            module: plain_name(name)
            for name, module in model.named_modules()
            if name
            and module not in inside
            and not isinstance(module, torch.jit.ScriptModule)
            and known.isdisjoint(module.modules())
        }
        self._handles = [module.register_forward_hook(self._after, with_kwargs=True) for module in self._names]

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        if self.failure is not None or not torch.is_grad_enabled():
            return
        try:
            self._compare(module, (*inputs, *kwargs.values()), outputs)
        except Exception as error:  # whatever it is, it is ours and must not break the user's forward
            self.failure = error

    def _compare(self, module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        made = self._made.setdefault(module, {})
        for tensor in tensors(inputs):
            known = made.get(id(tensor))
            # A tensor that is gone may have left its identity to another.
            if known is not None and known[0]() is tensor:
                self.found.setdefault(self._names[module], (module, known[1]))
        for position, tensor in enumerate(tensors((outputs,))):
            if tensor.requires_grad:
                made[id(tensor)] = weakref.ref(tensor), position

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._made.clear()

    def __getstate__(self) -> dict[str, Any]:
        """A copy is inert, as a copy of a capture is."""
        return {"found": {}, "failure": None, "_made": {}, "_names": {}, "_handles": []}
