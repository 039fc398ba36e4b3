"""The numbers that judge stand in one place."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import lightning_gradwatch

ROOT = Path(lightning_gradwatch.__file__).parent
HOME = ROOT / "thresholds.py"
MODULES = [path for path in ROOT.rglob("*.py") if path != HOME]
JUDGES = [*(ROOT / "detect").glob("*.py"), *(ROOT / "runlog").glob("*.py"), *(ROOT / "report").rglob("*.py")]
JUDGES += [ROOT / name for name in ("profile.py", "padding.py", "metrics.py", "thresholds.py")]


def numbers(path):
    """The names of a module's constants that are a number, or computed from one."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
            literal = isinstance(value, ast.Constant) and isinstance(value.value, int | float)
            if name.isupper() and (literal or isinstance(value, ast.BinOp | ast.UnaryOp | ast.Name)):
                yield name


def test_a_number_that_judges_is_defined_once():
    """No two modules that judge have a constant of one name, and none of the package has one of the thresholds'."""
    counts = Counter(name for path in JUDGES for name in numbers(path) if not name.startswith("_"))
    assert [name for name, count in counts.items() if count > 1] == []
    shared = set(numbers(HOME))
    assert len(shared) > 20
    assert [(path.name, name) for path in MODULES for name in numbers(path) if name in shared] == []


def test_each_threshold_is_used_and_says_its_unit_and_reason():
    """A threshold that nobody imports is dead; one without a sentence under it is a number from nowhere."""
    imported = {
        alias.name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "lightning_gradwatch.thresholds"
        for alias in node.names
    }
    assert set(numbers(HOME)) - imported == set()
    body = ast.parse(HOME.read_text()).body
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Assign):
            assert isinstance(getattr(below, "value", None), ast.Constant), ast.unparse(node)


def test_thresholds_import_nothing():
    """A command that only reads a run log loads neither torch nor numpy for them."""
    tree = ast.parse(HOME.read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
