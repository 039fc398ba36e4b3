"""Whether we speak into a notebook, and what can be done in its cells."""

from __future__ import annotations

import sys
from html import escape

from lightning_gradwatch.plain import command


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel: Jupyter's, Colab's, an editor's."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def cell_commands(folder: str, *, drawing: bool, install: str) -> list[str]:
    """What shows a run log in a cell, in place of the commands of a terminal: the kernel's own
    environment need not be on the path of a shell.

    Args:
        drawing: whether what draws is installed.
        install: the command that installs it.
    """
    shown = f"load_run({folder!r}).show()"
    if drawing:
        return [shown]
    events = command("%run", "-m", "lightning_gradwatch", "events", folder).replace("'%run'", "%run")
    return [events, f"({shown} draws the report in a cell; it needs %{install})"]


def frame(page: str, height: int) -> str:
    """A page within a cell. It runs its own scripts, and reaches nothing of what is around it.

    Args:
        height: in pixels.
    """
    return (
        f'<iframe title="GradWatch report" sandbox="allow-scripts allow-downloads" srcdoc="{escape(page)}" '
        f'style="width: 100%; height: {height}px; border: 0"></iframe>'
    )
