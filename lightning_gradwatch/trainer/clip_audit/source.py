"""Where a user's own code names a function that clips: read, never run, and nothing is patched."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType
from typing import Any

_CLIP = frozenset({"clip_grad_norm_", "clip_grad_value_", "clip_grad_norm", "clip_grads_with_norm_", "clip_gradients"})

_FRAMEWORK = ("torch", "lightning", "pytorch_lightning", "lightning_gradwatch")

_EVERY_STEP = ("training_step", "on_before_zero_grad", "on_after_backward", "on_before_optimizer_step")
"""What Lightning calls at every step."""

_PERHAPS = (ast.Lambda, ast.IfExp, ast.BoolOp, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
"""Expressions of which a part may not be run."""


def naming(owner: object) -> dict[str, bool]:
    """The methods of ``owner`` that name a clipping function → whether they call it whenever they
    are run, at every step.

    Args:
        owner: a module or a callback; what its class has from torch or Lightning is passed over.
    """
    kind = type(owner)
    methods: dict[str, bool] = {}
    for name in dict.fromkeys(name for base in kind.__mro__ for name in vars(base)):
        method = inspect.unwrap(attribute) if callable(attribute := inspect.getattr_static(kind, name, None)) else None
        if (
            isinstance(method, FunctionType)
            and not _is_framework(method.__module__)
            and _names(method.__code__, method)
        ):
            methods[f"{kind.__name__}.{name}"] = name in _EVERY_STEP and _surely_calls(method)
    return methods


def _is_framework(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _FRAMEWORK


def _names(code: CodeType, method: FunctionType) -> bool:
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return any(_clips(name, method) for name in code.co_names) or any(_names(one, method) for one in inner)


def _clips(name: str, method: FunctionType) -> bool:
    """Whether a name is that of a clipping function, or was given to one when it was imported."""
    return name in _CLIP or getattr(method.__globals__.get(name), "__name__", "") in _CLIP


def _surely_calls(method: FunctionType) -> bool:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, SyntaxError, TypeError):  # typed in, or made by exec
        return False
    first = tree.body[0]
    return isinstance(first, ast.FunctionDef) and _reaches(first.body, method)


def _reaches(statements: Sequence[ast.stmt], method: FunctionType) -> bool:
    """Whether a call is reached, come what may: in no branch or loop, behind no early return."""
    for statement in statements:
        if isinstance(statement, ast.With) and _reaches(statement.body, method):
            return True
        if isinstance(statement, (ast.Expr, ast.Assign)) and any(
            _clips(name, method) for name in _called(statement.value)
        ):
            return True
        if any(isinstance(node, (ast.Return, ast.Raise)) for node in ast.walk(statement)):
            return False
    return False


def _called(expression: ast.AST) -> Iterator[str]:
    """Names of the functions that are called in it."""
    if isinstance(expression, _PERHAPS):
        return
    if isinstance(expression, ast.Call):
        function: Any = expression.func
        yield getattr(function, "attr", None) or getattr(function, "id", "")
    for child in ast.iter_child_nodes(expression):
        yield from _called(child)
