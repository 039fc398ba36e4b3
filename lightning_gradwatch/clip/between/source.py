"""Where a user's own code names a function that clips: read, never run, and nothing is patched."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any

from lightning_gradwatch.clip.between.plain_names import PlainNames

_CLIP = frozenset({"clip_grad_norm_", "clip_grad_value_", "clip_grad_norm", "clip_grads_with_norm_", "clip_gradients"})

_FRAMEWORK = ("torch", "lightning", "pytorch_lightning", "lightning_gradwatch")

_EVERY_STEP = ("training_step", "on_before_zero_grad", "on_after_backward", "on_before_optimizer_step")
"""What Lightning calls at every step."""

_BEFORE_BACKWARD = ("training_step", "on_before_zero_grad")
"""Of these, what Lightning calls before it sends the loss back."""

_BACKWARD = frozenset({"backward", "manual_backward"})

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
    methods = _methods(owner)
    return {shown: one.__name__ in _EVERY_STEP and bool(_reached(one, owner)) for shown, one in methods.items()}


def too_early(owner: object, *, automatic: bool) -> set[str]:
    """Those of them whose clipping comes before the backward pass, wherever it is called.

    Args:
        automatic: Lightning sends the loss back, after ``training_step``.
    """
    methods = _methods(owner)
    if automatic:
        return {shown for shown, method in methods.items() if method.__name__ in _BEFORE_BACKWARD}
    return {
        shown
        for shown, method in methods.items()
        if method.__name__ in _EVERY_STEP and come_before_backward(_reached(method, owner), _body(method))
    }


def _methods(owner: object) -> dict[str, FunctionType]:
    """Of the user's that name a clipping function."""
    kind = type(owner)
    methods: dict[str, FunctionType] = {}
    for name in dict.fromkeys(name for base in kind.__mro__ for name in vars(base)):
        method = inspect.unwrap(attribute) if callable(attribute := inspect.getattr_static(kind, name, None)) else None
        if (
            isinstance(method, FunctionType)
            and not is_framework(method.__module__)
            and names_clipping(method.__code__, method.__globals__)
        ):
            methods[f"{kind.__name__}.{name}"] = method
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


def _reached(method: FunctionType, owner: object) -> list[ast.Call]:
    """The calls of a clipping function that it surely makes."""
    code = method.__code__
    hidden = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}  # by names of its own
    names = {name: value for name, value in method.__globals__.items() if name not in hidden}
    if code.co_argcount:
        names[code.co_varnames[0]] = owner
    return list(clippings_reached(_body(method), method.__globals__, PlainNames(names)))


def _body(method: FunctionType) -> Sequence[ast.stmt]:
    """Its statements; none where they cannot be read."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, SyntaxError, TypeError):  # typed in, or made by exec
        return []
    first = tree.body[0]
    return first.body if isinstance(first, ast.FunctionDef) else []


def come_before_backward(clippings: Sequence[ast.Call], statements: Sequence[ast.stmt]) -> bool:
    """Whether these calls all stand before the first one that sends a loss back."""
    calls = [node for one in statements for node in ast.walk(one) if isinstance(node, ast.Call)]
    back = [_place(call) for call in calls if _name_of(call) in _BACKWARD]
    return bool(clippings and back) and max(map(_place, clippings)) < min(back)


def _place(call: ast.Call) -> tuple[int, int]:
    """Of its end."""
    return call.end_lineno or call.lineno, call.end_col_offset or call.col_offset


def clippings_reached(
    statements: Sequence[ast.stmt], known: Mapping[str, Any], names: PlainNames
) -> Iterator[ast.Call]:
    """The calls of a clipping function that are reached: in no loop, behind no early end, and in no
    branch but one whose condition is plainly met.

    Args:
        known: the global names that the statements know.
        names: what the names in conditions stand for.
    """
    for statement in statements:
        if isinstance(statement, ast.If) and (holds := names.holds(statement.test)) is not None:
            branch = statement.body if holds else statement.orelse
            yield from clippings_reached(branch, known, names)
            if any(isinstance(node, _ENDS) for one in branch for node in ast.walk(one)):
                return
            continue
        if isinstance(statement, ast.With):
            yield from clippings_reached(statement.body, known, names)
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
