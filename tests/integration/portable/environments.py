"""Environments as other people have them: some of the packages that lie here, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]


class Environment:
    """A virtual environment of its own, in which what it holds is linked to, so that it takes no time to make."""

    def __init__(self, folder: Path) -> None:
        venv.EnvBuilder(symlinks=True).create(folder)
        self.folder, self.python = folder, folder / "bin" / "python"
        (self.site,) = folder.glob("lib/python*/site-packages")

    def link(self, names: Iterable[str]) -> None:
        """Have these distributions, none of what they need."""
        for name in names:
            for file in distribution(name).files or []:
                if file.parts[0] not in ("..", "__pycache__"):
                    _link(Path(str(distribution(name).locate_file(""))), self.site, file.parts)

    def pip(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Pip of the environment that runs the tests, at work in this one; it reaches no index."""
        return self._run(Path(sys.executable), "-m", "pip", "--python", self.python, *arguments)

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """``python arguments…`` far from the repository."""
        return self._run(self.python, *arguments, **environment)

    def command(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """``gradwatch arguments…``, as installed."""
        return self._run(self.folder / "bin" / "gradwatch", *arguments, **environment)

    def _run(self, program: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GRADWATCH", "PYTEST", "PYTHON", "PIP_"))}
        return subprocess.run(
            [str(program), *map(str, arguments)],
            cwd=self.folder,
            env={**kept, "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )


def needed_by(requirements: Iterable[Requirement]) -> set[str]:
    """The distributions that these requirements lead to, themselves included."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [(requirement, "") for requirement in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                found.add(name)
                waiting += [(Requirement(text), wanted) for text in distribution(name).requires or []]
    return found


def requirements_of(wheel: Distribution, extra: str = "") -> list[Requirement]:
    """What a wheel itself requires, with an extra or without."""
    wanted = [Requirement(text) for text in wheel.requires or []]
    found = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": extra})]
    for one in found:
        one.marker = None  # it holds
    return found


def _link(source: Path, target: Path, parts: tuple[str, ...]) -> None:
    """Link the outermost folder of a file that only one distribution has a part in; several share ``google``, say."""
    first, below = parts[0], parts[1:]
    shared = bool(below) and not (source / first / "__init__.py").exists() and not first.endswith(".dist-info")
    if shared:
        (target / first).mkdir(exist_ok=True)
        _link(source / first, target / first, below)
    elif not (target / first).exists():
        (target / first).symlink_to(source / first)
