"""Makes the LightningModule of a bundle: the class that the user names, with the run's own arguments."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from lightning_gradwatch.callbacks._compat import LightningModule
from lightning_gradwatch.runlog.bundles import BUNDLE_KEY, BundleError

Target = Callable[..., LightningModule]


def load_target(text: str) -> Target:
    """The class, or the function that makes a module, named as ``my_pkg.models:MyModel`` or ``train.py:MyModel``.

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
        found: Any = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # whatever the user's own code raises while it is imported
        raise BundleError(
            f"`--module` names {place!r}, whose import failed ({type(error).__name__}: {error}). "
            "Run the command in the folder where the training ran, or give the path of a .py file."
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise BundleError(
                f"`--module` names {name!r}, but {place!r} has no {part!r}. The class's name follows the colon."
            )
        found = getattr(found, part)
    if not callable(found):
        raise BundleError(
            f"`--module` must name a LightningModule's class, or a function that makes one; found {found!r}."
        )
    return cast("Target", found)


def arguments_of(text: str | None) -> dict[str, Any]:
    """The module's arguments from the command line.

    Raises:
        BundleError: they are no JSON object.
    """
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BundleError(
            f"`--args` must be a JSON object, such as '{{\"hidden\": 64}}'; found {text!r} ({error})."
        ) from error
    if not isinstance(found, dict):
        raise BundleError(f"`--args` must be a JSON object, such as '{{\"hidden\": 64}}'; found {text!r}.")
    return cast("dict[str, Any]", found)


def build_module(
    target: Target, path: Path, bundle: Mapping[str, Any], arguments: Mapping[str, Any]
) -> LightningModule:
    """A module as in the run, with the bundle's weights.

    Args:
        target: a LightningModule's class gets the hyperparameters that the run saved, with ``arguments`` over them; a function
            ``arguments`` alone.
        path: the bundle's file; ``bundle`` its content.

    Raises:
        BundleError: it cannot be made so, or the weights do not fit.
    """
    name = getattr(target, "__qualname__", str(target))
    _check_names(target, name, arguments)
    try:
        if isinstance(target, type) and issubclass(target, LightningModule):
            return target.load_from_checkpoint(path, map_location="cpu", weights_only=True, **arguments)
        module = target(**arguments)
        if not isinstance(module, LightningModule):
            raise BundleError(f"`--module` must make a LightningModule; {name} made a {type(module).__name__}.")
        module.load_state_dict(bundle["state_dict"])
    except BundleError:
        raise
    except TypeError as error:
        known = ", ".join(bundle["hyper_parameters"]) or "none, since the module does not call save_hyperparameters()"
        left_out = [at for at in bundle[BUNDLE_KEY]["problems"] if at.startswith("hyper_parameters")]
        hint = f"; it could not hold {', '.join(left_out)}" if left_out else ""
        raise BundleError(
            f"{name} could not be made ({error}). The bundle has these arguments: {known}{hint}. Give the others by --args "
            "'{…}', or name a function that makes the module."
        ) from error
    except Exception as error:  # whatever the user's own class raises
        if "state_dict" not in str(error):
            raise BundleError(f"{name} could not be made ({type(error).__name__}: {error}).") from error
        raise BundleError(
            f"The bundle's weights do not fit {name} ({' '.join(str(error).split())[:300]}). Is it the run's own class "
            f"({bundle[BUNDLE_KEY]['module']}) with its own arguments?"
        ) from error
    return module


def _check_names(target: Target, name: str, arguments: Mapping[str, Any]) -> None:
    """Lightning would pass over an argument that the class does not take."""
    taken = inspect.signature(target).parameters
    if any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    for argument in arguments:
        if argument not in taken:
            raise BundleError(f"`--args` gives {argument!r}, but {name} takes {', '.join(taken) or 'no arguments'}.")


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
