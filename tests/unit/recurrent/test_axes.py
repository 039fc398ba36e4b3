"""A tensor whose axes lie in another order than its annotation says is refused, wherever tests run; users pay nothing for it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn

from lightning_gradwatch.recurrent.adjoint import Ends, make_adjoint
from lightning_gradwatch.recurrent.axes import VOCABULARY
from lightning_gradwatch.recurrent.control.omega import Omega
from lightning_gradwatch.recurrent.layout import pick_sequences
from lightning_gradwatch.recurrent.limit import Limit
from lightning_gradwatch.recurrent.measure.anchors import Anchors
from lightning_gradwatch.recurrent.shape import Shape
from tests.conftest import SHAPES_CHECKED

PACKAGE = Path(__file__).parents[3] / "lightning_gradwatch"
TIME, SEQUENCES, INPUT, HIDDEN = 5, 3, 2, 4
MODULES = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}


def adjoint_of(kind: str):
    module = MODULES[kind](INPUT, HIDDEN)
    return make_adjoint(tuple(module.parameters()), Shape.of(module), torch.float32)


@pytest.mark.parametrize("kind", MODULES)
def test_streams_and_sequences_are_not_confused(kind: str) -> None:
    """Two streams of three sequences, handed over as three streams of two sequences."""
    adjoint, c = adjoint_of(kind), torch.zeros(SEQUENCES, HIDDEN) if kind == "LSTM" else None
    x, h = torch.zeros(TIME, SEQUENCES, INPUT), torch.zeros(TIME, SEQUENCES, HIDDEN)
    factors = adjoint.prepare(x, h, c)
    direct, carry = torch.zeros(TIME, 2, SEQUENCES, HIDDEN), adjoint.new_carry(2, SEQUENCES)
    hidden, cell = adjoint.sweep(factors, direct, carry, Ends())
    adjoint.input_delta(factors, hidden, cell)
    with pytest.raises(TypeCheckError):
        adjoint.sweep(factors, direct.transpose(1, 2)[..., 0], carry, Ends())
    with pytest.raises(TypeCheckError):
        adjoint.recurrent_delta(factors, hidden, adjoint.input_delta(factors, hidden, cell).transpose(1, 2))


@pytest.mark.parametrize("kind", MODULES)
def test_time_and_sequences_are_not_confused(kind: str) -> None:
    """An input laid out batch-first beside states that are time-major."""
    x, h = torch.zeros(TIME, SEQUENCES, INPUT), torch.zeros(TIME, SEQUENCES, HIDDEN)
    adjoint_of(kind).pre_activations(x, h)
    with pytest.raises(TypeCheckError):
        adjoint_of(kind).pre_activations(x.transpose(0, 1), h)


def test_timesteps_of_two_tensors_are_as_many() -> None:
    """A slope for each timestep of a gradient, and not one more."""
    slope, delta, w_hh = torch.zeros(TIME, 3, HIDDEN), torch.zeros(TIME, 3, HIDDEN), torch.zeros(HIDDEN, HIDDEN)
    omega = Omega(1.0, Limit(1.0))
    assert omega.gradient(slope, delta, w_hh).shape == w_hh.shape
    with pytest.raises(TypeCheckError):
        omega.gradient(torch.zeros(TIME + 1, 3, HIDDEN), delta, w_hh)


def test_a_mask_is_boolean_and_anchors_have_sequences() -> None:
    """Numbers where a mask is wanted, and one axis where there are two."""
    assert pick_sequences(torch.ones(4, dtype=torch.bool), 1) == [2]
    with pytest.raises(TypeCheckError):
        pick_sequences(torch.ones(4), 1)
    assert len(Anchors(torch.zeros(4, 2, dtype=torch.long), torch.zeros(4, 2))) == 4
    with pytest.raises(TypeCheckError):
        Anchors(torch.zeros(4, dtype=torch.long), torch.zeros(4))


def annotated() -> dict[str, list[tuple[str, str]]]:
    """What the annotations of the checked rooms say: file → kind, axes."""
    rooms = [PACKAGE.parent / room.replace(".", "/") for room in SHAPES_CHECKED]
    files = [
        file for room in rooms for file in ([room.with_suffix(".py")] if not room.is_dir() else room.rglob("*.py"))
    ]
    return {
        file.name: [
            (node.value.attr, node.slice.elts[1].value)
            for node in ast.walk(ast.parse(file.read_text("utf-8")))
            if isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Attribute)
            and isinstance(node.value.value, ast.Name)
            and node.value.value.id == "axes"
        ]
        for file in files
    }


def test_every_axis_is_in_the_vocabulary() -> None:
    """No annotation has an axis of its own."""
    used = {axis.lstrip("#") for found in annotated().values() for _, text in found for axis in text.split()}
    assert {axis for axis in used if axis.isidentifier()} <= set(VOCABULARY)
    assert {axis for axis in used if not axis.isidentifier()} <= {"...", "*axes", "1", "3"}


def test_nobody_else_needs_jaxtyping_or_beartype() -> None:
    """The package is imported without them, the rooms with annotations included."""
    code = (
        "import sys; sys.modules.update(jaxtyping=None, beartype=None); import lightning_gradwatch.recurrent; "
        "import lightning_gradwatch.recurrent.control.through_time"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
