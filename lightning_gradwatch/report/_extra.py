"""The libraries that draw are an extra: one place says so when one is missing."""

from __future__ import annotations

import importlib
from typing import Any


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
        raise ImportError(
            f"This needs {library}, which is not installed. "
            "Install the extra: pip install 'lightning-gradwatch[report]'"
        ) from error
    return importlib.import_module(module)
