"""The file of a bundle: everything needed to repeat one training step."""

from __future__ import annotations

import inspect
import os
import pickle
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch

BUNDLE_FOLDER = "bundles"
"""In the run log's folder."""

BUNDLE_VERSION = "1.0"
"""Readers accept every minor of their own major and refuse a newer major."""

BUNDLE_KEY = "gradwatch"
"""Under it lies what a bundle holds besides a Lightning checkpoint's own keys."""


_MOST_ARGUMENTS = 4  # that a hint names


class BundleError(ValueError):
    """A bundle that cannot be read or repeated, in one line with its remedy."""


def args_to_give(maker: Callable[..., Any], held: Collection[str]) -> str:
    """The option of ``gradwatch replay`` that names the arguments of ``maker`` besides those held; empty where there are none."""
    taken = inspect.signature(maker).parameters.values()
    names = [p.name for p in taken if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in held]
    shown = [f'"{name}": …' for name in names[:_MOST_ARGUMENTS]]
    shown += ["…"] if len(names) > _MOST_ARGUMENTS else []
    return f"--args '{{{', '.join(shown)}}}'" if shown else ""


def write_bundle(path: Path, content: Mapping[str, Any]) -> None:
    """Write a bundle in one move: it is there in full or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(dict(content), temporary)
        os.replace(temporary, path)
    except RuntimeError as error:  # what torch.save says when the disk is full
        raise OSError(str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_bundle(path: Path) -> dict[str, Any]:
    """Read a bundle, tensors on the CPU. No code in the file is run.

    Raises:
        BundleError: there is none, or it is damaged or of a newer format.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "nothing"
        raise BundleError(
            f"`BUNDLE` must be a bundle's file; found {kind} at {str(path)!r}. They lie in <run log>/bundles."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BundleError(f"{str(path)!r} cannot be read as a bundle ({first}). Name another one.") from error
    own = cast("dict[str, Any]", content).get(BUNDLE_KEY) if isinstance(content, dict) else None
    if not isinstance(own, dict) or "bundle_version" not in own:
        raise BundleError(f"{str(path)!r} is no bundle of GradWatch. They lie in <run log>/bundles.")
    found = str(cast("dict[str, Any]", own)["bundle_version"])
    if int(found.partition(".")[0]) > int(BUNDLE_VERSION.partition(".")[0]):
        raise BundleError(
            f"{str(path)!r} has bundle format {found}; this version reads {BUNDLE_VERSION}. Upgrade lightning-gradwatch."
        )
    return cast("dict[str, Any]", content)
