"""Where a batch holds numbers that are not finite: in whatever containers its tensors lie."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

DEEPEST = 8
"""Containers within containers that are looked into."""

MOST_LEAVES = 10_000


@dataclass(frozen=True)
class BadEntry:
    """The first entry of a tensor of the batch that is not finite; of one with NaN, the first NaN.

    Args:
        path: as Python writes it: ``batch['y'][41]``.
        value: NaN, inf or -inf.
        sequence: which one of the batch it belongs to; None where the shape doesn't tell.
        count: how many entries of that tensor are so.
    """

    path: str
    value: float
    sequence: int | None
    count: int

    @property
    def told(self) -> str:
        """In words."""
        where = f" (sequence {self.sequence})" if self.sequence is not None else ""
        return f"{self.path} is {self.value}{where}" + (f", one of {self.count} such entries" if self.count > 1 else "")


def bad_entries(batch: Any, sizes: Collection[int] = ()) -> list[BadEntry]:
    """One for each tensor of the batch with an entry that is not finite, those with NaN first.

    Args:
        batch: a tensor, an array, a number, or containers of them: mappings, lists, tuples,
            dataclasses, packed sequences, objects.
        sizes: the numbers of sequences that the recurrent modules were given, to tell which axis of
            a tensor they are; without one, the first axis is taken.
    """
    entries: list[BadEntry] = []
    for count, (path, leaf) in enumerate(_leaves(batch, "batch", DEEPEST, set())):
        if count >= MOST_LEAVES:
            break
        entry = _packed(path, leaf) if isinstance(leaf, PackedSequence) else _entry(path, leaf, sizes)
        if entry is not None:
            entries.append(entry)
    return sorted(entries, key=lambda entry: not math.isnan(entry.value))


def _leaves(value: Any, path: str, depth: int, seen: set[int]) -> Generator[tuple[str, Tensor | PackedSequence]]:
    if isinstance(value, Tensor | PackedSequence):
        yield path, value
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "fc":
            yield path, torch.from_numpy(np.array(value, dtype=np.float64))
    elif isinstance(value, float | np.floating):
        yield path, torch.tensor(float(value), dtype=torch.float64)
    elif depth and id(value) not in seen:
        seen.add(id(value))
        for step, part in _parts(value):
            yield from _leaves(part, path + step, depth - 1, seen)


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    """What a container holds, each with its step in the path."""
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in cast("Mapping[Any, Any]", value).items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", part) for name, part in zip(cast("Any", value)._fields, value, strict=True)]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [(f"[{index}]", part) for index, part in enumerate(cast("Sequence[Any]", value))]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, type | str | bytes | bytearray) or callable(value):
        return []
    slots = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
    names = [*getattr(value, "__dict__", {}), *slots]
    return [(f".{name}", getattr(value, name)) for name in dict.fromkeys(names)]


def _slots(kind: type) -> Sequence[str]:
    slots = vars(kind).get("__slots__", ())
    return [slots] if isinstance(slots, str) else list(slots)


def _entry(path: str, tensor: Tensor, sizes: Collection[int]) -> BadEntry | None:
    first = _first_bad(tensor)
    if first is None:
        return None
    index, value, count = first
    where = f"[{', '.join(map(str, index))}]" if index else ""
    return BadEntry(path + where, value, _sequence(index, tensor.shape, sizes), count)


def _packed(path: str, packed: PackedSequence) -> BadEntry | None:
    """Of a packed sequence: the row of ``data`` is told as sequence and timestep."""
    first = _first_bad(packed.data)
    if first is None:
        return None
    index, value, count = first
    row = index[0]
    for size in packed.batch_sizes.tolist():
        if row < size:
            break
        row -= size
    sequence = row if packed.sorted_indices is None else int(packed.sorted_indices[row])
    return BadEntry(f"{path}.data[{', '.join(map(str, index))}]", value, sequence, count)


def _first_bad(tensor: Tensor) -> tuple[list[int], float, int] | None:
    """Index and value of the first NaN, else of the first infinity, and
    how many entries are not finite.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.layout != torch.strided or tensor.is_nested:
        return None
    plain = tensor.detach()
    bad = ~plain.isfinite()
    count = int(bad.sum())
    if not count:
        return None
    nan = plain.isnan()
    index = torch.nonzero(nan if bool(nan.any()) else bad)[0].tolist()
    entry = plain[tuple(index)].cpu()
    value = float(entry.abs()) if entry.is_complex() else float(entry)
    return index, value, count


def _sequence(index: list[int], shape: torch.Size, sizes: Collection[int]) -> int | None:
    if not index:
        return None
    if not sizes:
        return index[0] if len(shape) == 1 else None
    axes = [axis for axis, size in enumerate(shape[:2]) if size in sizes]
    return index[axes[0]] if len(axes) == 1 or (axes and len(shape) == 1) else None
