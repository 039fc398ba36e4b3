"""The libraries that draw are an extra: one place says so when one is missing."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_gradwatch.plain import command
from lightning_gradwatch.report.cell import cell_commands, in_notebook

INSTALL = "pip install 'lightning-gradwatch[report]'"

_OF_A_PAGE = ("plotly", "markdown_it")
_OF_ALL = (*_OF_A_PAGE, "matplotlib", "rich")


def require(module: str) -> Any:
    """Import a library of the extra ``report``.

    Raises:
        ImportError: it is missing; the message says how to install it.
    """
    library = module.partition(".")[0]
    try:
        importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:  # it is there, and something that it needs is not
            raise
        raise ImportError(f"This needs {library}, which is not installed. Install the extra: {INSTALL}") from error
    return importlib.import_module(module)


def require_all() -> None:
    """Import what any drawing needs, so that nobody waits for a training whose end cannot be drawn.

    Raises:
        ImportError: something is missing; the message says how to install it.
    """
    for library in _OF_ALL:
        require(library)


def installed(*libraries: str) -> bool:
    """Whether they are there; none is imported, since that may take a second."""
    return all(_is_there(library) for library in libraries)


def commands(folder: Path) -> list[str]:
    """The commands that show a run log in this environment, and what the others need."""
    if in_notebook():
        return cell_commands(str(folder.absolute()), drawing=installed(*_OF_A_PAGE), install=INSTALL)
    page, events = (command("gradwatch", name, str(folder.absolute())) for name in ("report", "events"))
    if installed(*_OF_A_PAGE):
        return [page, events]
    return [events, f"(gradwatch report draws it as a page; it needs {INSTALL})"]


def _is_there(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except ValueError:  # of a module that was put in by hand
        return False
