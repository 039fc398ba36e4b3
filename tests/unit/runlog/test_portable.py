"""Whatever a batch holds comes back from a file that torch loads without running code."""

from __future__ import annotations

import dataclasses
import enum
import io
import random
from collections import Counter, OrderedDict, namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from lightning_gradwatch.runlog.portable import KIND, Portable, fits_kind, restored, size
from lightning_gradwatch.runlog.randomness import random_states, set_random_states

Pair = namedtuple("Pair", ["one", "other"])


@dataclasses.dataclass(frozen=True)
class Record:
    """A frozen one."""

    x: torch.Tensor
    label: str = "a"


class Colour(str, enum.Enum):
    """Of texts."""

    RED = "red"


def through_a_file(value: Any) -> Any:
    """Written, and read under weights_only."""
    portable = Portable()
    made = portable(value, "it")
    assert portable.problems == {}
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    return restored(torch.load(file, weights_only=True))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        2.5,
        "text",
        b"bytes",
        b"",
        [1 + 2j, {b"key": -0.5j}],
        torch.float64,
        torch.Size([2, 3]),
        [1, (2, "x"), {"a": [None]}],
        {1: "a", "b": 2, (3, 4): 5, None: 6},
        {1, 2},
        Counter({3: 1}),
        OrderedDict(b=1, a=2),
        torch.device("cuda:1"),
        {(b"a", 1): Counter({b"x": 2}), 1j: {torch.device("cpu"): 1}},
    ],
    ids=repr,
)
def test_plain_values_come_back_equal(value):
    """Of the same type and equal."""
    again = through_a_file(value)
    assert (type(again), again) == (type(value), value)


@pytest.mark.parametrize("value", [b"bytes", 1 + 2j, np.complex64(1 + 2j), np.bytes_(b"x")], ids=repr)
def test_what_old_torch_does_not_read_is_written_as_tensors(value):
    """Before torch 2.6 a file with bytes or complex numbers in it is refused under weights_only."""
    made = Portable()(value, "it")
    assert isinstance(made["fields"], torch.Tensor)
    assert fits_kind(made)
    assert not fits_kind({**made, "fields": torch.zeros(2, 2)})
    assert restored(made) == value


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("counter", [1]),
        ("dict", {"a": 1}),
        ("dict", [[1]]),
        ("dict", ["ab"]),
        ("dict", [[[1], 2]]),
        ("device", "nowhere"),
        ("device", 1),
    ],
)
def test_what_stands_for_something_else_must_be_whole(kind, fields):
    """Of any other shape it is refused, before it is put together."""
    assert not fits_kind({KIND: kind, "fields": fields})


def test_tensors_come_back_to_the_bit():
    """Integers, bfloat16, NaN, non-contiguous ones, and those that need a gradient."""
    x = torch.randn(3, 4)
    x[0, 0] = torch.nan
    for tensor in (x, x.t(), x.bfloat16(), torch.arange(3), x[:, 1], torch.zeros(0)):
        again = through_a_file(tensor)
        assert again.dtype == tensor.dtype
        assert torch.equal(again.nan_to_num(), tensor.nan_to_num())
    assert through_a_file(x.requires_grad_()).requires_grad


def test_containers_are_put_together_again():
    """Named tuples and dataclasses of an imported class, packed sequences, arrays; subclasses of plain values become plain."""
    packed = pack_sequence([torch.ones(2, 1), torch.zeros(3, 1)], enforce_sorted=False)
    again = through_a_file(
        {
            "pair": Pair(torch.ones(2), [1]),
            "record": Record(torch.ones(2)),
            "packed": packed,
            "array": np.arange(6.0).reshape(2, 3),
            "number": np.float64(1.5),
            "colour": Colour.RED,
        }
    )
    assert isinstance(again["pair"], Pair)
    assert again["pair"].other == [1]
    assert isinstance(again["record"], Record)
    assert again["record"].label == "a"
    assert isinstance(again["packed"], PackedSequence)
    assert all(torch.equal(one, other) for one, other in zip(again["packed"], packed, strict=True) if one is not None)
    assert np.array_equal(again["array"], np.arange(6.0).reshape(2, 3))
    assert (type(again["number"]), type(again["colour"])) == (float, str)


def test_a_class_that_is_not_there_becomes_a_likeness():
    """Its names stay; nothing is imported to find it."""
    pair = {KIND: "namedtuple", "type": "no.such.place:Pair", "fields": {"one": 1, "other": 2}}
    assert restored(pair)._fields == ("one", "other")
    record = {KIND: "dataclass", "type": "os:system", "fields": {"x": 1}}
    assert restored(record) == SimpleNamespace(x=1)


def test_what_cannot_be_held_is_named():
    """By its place and type, whatever is around it is kept."""
    portable = Portable()
    made = portable({"x": [1, object()], "f": len, "texts": np.array(["a"])}, "batch")
    assert made == {"x": [1, None], "f": None, "texts": None}
    assert portable.problems == {
        "batch['x'][1]": "builtins.object",
        "batch['f']": "builtins.builtin_function_or_method",
        "batch['texts']": "numpy.ndarray",
    }


def test_size_counts_bytes_of_tensors():
    """However deep they lie."""
    assert size({"a": [torch.zeros(3)], "b": (torch.zeros(2, dtype=torch.float64), "text", 5)}) == 12 + 16


def test_random_states_come_back():
    """All three generators go on where they were; reading them draws nothing."""
    states = through_a_file(random_states(torch.device("cpu")))
    drawn = torch.rand(2).tolist(), random.random(), np.random.rand()
    torch.rand(5), random.gauss(0, 1), np.random.randn()
    set_random_states(states, torch.device("cpu"))
    assert (torch.rand(2).tolist(), random.random(), np.random.rand()) == drawn
