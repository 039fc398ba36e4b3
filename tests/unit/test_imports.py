"""The package's own shape: imports without circles, private names that stay at home, files of one idea."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lightning_gradwatch"
MODULES = {
    ".".join(("lightning_gradwatch", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
LINES = 300
"""A file that is longer holds a second idea, or says in a comment what keeps it together."""


def imports(module: str) -> list[tuple[str, str | None]]:
    """What a module imports of the package, those for the type checker alone included: module, name."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [(node.module, alias.name) for alias in node.names]
    return [(source, name) for source, name in found if source.split(".")[0] == "lightning_gradwatch"]


def test_no_circle() -> None:
    """No module imports one that leads back to it."""
    below = {
        module: {f"{source}.{name}" if f"{source}.{name}" in MODULES else source for source, name in imports(module)}
        for module in MODULES
    }
    below["lightning_gradwatch"] = set()  # its names are imported when they are first used
    circles: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            circles.append([*way[way.index(module) :], module])
        elif module not in done:
            for source in sorted(below.get(module, ())):
                visit(source, [*way, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])
    assert not circles


def test_private_names_stay_at_home() -> None:
    """Nobody outside a package imports a module or a name that begins with an underscore from it."""
    strangers: list[str] = []
    for module in MODULES:
        home = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
        for source, name in imports(module):
            parts = [*source.split("."), *([name] if name else [])]
            private = [i for i, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")]
            if private and ".".join(parts[: private[0]]) not in (home, module):
                strangers.append(f"{module} imports {'.'.join(parts)}")
    assert not strangers


def test_a_file_is_one_idea() -> None:
    """No file, those of the tests and benchmarks included, is longer than can be read at once, or it says why."""
    folders = (PACKAGE, ROOT / "tests", ROOT / "benchmarks")
    texts = {path: path.read_text(encoding="utf-8") for folder in folders for path in sorted(folder.rglob("*.py"))}
    reasons = re.compile(rf"^# Over {LINES} lines: .{{20,}}$", re.MULTILINE)
    long = [path for path, text in texts.items() if len(text.splitlines()) > LINES]
    assert long
    assert [path.relative_to(ROOT) for path in long if not reasons.search(texts[path])] == []
    assert [path.relative_to(ROOT) for path, text in texts.items() if path not in long and reasons.search(text)] == []
