"""One knows where a test lies: unit tests as the package does, integration tests by what is promised."""

from __future__ import annotations

import re
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
