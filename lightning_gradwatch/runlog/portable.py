"""Nested values in a form that ``torch.load(weights_only=True)`` reads, and back."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter, OrderedDict, namedtuple
from collections.abc import Callable, Mapping
from enum import Enum
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

KIND = "__gradwatch__"
"""The key of a dict that stands for something else: its kind."""

_PLAIN = (bool, int, float, str, type(None))
_ALLOWED = (torch.dtype, torch.Size)


class Portable:
    """Makes values portable, and remembers what could not be.

    Attributes:
        problems: place → name of the type, of what was left out.
    """

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}

    def __call__(self, value: Any, at: str) -> Any:
        """``value``, with its tensors on the CPU; ``at`` names it in :attr:`problems`.

        Kept as they are: tensors, numbers, strings, lists, dicts, tuples, sets. Taken apart, to be
        put together by :func:`restored`: named tuples, packed sequences, dataclasses, NumPy arrays,
        counters, devices, bytes and complex numbers, dicts with such keys. A tensor of a class of
        its own becomes a plain one, a mapping a dict.
        """
        if isinstance(value, Tensor):
            plain = value.detach().as_subclass(Tensor).cpu()
            return plain.requires_grad_(value.requires_grad) if value.requires_grad else plain
        if isinstance(value, Enum) and not isinstance(value, (str, int)):
            return self._leave_out(value, at)
        if isinstance(value, (bytes, complex)):  # torch before 2.6 reads neither under weights_only
            return _as_tensor(value)
        for plain in _PLAIN:  # of a subclass (StrEnum, numpy.float64) the plain value
            if isinstance(value, plain):
                return value if type(value) is plain else cast("Callable[[Any], Any]", plain)(value)
        if isinstance(value, _ALLOWED):
            return value
        if isinstance(value, torch.device):  # nor this, before 2.5
            return {KIND: "device", "fields": str(value)}
        if isinstance(value, np.generic):
            return self(value.item(), at)
        if isinstance(value, np.ndarray):
            return self._array(cast("np.ndarray[Any, Any]", value), at)
        return self._container(value, at)

    def _container(self, value: Any, at: str) -> Any:
        if isinstance(value, PackedSequence):
            return {KIND: "packed", "fields": self._items(value._asdict(), at)}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            fields = self._items(cast("Any", value)._asdict(), at)
            return {KIND: "namedtuple", "type": _name(value), "fields": fields}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            values = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return {KIND: "dataclass", "type": _name(value), "fields": self._items(values, at)}
        if isinstance(value, (list, tuple)):
            made = [self(item, f"{at}[{i}]") for i, item in enumerate(cast("list[Any]", value))]
            return made if isinstance(value, list) else tuple(made)
        if isinstance(value, (set, frozenset)):
            return {KIND: "set", "fields": [self(item, at) for item in cast("set[Any]", value)]}
        if isinstance(value, Counter):  # nor this, before 2.4
            return {KIND: "counter", "fields": self._mapping(dict(cast("Counter[Any]", value)), at)}
        if isinstance(value, Mapping):
            return self._mapping(cast("Mapping[Any, Any]", value), at)
        return self._leave_out(value, at)

    def _mapping(self, value: Mapping[Any, Any], at: str) -> Any:
        if all(map(_is_plain_key, value)):
            made = self._items(value, at)
            return OrderedDict(made) if isinstance(value, OrderedDict) else made
        return {KIND: "dict", "fields": [[self(key, at), self(item, f"{at}[{key!r}]")] for key, item in value.items()]}

    def _items(self, items: Mapping[Any, Any], at: str) -> dict[Any, Any]:
        return {self(key, at): self(item, f"{at}[{key!r}]") for key, item in items.items()}

    def _array(self, array: np.ndarray[Any, Any], at: str) -> Any:
        try:
            return {KIND: "array", "fields": torch.from_numpy(np.array(array))}
        except TypeError:  # of objects or texts
            return self._leave_out(array, at)

    def _leave_out(self, value: Any, at: str) -> None:
        self.problems[at] = _name(value).replace(":", ".")


def restored(value: Any) -> Any:
    """What :class:`Portable` was given.

    A named tuple or dataclass is of its own class where that has been imported already, else
    a likeness with the same names.
    """
    if type(value) in (list, tuple):
        return type(value)(restored(item) for item in value)
    if not isinstance(value, dict):
        return value
    held = cast("dict[Any, Any]", value)
    if KIND not in held:
        return type(held)({key: restored(item) for key, item in held.items()})
    fields = restored(held["fields"])
    return _MAKERS[held[KIND]](held.get("type", ""), fields)


def _is_plain_key(key: Any) -> bool:
    """Whether a key is portable as it is."""
    return all(map(_is_plain_key, cast("tuple[Any, ...]", key))) if type(key) is tuple else isinstance(key, _PLAIN)


def _as_tensor(value: bytes | complex) -> dict[str, Any]:
    if isinstance(value, bytes):
        return {KIND: "bytes", "fields": torch.tensor(list(value), dtype=torch.uint8)}
    return {KIND: "complex", "fields": torch.tensor([value.real, value.imag], dtype=torch.float64)}


def fits_kind(held: Mapping[Any, Any]) -> bool:
    """Whether a dict that stands for something else is one that :class:`Portable` may have made;
    what is in it has been looked at.
    """
    kind, name, fields = held[KIND], held.get("type", ""), held.get("fields")
    if not isinstance(name, str) or not isinstance(kind, str):
        return False
    if kind in ("namedtuple", "dataclass"):
        names = list(cast("dict[Any, Any]", fields)) if isinstance(fields, dict) else [None]
        return all(isinstance(one, str) and not one.startswith("__") for one in names)
    if kind == "packed":
        return isinstance(fields, dict) and list(cast("dict[Any, Any]", fields)) == list(PackedSequence._fields)
    if kind == "set":
        return isinstance(fields, list) and _are_hashable(restored(fields))
    if kind == "complex":
        return isinstance(fields, Tensor) and fields.shape == (2,) and fields.dtype == torch.float64
    if kind == "counter":
        return isinstance(fields, dict)
    if kind == "dict":
        return _are_pairs(fields)
    if kind == "device":
        return isinstance(fields, str) and _is_device(fields)
    if kind == "bytes":
        return isinstance(fields, Tensor) and fields.dim() == 1 and fields.dtype == torch.uint8
    return kind == "array" and isinstance(fields, Tensor)


def _are_hashable(items: list[Any]) -> bool:
    try:
        set(items)
    except TypeError:
        return False
    return True


def _are_pairs(fields: Any) -> bool:
    if not isinstance(fields, list) or not all(isinstance(pair, list) for pair in cast("list[Any]", fields)):
        return False
    pairs = cast("list[list[Any]]", fields)
    return all(len(pair) == 2 for pair in pairs) and _are_hashable(restored([key for key, _ in pairs]))


def _is_device(name: str) -> bool:
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True


def size(value: Any) -> int:
    """Bytes of the tensors in a portable value."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(size(item) for item in cast("Mapping[Any, Any]", value).values())
    return sum(size(item) for item in cast("list[Any]", value)) if isinstance(value, (list, tuple)) else 0


