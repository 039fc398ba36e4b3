"""The file of a bundle: everything needed to repeat one training step."""

from __future__ import annotations

import inspect
import os
import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from lightning_gradwatch.runlog.bundle_schema import first_fault
from lightning_gradwatch.runlog.format import UPGRADE, is_newer
from lightning_gradwatch.runlog.portable import size
from lightning_gradwatch.runlog.records import EVENT, MalformedError, checked

BUNDLE_FOLDER = "bundles"
"""In the run log's folder."""

BUNDLE_VERSION = "1.0"
"""Readers accept every minor of their own major and refuse a newer major."""

BUNDLE_KEY = "gradwatch"
"""Under it lies what a bundle holds besides a Lightning checkpoint's own keys."""


_MOST_ARGUMENTS = 4  # that a hint names
_MOST_TIMES = (
    4  # its own size on the disk, that a bundle may take in memory: weights that modules share count for each ...
)
_LEAST_BOUND = 64 * 2**20  # ... but so many bytes harm nobody


class BundleError(ValueError):
    """A bundle that cannot be read or repeated, in one line with its remedy."""


def args_to_give(maker: Callable[..., Any], held: Collection[str]) -> str:
    """The option of ``gradwatch replay`` that names the arguments of ``maker`` besides those
    held; empty where there are none.
    """
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


def read_bundle(path: Path, *, max_mib: int | None = None) -> dict[str, Any]:
    """Read a bundle, tensors on the CPU. No code in the file is run, and all of it is looked
    at before any of it is returned.

    Args:
        max_mib: what it may take in memory, in MiB; None is a few times
            what the file takes on the disk.

    Raises:
        BundleError: there is none, or it is damaged, of a newer format,
            or unfolds to more than it may.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "nothing"
        raise BundleError(
            f"`BUNDLE` must be a bundle's file; found {kind} at {str(path)!r}. They lie in <run log>/bundles."
        )
    bound = _bound(path, max_mib)
    try:
        _check_size(_unfolded(path), bound, path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        extras: Any = content.get(BUNDLE_KEY) if isinstance(content, dict) else None
    except BundleError:
        raise
    except Exception as error:  # a damaged file may fail anywhere within torch
        raise BundleError(f"{str(path)!r} cannot be read as a bundle ({_why(error)}). Name another one.") from error
    if not isinstance(extras, dict):
        raise BundleError(f"{str(path)!r} is no bundle of GradWatch. They lie in <run log>/bundles.")
    content, extras = cast("dict[str, Any]", content), cast("dict[str, Any]", extras)
    _check_version(extras.get("bundle_version"), path)
    fault = first_fault(content, extras)
    if fault is not None:
        raise BundleError(f"{str(path)!r} is damaged: {fault}. Name another one.")
    _check_size(size(content), bound, path)
    return {**content, BUNDLE_KEY: {**extras, "event": checked(extras["event"], EVENT)}}


def _why(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's own text tells how to run what is in the file
        return "it is damaged, or holds more than data"
    return ((str(error).splitlines() or [""])[0] or type(error).__name__)[:200]


def _check_version(version: Any, path: Path) -> None:
    try:
        newer = is_newer(version, BUNDLE_VERSION)
    except MalformedError as error:
        raise BundleError(f"{str(path)!r} is damaged: its bundle_version is none. Name another one.") from error
    if newer:
        raise BundleError(
            f"{str(path)!r} has bundle format {version!r:.40}; this version reads {BUNDLE_VERSION}. {UPGRADE}"
        )


def _bound(path: Path, max_mib: int | None) -> int:
    """Bytes that a bundle may take in memory."""
    return max(_LEAST_BOUND, _MOST_TIMES * path.stat().st_size) if max_mib is None else max_mib * 2**20


def _unfolded(path: Path) -> int:
    """What the parts of the file take once they are unpacked. torch packs
    nothing, somebody else may have.
    """
    with zipfile.ZipFile(path) as parts:
        return sum(part.file_size for part in parts.infolist())


def _check_size(takes: int, bound: int, path: Path) -> None:
    if takes > bound:
        raise BundleError(
            f"{str(path)!r} takes {path.stat().st_size / 2**20:.1f} MiB and unfolds to {takes / 2**20:.0f}; {bound / 2**20:.0f} are "
            "taken. If you trust it, give `--max-mib`."
        )
