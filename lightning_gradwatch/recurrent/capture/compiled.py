"""Hooks within what ``torch.compile`` compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

is_compiling: Callable[[], bool] = (
    getattr(torch.compiler, "is_compiling", None) or cast("Any", torch)._utils.is_compiling
)
"""Whether the compiler traces the line that asks. Before PyTorch 2.3 it goes by another name."""


def _must_stay_whole() -> bool:
    """Asked by the compiler itself while it traces a hook; its
    answer is a constant of the graph.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator  # a second's import, made by then

    try:
        tracer = cast("Any", InstructionTranslator.current_tx())
    except AttributeError:  # torch.export runs the code itself
        return True
    return tracer.one_graph or getattr(tracer, "error_on_graph_break", False)  # older ones have only the first


cast("Any", _must_stay_whole)._dynamo_marked_constant = True


def must_not_break() -> bool:
    """Whether a hook is traced where a break in the graph is an error (``fullgraph=True``), so that
    it must do nothing. Elsewhere a hook that cannot be traced makes a break, and is called.
    """
    return is_compiling() and _must_stay_whole()
