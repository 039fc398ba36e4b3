"""One knows where a test lies: unit tests as the package does, integration tests by what is promised."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "lightning_gradwatch"


def folders(place: Path) -> set[str]:
    """Those below ``place`` that hold Python files."""
    return {file.parent.relative_to(place).as_posix() for file in place.rglob("*.py")}


def test_unit_tests_lie_as_the_package_does() -> None:
    """Each of their folders is one of the package."""
    assert folders(TESTS / "unit") <= folders(PACKAGE)


def test_integration_tests_lie_by_what_is_promised() -> None:
    """Each folder has its line in the README, and no test lies outside of them."""
    page = (TESTS / "README.md").read_text("utf-8")
    promised = set(re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE))
    assert {file.name for file in (TESTS / "integration").iterdir() if (file / "__init__.py").exists()} == promised
    assert not list((TESTS / "integration").glob("test_*.py"))


def parameters(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    """Of a function; of a class those of its ``__init__``, or its fields."""
    body = node.body if isinstance(node, ast.ClassDef) else [node]
    names = {one.target.id for one in body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}
    for one in body:
        if isinstance(one, ast.FunctionDef) and (one is node or one.name == "__init__"):
            taken = one.args
            every = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, taken.vararg, taken.kwarg]
            names |= {each.arg for each in every if each is not None}
    return names


def documented(docstring: str) -> Iterator[str]:
    """The names that its section ``Args`` begins its paragraphs with."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", docstring + "\n", re.MULTILINE)
    for names in re.findall(r"^    ([\w*][\w*, ]*?):", section[1] if section else "", re.MULTILINE):
        yield from (name.strip().lstrip("*") for name in names.split(","))


def test_docstrings_name_the_arguments_that_there_are() -> None:
    """None that was renamed or has gone."""
    stale = [
        f"{file.name}, {node.name}: {name}"
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        for name in documented(ast.get_docstring(node) or "")
        if name not in parameters(node)
    ]
    assert stale == []