def _name(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _imported(name: str) -> type | None:
    """The class of that name. Nothing is imported: a file must not choose what code runs."""
    module, _, path = name.partition(":")
    value: Any = sys.modules.get(module)
    for part in path.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, type) else None


def _make_namedtuple(name: str, fields: dict[str, Any]) -> Any:
    kind = _imported(name)
    if kind is not None and issubclass(kind, tuple) and getattr(kind, "_fields", None) == tuple(fields):
        return kind(*fields.values())
    likeness: Callable[..., Any] = namedtuple("Likeness", list(fields), rename=True)  # pyright: ignore[reportUntypedNamedTuple]
    return likeness(*fields.values())


def _make_dataclass(name: str, fields: dict[str, Any]) -> Any:
    kind = _imported(name)
    if (
        kind is None
        or not dataclasses.is_dataclass(kind)
        or {field.name for field in dataclasses.fields(kind)} != {*fields}
    ):
        return SimpleNamespace(**fields)
    made = object.__new__(kind)
    for key, item in fields.items():
        object.__setattr__(made, key, item)
    return made


_MAKERS: dict[str, Callable[[str, Any], Any]] = {
    "packed": lambda _, fields: PackedSequence(**fields),
    "namedtuple": _make_namedtuple,
    "dataclass": _make_dataclass,
    "set": lambda _, fields: set(fields),
    "counter": lambda _, fields: Counter(fields),
    "dict": lambda _, fields: dict(fields),
    "device": lambda _, fields: torch.device(fields),
    "array": lambda _, fields: fields.numpy(),
    "bytes": lambda _, fields: bytes(fields.tolist()),
    "complex": lambda _, fields: complex(*fields.tolist()),
}
