"""What the user names on the command line: the model's class, and its arguments.

It imports nothing of Lightning: of Lightning's two names, that which the user's own code imports is
to be the one.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from lightning_gradwatch.runlog.bundles import BundleError

Target = Callable[..., Any]
"""A LightningModule's class, or a function that makes one."""


def load_target(text: str) -> Target:
    """The class, or the function that makes a module, named as ``my_pkg.models:MyModel`` or
    ``train.py:MyModel``.

    Raises:
        BundleError: there is none of that name, or its import failed.
    """
    place, _, name = text.rpartition(":")
    if not place or not name:
        raise BundleError(
            f"`--module` must be MODULE:CLASS, such as my_pkg:MyModel or train.py:MyModel; found {text!r}."
        )
    sys.path.insert(0, os.getcwd())
    try:
        target: Any = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # whatever the user's own code raises while it is imported
        raise BundleError(
            f"`--module` names {place!r}, whose import failed ({type(error).__name__}: {error}). "
            "Run the command in the folder where the training ran, or give the path of a .py file."
        ) from error
    for part in name.split("."):
        if not hasattr(target, part):
            raise BundleError(
                f"`--module` names {name!r}, but {place!r} has no {part!r}. The class's name follows the colon."
            )
        target = getattr(target, part)
    if not callable(target):
        raise BundleError(
            f"`--module` must name a LightningModule's class, or a function that makes one; found {target!r}."
        )
    return cast("Target", target)


def arguments_of(text: str | None) -> dict[str, Any]:
    """The module's arguments from the command line.

    Raises:
        BundleError: they are no JSON object.
    """
    if text is None:
        return {}
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise BundleError(
            f"`--args` must be a JSON object, such as '{{\"hidden\": 64}}'; found {text!r} ({error})."
        ) from error
    if not isinstance(arguments, dict):
        raise BundleError(f"`--args` must be a JSON object, such as '{{\"hidden\": 64}}'; found {text!r}.")
    return cast("dict[str, Any]", arguments)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
