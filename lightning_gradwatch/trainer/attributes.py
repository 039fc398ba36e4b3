"""What modules keep in plain attributes, such as a hidden state that
is carried from batch to batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn


def attributes(module: nn.Module, chosen: Callable[[Any], bool]) -> dict[str, dict[str, Any]]:
    """Copies of the chosen ones, by module name and attribute;
    torch's own modules are passed over.
    """
    by_module = {
        name: {key: nested(value) for key, value in vars(child).items() if key not in _NNS_OWN and chosen(value)}
        for name, child in module.named_modules()
        if not _is_torchs(child)
    }
    return {name: values for name, values in by_module.items() if values}


def holds_tensors(value: Any) -> bool:
    """Whether it is a tensor, or a list, tuple or dict with nothing else in it.
    Parameters have their own place.
    """
    leaves = _leaves(value)
    return len(leaves) > 0 and all(isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter) for leaf in leaves)


def copied(tensor: Tensor) -> Tensor:
    """A copy on the same device, without the graph that made it."""
    copy = tensor.detach().clone()
    return copy.requires_grad_() if tensor.requires_grad and tensor.is_leaf else copy


def nested(value: Any) -> Any:
    """The same with every tensor in it copied."""
    return apply_to_collection(value, Tensor, copied)


def may_carry(value: Any) -> bool:
    """Whether it holds tensors, or None and empty containers in their place, as before
    the first batch; nothing else.

    A leaf that needs a gradient is no such tensor: an optimizer may hold it.
    """
    return all(leaf is None or (isinstance(leaf, Tensor) and not _is_trained(leaf)) for leaf in _leaves(value))


def holds_any(value: Any) -> bool:
    """Whether a tensor is in it."""
    return any(isinstance(leaf, Tensor) for leaf in _leaves(value))


_NNS_OWN = frozenset(vars(nn.Module()))


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(cast("dict[Any, Any]", value).values())
    if not isinstance(value, (list, tuple)):
        return [value]
    return [leaf for item in cast("list[Any]", value) for leaf in _leaves(item)]


def _is_trained(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) or (tensor.requires_grad and tensor.is_leaf)


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")
