"""Where a user's own code names a function that clips: read, never run, and nothing is patched."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any

_CLIP = frozenset({"clip_grad_norm_", "clip_grad_value_", "clip_grad_norm", "clip_grads_with_norm_", "clip_gradients"})

_FRAMEWORK = ("torch", "lightning", "pytorch_lightning", "lightning_gradwatch")

_EVERY_STEP = ("training_step", "on_before_zero_grad", "on_after_backward", "on_before_optimizer_step")
"""What Lightning calls at every step."""

_PERHAPS = (ast.Lambda, ast.IfExp, ast.BoolOp, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
"""Expressions of which a part may not be run."""

_ENDS = (ast.Return, ast.Raise, ast.Continue, ast.Break)
"""After them, what follows may not be run."""


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
            and not is_framework(method.__module__)
            and names_clipping(method.__code__, method.__globals__)
        ):
            methods[f"{kind.__name__}.{name}"] = name in _EVERY_STEP and _surely_calls(method)
    return methods


def is_framework(module: str | None) -> bool:
    """Whether code of this module is none of the user's."""
    return (module or "").partition(".")[0] in _FRAMEWORK


def names_clipping(code: CodeType, known: Mapping[str, Any]) -> bool:
    """Whether code names a clipping function.

    Args:
        known: the global names that it knows.
    """
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return any(_clips(name, known) for name in code.co_names) or any(names_clipping(one, known) for one in inner)


def _clips(name: str, known: Mapping[str, Any]) -> bool:
    """Whether a name is that of a clipping function, or was given to one when it was imported."""
    return name in _CLIP or getattr(known.get(name), "__name__", "") in _CLIP


def _surely_calls(method: FunctionType) -> bool:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, SyntaxError, TypeError):  # typed in, or made by exec
        return False
    first = tree.body[0]
    return isinstance(first, ast.FunctionDef) and any(clippings_reached(first.body, method.__globals__))


def clippings_reached(statements: Sequence[ast.stmt], known: Mapping[str, Any]) -> Iterator[ast.Call]:
    """The calls of a clipping function that are reached, come what may: in no branch or loop,
    behind no early end.

    Args:
        known: the global names that the statements know.
    """
    for statement in statements:
        if isinstance(statement, ast.With):
            yield from clippings_reached(statement.body, known)
        if isinstance(statement, (ast.Expr, ast.Assign)):
            yield from (call for call in _calls(statement.value) if _clips(_name_of(call), known))
        if any(isinstance(node, _ENDS) for node in ast.walk(statement)):
            return


def _calls(expression: ast.AST) -> Iterator[ast.Call]:
    """Those that are made in it, come what may."""
    if isinstance(expression, _PERHAPS):
        return
    if isinstance(expression, ast.Call):
        yield expression
    for child in ast.iter_child_nodes(expression):
        yield from _calls(child)


def _name_of(call: ast.Call) -> str:
    function: Any = call.func
    return getattr(function, "attr", None) or getattr(function, "id", "")
