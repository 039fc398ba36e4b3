"""Whether the code of a loop names a function that clips, where it calls an optimizer's step."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, cast

from torch import Tensor, nn

from lightning_gradwatch.clip.between.plain_names import PlainNames
from lightning_gradwatch.clip.between.source import (
    clippings_reached,
    come_before_backward,
    is_framework,
    names_clipping,
)

_BLOCKS = ("body", "orelse", "finalbody")


class Naming:
    """Of one optimizer: the functions, or scripts, of the user's that make its steps and name a
    clipping function.

    Attributes:
        functions: each → whether it surely calls one at every step, for some of the parameters.
        early: those whose calls beside the step all stand before the backward pass.
    """

    def __init__(self) -> None:
        self.functions: dict[str, bool] = {}
        self.early: set[str] = set()
        self._places: set[tuple[CodeType, int]] = set()

    def look(self, parameters: Sequence[Tensor]) -> None:
        """Look at the line that makes the present step, once.

        A call counts as sure where it stands beside that of the step, in no branch of its own, and
        what it is given is named so plainly that it can be looked up: ``model.parameters()``, a
        module, a list of parameters. Nothing of the user's is run. Of steps that are made in
        several places nothing is sure.
        """
        frame = _users()
        if frame is None or (frame.f_code, frame.f_lineno) in self._places:
            return
        self._places.add((frame.f_code, frame.f_lineno))
        if names_clipping(frame.f_code, frame.f_globals):
            stepped = set(map(id, parameters))
            shown, blocks = _shown(frame.f_code), _blocks(frame)
            reached = [call for block in blocks for call in clippings_reached(block, frame.f_globals, _names(frame))]
            self.functions[shown] = any(stepped & set(map(id, _given(call, frame))) for call in reached)
            if blocks and come_before_backward(reached, blocks[0]):
                self.early.add(shown)
        if len(self._places) > 1:
            self.functions = dict.fromkeys(self.functions, False)
            self.early.clear()


def _shown(code: CodeType) -> str:
    return Path(code.co_filename).name if code.co_name == "<module>" else f"{code.co_name}()"


def _users() -> FrameType | None:
    """The innermost frame that is neither ours nor PyTorch's."""
    frame: FrameType | None = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame is not None and (is_framework(module := frame.f_globals.get("__name__")) or module in _BETWEEN):
        frame = frame.f_back
    return frame


_BETWEEN = ("contextlib", "functools")
"""What may lie between a loop and the hooks of its optimizer."""


def _blocks(frame: FrameType) -> list[Sequence[ast.stmt]]:
    """The statements beside the line that runs now, the innermost block first."""
    try:
        lines, first = inspect.getsourcelines(frame)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError, TypeError):  # typed in, or made by exec
        return []
    return _around(tree.body, frame.f_lineno - max(first - 1, 0))


def _around(block: Sequence[ast.stmt], line: int) -> list[Sequence[ast.stmt]]:
    """The innermost block that holds the line, and those around it that are run as often."""
    for statement in block:
        if statement.lineno <= line <= (statement.end_lineno or statement.lineno):
            inner = [
                blocks
                for name in _BLOCKS
                if (inside := getattr(statement, name, None))
                and (blocks := _around(cast("list[ast.stmt]", inside), line))
            ]
            if not inner:
                return [block]
            return [*inner[0], block] if isinstance(statement, ast.With) else inner[0]
    return []


def _given(call: ast.Call, frame: FrameType) -> list[Tensor]:
    """What a clipping function is given, where that is named plainly."""
    first: Any = call.args[0] if call.args else next((one.value for one in call.keywords), None)
    if isinstance(first, ast.Call) and isinstance(first.func, ast.Attribute) and first.func.attr == "parameters":
        first = first.func.value
    given = _names(frame).value(first) if isinstance(first, ast.expr) else None
    if isinstance(given, nn.Module):
        return list(given.parameters())
    listed = cast("Sequence[Any]", given) if isinstance(given, (list, tuple)) else ()
    return [one for one in listed if isinstance(one, Tensor)]


def _names(frame: FrameType) -> PlainNames:
    return PlainNames({**frame.f_globals, **frame.f_locals})
