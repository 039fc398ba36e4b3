"""What the package imports is declared, and what is declared is imported."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

import lightning_gradwatch
from tests.project import PROJECT, ROOT, declared

PACKAGE = ROOT / "lightning_gradwatch"
ANNOTATIONS = {"jaxtyping"}
"""Named in annotations alone, which nobody reads but the tests and pyright."""
LIGHTNING = {"lightning", "pytorch-lightning"}


def imported(tree: ast.AST) -> set[str]:
    """The packages that a file names in an import, or in ``require`` of one of the extra."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
            names |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return {name.partition(".")[0] for name in names} - {"lightning_gradwatch", *sys.stdlib_module_names}


@pytest.fixture(scope="module")
def used() -> dict[Path, set[str]]:
    """File → the distributions that it imports from."""
    named = {file: imported(ast.parse(file.read_text("utf-8"))) for file in sorted(PACKAGE.rglob("*.py"))}
    # Python 3.10 finds only those that list their packages in a file of their own; others are called as what they hold.
    owners = {"markdown_it": ["markdown-it-py"], **packages_distributions()}
    return {
        file: {canonicalize_name(owners.get(name, [name])[0]) for name in names - ANNOTATIONS}
        for file, names in named.items()
    }


def test_all_that_is_imported_is_declared(used) -> None:
    """By the core, or by the extra that draws."""
    known = {*declared("report"), *LIGHTNING}
    assert {str(file.relative_to(PACKAGE)): names - known for file, names in used.items() if names - known} == {}


def test_all_that_is_declared_is_imported(used) -> None:
    """The core and the extras of users name nothing that merely comes along."""
    assert {*declared("report")} - LIGHTNING == set().union(*used.values()) - LIGHTNING
    assert {*declared()} & LIGHTNING == {"pytorch-lightning"}


def test_both_names_of_lightning_have_the_same_bounds() -> None:
    """Of the core's and of the extra."""
    assert declared("lightning")["lightning"].specifier == declared()["pytorch-lightning"].specifier


def test_the_version_is_said_once() -> None:
    """In the package; whoever cites it cites that one."""
    assert PROJECT["dynamic"][0] == "version"
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert cited is not None
    assert cited[1] == lightning_gradwatch.__version__
