"""A virtual environment for one combination. Each release is downloaded once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.matrix.combinations import Combination

ROOT = Path(__file__).parents[2]

FOR_THE_TESTS = (
    *("pytest>=9", "pytest-randomly", "pytest-timeout", "pytest-xdist", "hypothesis"),
    *(
        "jsonargparse[signatures]",
        "tensorboard",
        *("packaging", "jaxtyping", "beartype"),
        "pandas",
        "plotly",
        "matplotlib",
        "rich",
        "markdown-it-py",
    ),
    *("nbclient", "nbformat", "ipykernel"),
    *("hatchling>=1.27", "hatch-fancy-pypi-readme", "editables"),  # to install the project itself
)
COMPARED_WITH = ("zclip==1.0.0", "autoclip==0.2.1", "smartclip==0.1.1")
"""Published implementations. What they depend on is there, or not needed."""


def interpreter(version: str) -> str | None:
    """A Python of that version, on the path or among pyenv's; None where there is none."""
    candidates = [
        shutil.which(f"python{version}"),
        *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")),
    ]
    return next((path for path in candidates if path and _runs(path, version)), None)


def _runs(path: str, version: str) -> bool:
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return said.returncode == 0 and said.stdout.startswith(f"Python {version}.")


def make(combination: Combination, python: str, folder: Path) -> Path:
    """Install the combination and the project.

    Returns:
        The environment's interpreter.

    Raises:
        subprocess.CalledProcessError: pip could not do it, as where the project's bounds forbid it.
    """
    place, wheels = folder / combination.name, folder / "wheels"
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(place)], check=True)
    own = str(place / "bin" / "python")
    pinned = [f"{name}=={version}" for name, version in combination.versions.items()]
    others = [name for name in FOR_THE_TESTS if name.partition(">")[0] not in combination.versions]
    wanted = [*pinned, *others, *combination.beside]
    _pip(own, "download", "--no-cache-dir", "--dest", str(wheels), *wanted)
    _pip(own, "download", "--no-cache-dir", "--no-deps", "--dest", str(wheels), *COMPARED_WITH)
    offline = ("install", "--no-index", "--find-links", str(wheels))
    _pip(own, *offline, *wanted, "--editable", str(ROOT))
    _pip(own, *offline, "--no-deps", *COMPARED_WITH)
    return place / "bin" / "python"


def kept(combination: Combination, folder: Path) -> Path | None:
    """The interpreter of an environment that an earlier run has left."""
    python = folder / combination.name / "bin" / "python"
    return python if python.exists() else None


def _pip(python: str, *arguments: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([python, "-m", "pip", arguments[0], *quiet, *arguments[1:]], check=True, env=dict(os.environ))
