"""Whether a module seems to have taken the batch for time, whatever the loss reads."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, cast

from torch import Tensor

from lightning_gradwatch.runlog.measures import Record
from lightning_gradwatch.runlog.summary import order_of_axes

_DEEPEST = 4
"""Containers within containers that are looked into."""

Axes = tuple[int, int]
"""Sizes of the first two axes of a tensor."""


def axes_of(batch: Any) -> set[Axes]:
    """Those of the tensors of a batch that lie in lists, tuples and dicts; nothing else is touched,
    as looking at a lazy container may change what comes of it.
    """
    return {(tensor.shape[0], tensor.shape[1]) for tensor in _tensors(batch, _DEEPEST) if tensor.dim() > 1}


def doubt(record: Record, loaded: int, axes: Iterable[Axes]) -> str:
    """What speaks for swapped axes, in two sentences; empty where nothing does: the module took for
    timesteps what the loader counts as examples, on an input whose axes lie as those of a tensor
    of the batch.

    Args:
        record: of a profile of the module.
        loaded: how many examples the loader puts into a batch.
        axes: of the batch's tensors.
    """
    batch_first, timesteps, sequences = record.get("batch_first"), record["timesteps"], record.get("batch_size")
    if batch_first is None or timesteps != loaded or sequences in (None, loaded):
        return ""
    taken = (sequences, timesteps) if batch_first else (timesteps, sequences)
    order = order_of_axes(batch_first, timesteps, sequences)
    return f"The loader puts {loaded:,} examples into a batch. {record['module']}{order}" if taken in axes else ""


def _tensors(value: Any, depth: int) -> Generator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and type(value) in (list, tuple, dict):
        parts = cast("dict[Any, Any]", value).values() if isinstance(value, dict) else cast("list[Any]", value)
        for part in parts:
            yield from _tensors(part, depth - 1)
