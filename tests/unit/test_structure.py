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


TESTED_ELSEWHERE = {
    "callbacks/anomaly": ("acting", "each of its parts acts in a fit"),
    "callbacks/fit": ("neutral", "it is GradWatch during a fit"),
    "outside": ("exact/test_plain_loops.py", "a loop is held against a Trainer"),
    "trainer/clip_audit": ("clipping/test_clip_audit.py", "what it tells comes from a Trainer's own steps"),
    "report/figures": ("../unit/report/test_figures.py", "a figure is drawn by the names that users call"),
}
"""Folders of the package without a unit test of their own: where they are tested, and why there."""


def logic(place: Path) -> set[str]:
    """Folders below ``place`` with a module besides ``__init__``."""
    files = (file for file in place.rglob("*.py") if not file.name.startswith("__"))
    return {file.parent.relative_to(place).as_posix() for file in files}


def test_each_folder_of_the_package_has_unit_tests_or_says_where_it_is_tested() -> None:
    """None is left out, and none has a reason that it does not need."""
    tested = {file.parent.relative_to(TESTS / "unit").as_posix() for file in (TESTS / "unit").rglob("test_*.py")}
    assert logic(PACKAGE) - tested == TESTED_ELSEWHERE.keys()
    assert all((TESTS / "integration" / where).exists() for where, _ in TESTED_ELSEWHERE.values())


IMPORT_FROM_TESTS = {
    "integration/acting/test_responses.py",
    "integration/clipping/test_clip_audit_explosions.py",
    "integration/clipping/test_published_training.py",
    "integration/located/remedies/test_data_and_parameters.py",
    "unit/recurrent/control/test_omega.py",
}
"""Tests that still import from another."""


def test_no_test_imports_from_another() -> None:
    """What two of them need lies in a module beside them; the few that still do are listed."""
    found = {
        f"{file.relative_to(TESTS).as_posix()}: {name[1]}"
        for file in TESTS.rglob("*.py")
        for name in re.finditer(
            r"^from (tests\.[\w.]*\btest_\w+|tests[\w.]* import (?:.*, )?test_\w+)",
            file.read_text("utf-8"),
            re.MULTILINE,
        )
    }
    assert {one.partition(":")[0] for one in found} <= IMPORT_FROM_TESTS, found


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
