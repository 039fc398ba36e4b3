"""What pyproject.toml declares."""

from __future__ import annotations

import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it along

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def declared(*extras: str) -> dict[str, Requirement]:
    """By name, of the core and of these extras; what they say of the package itself is followed."""
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in PROJECT["optional-dependencies"][extra])]
    found = {canonicalize_name(one.name): one for one in map(Requirement, texts)}
    own = found.pop("lightning-gradwatch", None)
    return found if own is None else {**declared(*own.extras), **found}
