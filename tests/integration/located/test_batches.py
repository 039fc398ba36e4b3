"""Where a batch holds the NaN that spoils a loss, whatever containers its tensors lie in."""

from __future__ import annotations

import math
from collections import OrderedDict, UserDict, deque
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader

from lightning_gradwatch import EventKind, GradWatch
from tests.models import trainer

BATCH, BAD = 8, (2, 5)  # the sixth sequence of the third batch


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Data:
    x: Tensor
    y: Tensor


@dataclass(slots=True)
class Slotted:
    x: Tensor
    y: Tensor


class Encoding(UserDict):
    """As the tokenizers of transformers return one: a dict in a coat, whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self.data[name] if name in self.__dict__.get("data", {}) else self.__getattribute__(name)

    def to(self, device: Any) -> Encoding:
        return Encoding({name: value.to(device) for name, value in self.data.items()})


class Plain:
    """An object with slots and nothing else."""

    __slots__ = ("x", "y")

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y


CONTAINERS = {
    "tuple": (lambda x, y: (x, y), lambda b: b, "batch[1]"),
    "list": (lambda x, y: [x, y], lambda b: b, "batch[1]"),
    "deque": (lambda x, y: SimpleNamespace(parts=deque([x, y])), lambda b: b.parts, "batch.parts[1]"),
    "dict": (lambda x, y: {"x": x, "y": y}, lambda b: (b["x"], b["y"]), "batch['y']"),
    "dict of numbers": (lambda x, y: {0: x, 1: y}, lambda b: (b[0], b[1]), "batch[1]"),
    "nested": (
        lambda x, y: {"in": [{"x": x}], "out": ({"deep": OrderedDict(y=y)},)},
        lambda b: (b["in"][0]["x"], b["out"][0]["deep"]["y"]),
        "batch['out'][0]['deep']['y']",
    ),
    "named tuple": (Pair, lambda b: b, "batch.y"),
    "dataclass": (Data, lambda b: (b.x, b.y), "batch.y"),
    "dataclass with slots": (Slotted, lambda b: (b.x, b.y), "batch.y"),
    "user dict": (lambda x, y: Encoding(x=x, labels=y), lambda b: (b["x"], b.labels), "batch['labels']"),
    "mapping proxy": (
        lambda x, y: SimpleNamespace(of=MappingProxyType({"x": x, "y": y})),
        lambda b: (b.of["x"], b.of["y"]),
        "batch.of['y']",
    ),
    "object": (lambda x, y: SimpleNamespace(x=x, y=y), lambda b: (b.x, b.y), "batch.y"),
    "object with slots": (Plain, lambda b: (b.x, b.y), "batch.y"),
    "array": (lambda x, y: [x, y.numpy()], lambda b: (b[0], torch.from_numpy(b[1])), "batch[1]"),
}


class Model(pl.LightningModule):
    def __init__(self, read: Any) -> None:
        super().__init__()
        self.read, self.rnn, self.head = read, nn.GRU(3, 8, batch_first=True), nn.Linear(8, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = self.read(batch)
        return (self.head(self.rnn(x)[1][-1])[:, 0] - y).square().mean()

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)


def batches(make: Any) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(4):
        x, y = torch.randn(BATCH, 9, 3, generator=generator), torch.randn(BATCH, generator=generator)
        if number == BAD[0]:
            y[BAD[1]] = math.nan
        made.append(make(x, y))
    return DataLoader(made, batch_size=None, collate_fn=lambda batch: batch)


def event_of(tmp_path, read, data):
    watch = GradWatch(dirpath=tmp_path / "run")
    trainer(tmp_path, [watch], max_steps=4).fit(Model(read), data)
    (event,) = [event for event in watch.events if event.kind.startswith("NONFINITE")]
    return event


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_nan_in_the_target_is_found_in_every_container(name, tmp_path) -> None:
    """With the path to it as Python writes it, its index and its sequence."""
    make, read, path = CONTAINERS[name]
    event = event_of(tmp_path, read, batches(make))
    assert (event.kind, event.step, event.batch_idx) == (EventKind.NONFINITE_LOSS, 2, 2)
    assert f"the batch holds a NaN: {path}[{BAD[1]}] is nan (sequence {BAD[1]})" in event.message


def test_a_nan_in_a_packed_sequence_is_told_by_its_sequence(tmp_path) -> None:
    """The input is the packed sequence itself; ``data`` and its row are named, and the sequence in the caller's order."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(4):
        rows = [torch.randn(length, 3, generator=generator) for length in (4, 9, 6)]
        if number == 2:
            rows[0][3, 1] = math.nan
        made.append((pack_sequence(rows, enforce_sorted=False), torch.randn(3, generator=generator)))
    event = event_of(tmp_path, lambda b: b, DataLoader(made, batch_size=None))
    assert (event.kind, event.sequence, event.timestep, event.step) == (EventKind.NONFINITE_INPUT, 0, 3, 2)
    assert "batch[0].data[" in event.message


@pytest.mark.parametrize("value", [math.nan, np.float32("nan")])
def test_a_number_by_itself_is_found(value, tmp_path) -> None:
    """A weight of the loss that came with the batch."""
    data = DataLoader([(torch.randn(8, 9, 3), torch.randn(8), value)], batch_size=None)
    event = event_of(tmp_path, lambda b: (b[0], b[1] * float(b[2])), data)
    assert "batch[2] is nan" in event.message


def test_a_container_that_holds_itself_ends_the_search(tmp_path) -> None:
    """Nothing is looked at twice."""

    def make(x, y):
        batch: dict[str, Any] = {"x": x}
        batch["self"], batch["y"] = batch, y
        return batch

    event = event_of(tmp_path, lambda b: (b["x"], b["y"]), batches(make))
    assert "batch['y'][5] is nan" in event.message
