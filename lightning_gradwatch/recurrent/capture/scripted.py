"""Recurrences that TorchScript holds, which takes no hooks."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from lightning_gradwatch.recurrent.capture.modules import plain_name

_KINDS = {"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"}

_OPERATOR = re.compile(r"aten::(lstm|gru|rnn_tanh|rnn_relu)(_cell)?\(")
"""PyTorch's own recurrences in a graph's text."""


def scripted(model: nn.Module) -> dict[str, str]:
    """Qualified name → class of the modules of PyTorch's own recurrent
    classes that TorchScript holds.
    """
    return {name: module.original_name for name, module in _modules(model) if module.original_name in _KINDS}


def scripted_recurrences(model: nn.Module) -> dict[str, str]:
    """Qualified name → class of all modules that TorchScript holds with a recurrence inside: of
    PyTorch's own classes, with one of their operators, or with a loop that carries a tensor from
    round to round.
    """
    kinds = scripted(model)
    for name, module in _modules(model):
        if name not in kinds and _is_recurrent(module, inlined=False):
            kinds[name] = module.original_name
    for name, module in _modules(model):
        inside = any(other == name or other.startswith(f"{name}.") or name.startswith(f"{other}.") for other in kinds)
        if not inside and _is_recurrent(module, inlined=True):  # in a function that it calls
            kinds[name] = module.original_name
    return kinds


def _modules(model: nn.Module) -> list[tuple[str, torch.jit.ScriptModule]]:
    """The outermost first."""
    named = model.named_modules()
    return [(plain_name(name), module) for name, module in named if isinstance(module, torch.jit.ScriptModule)]


def _is_recurrent(module: torch.jit.ScriptModule, *, inlined: bool) -> bool:
    try:
        graph: Any = module.inlined_graph if inlined else module.graph  # pyright: ignore[reportAttributeAccessIssue]
    except RuntimeError:  # it has no forward
        return False
    loops = graph.findAllNodes("prim::Loop")
    return bool(_OPERATOR.search(str(graph))) or any(
        output.type().kind() == "TensorType" for loop in loops for output in loop.outputs()
    )
