"""``python -m tests.matrix.beside [LIBRARY …]``: what pip would install and replace where people have other libraries.

Each library gets an environment of its own, with the torch of ``constraints.txt``; the wheel is only tried, by ``--dry-run``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.matrix.environment import ROOT

LIBRARIES = ("pytorch-forecasting", "darts[torch]", "neuralforecast")
NAMED = ("torch", "lightning", "pytorch-lightning")
"""Those that must stay, and whose versions are printed."""


def main() -> int:
    """0 where nothing but this package would be installed."""
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(sys.executable, folder)
        for library in sys.argv[1:] or LIBRARIES:
            python = _environment(library, folder / "environment")
            new = would_install(python, wheel)
            failed |= set(new) != {"lightning-gradwatch"}
            print(f"{_versions(python, library)}: pip would install {', '.join(new)}", flush=True)
            shutil.rmtree(folder / "environment")
    return int(failed)


def build(python: str, folder: Path) -> Path:
    """The wheel, made of the checkout."""
    command = ("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    subprocess.run([python, "-m", *command], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def would_install(python: str, *wanted: str | Path) -> list[str]:
    """What pip says that it would install there: a distribution that it would replace is among them."""
    options = ("install", "--dry-run", "--quiet", "--report", "-", *map(str, wanted))
    said = subprocess.run([python, "-m", "pip", *options], check=True, capture_output=True, text=True).stdout
    return sorted(one["metadata"]["name"] for one in json.loads(said)["install"])


def _environment(library: str, place: Path) -> str:
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python, limits = str(place / "bin" / "python"), place / "limits.txt"
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    limits.write_text("\n".join(pin for pin in pins if pin.partition("==")[0] in NAMED), "utf-8")
    options = ("install", "--quiet", "--no-cache-dir", "--constraint", str(limits))
    subprocess.run([python, "-m", "pip", *options, "torch"], check=True)
    subprocess.run([python, "-m", "pip", *options, library], check=True)
    return python


def _versions(python: str, library: str) -> str:
    """Of the library, and of what must stay; darts and neuralforecast have one of Lightning's names alone."""
    code = (
        "import importlib.metadata as m, sys\n"
        "there = {one.metadata['Name']: one.version for one in m.distributions()}\n"
        "print(', '.join(f'{name} {there[name]}' for name in sys.argv[1:] if name in there))"
    )
    names = (library.partition("[")[0], *NAMED)
    return subprocess.run([python, "-c", code, *names], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
