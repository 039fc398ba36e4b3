"""Which recurrent modules a model has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

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
            names = ", ".join(found) or "none"
            raise ValueError(
                f"`modules` must match a recurrent module; {pattern!r} matches none of those there are: {names}. "
                'Use GradWatch(modules="auto") to watch them all.'
            )
        chosen |= matching
    return chosen


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

    It watches every module without a recurrent one inside for one training step, by hooks that keep identities only.
    """

    def __init__(self, model: nn.Module, known: Iterable[nn.Module]) -> None:
        self.found: dict[str, nn.Module] = {}
        self._made: dict[nn.Module, dict[int, Tensor]] = {}
        known = set(known)
        self._names = {
            module: plain_name(name)
            for name, module in model.named_modules()
            if name and not isinstance(module, torch.jit.ScriptModule) and known.isdisjoint(module.modules())
            if not any(module in set(other.modules()) for other in known)
        }
        self._handles = [module.register_forward_hook(self._after, with_kwargs=True) for module in self._names]

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        if not torch.is_grad_enabled():
            return
        made = self._made.setdefault(module, {})
        if any(id(tensor) in made for tensor in tensors((*inputs, *kwargs.values()))):
            self.found.setdefault(self._names[module], module)
        # The tensors are held, so that no later one gets the identity of one that is gone.
        made.update((id(tensor), tensor) for tensor in tensors((outputs,)) if tensor.requires_grad)

    def close(self) -> None:
        """Take the hooks off and forget the tensors."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._made.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"found": {}, "_made": {}, "_names": {}, "_handles": []}
