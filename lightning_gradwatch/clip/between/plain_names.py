"""What names and conditions in a user's code plainly stand for: looked up, never run."""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

UNKNOWN: Final = object()
"""Not to be told without running something of the user's."""

_PLAIN = (bool, int, float, str, type(None))
"""Types of values whose comparison runs nothing of the user's."""

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class PlainNames:
    """The names that a piece of code knows.

    Args:
        known: each → what it stands for now.
    """

    def __init__(self, known: Mapping[str, Any]) -> None:
        self._known = known

    def value(self, node: ast.expr) -> Any:
        """What stands behind a constant, a name, an attribute or an entry that is plainly there;
        UNKNOWN otherwise.
        """
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self._known.get(node.id, UNKNOWN)
        if isinstance(node, ast.Attribute):
            return _attribute(self.value(node.value), node.attr)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            owner = self.value(node.value)
            return cast("dict[Any, Any]", owner).get(node.slice.value, UNKNOWN) if type(owner) is dict else UNKNOWN
        return UNKNOWN

    def holds(self, test: ast.expr) -> bool | None:
        """Whether a condition is met now; None where that cannot be told."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.holds(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            return self._joined([self.holds(one) for one in test.values], isinstance(test.op, ast.Or))
        if isinstance(test, ast.Compare):
            return self._compared(test)
        value = self.value(test)
        return bool(value) if type(value) in _PLAIN else None

    def _joined(self, parts: list[bool | None], settles: bool) -> bool | None:
        """Of ``or`` a part that holds settles it, of ``and`` one that does not."""
        if settles in parts:
            return settles
        return None if None in parts else not settles

    def _compared(self, test: ast.Compare) -> bool | None:
        compare = _COMPARE.get(type(test.ops[0]))
        left, right = self.value(test.left), self.value(test.comparators[0])
        if compare is None or len(test.ops) > 1 or left is UNKNOWN or right is UNKNOWN:
            return None
        is_identity = isinstance(test.ops[0], (ast.Is, ast.IsNot))
        if not is_identity and not (type(left) in _PLAIN and type(right) in _PLAIN):
            return None
        try:
            return compare(left, right)
        except TypeError:  # the order of a number and None
            return None


def _attribute(owner: Any, name: str) -> Any:
    """Of an object, a module's child, a class's plain value; ``hparams`` is a property of
    Lightning's.
    """
    if owner is UNKNOWN:
        return UNKNOWN
    own: Any = getattr(owner, "__dict__", {})
    for holder in (own, own.get("_modules"), owner):
        if isinstance(holder, dict) and name in holder:
            return cast("dict[str, Any]", holder)[name]
    if name == "hparams":
        return own.get("_hparams", UNKNOWN)
    of_class = inspect.getattr_static(type(owner), name, UNKNOWN)
    return of_class if type(of_class) in _PLAIN else UNKNOWN
