"""Sphinx configuration. The pages on event kinds and logger keys are made from the code, so that they cannot differ from it."""

from __future__ import annotations

from pathlib import Path

import lightning_gradwatch
from lightning_gradwatch import EventKind

project = "lightning-gradwatch"
author = "The lightning-gradwatch developers"
release = version = lightning_gradwatch.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "lightning-gradwatch"
exclude_patterns = ["_build"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# Types of other projects that autodoc would otherwise want resolved.
suppress_warnings = ["ref.python"]

HERE = Path(__file__).parent


def write_event_page(_app: object) -> None:
    """One section for each event kind, with its own message and remedy."""
    lines = [
        "# Event kinds",
        "",
        "What each kind means and what to do about it; the same text that the event itself carries.",
        "",
    ]
    for kind in EventKind:
        lines += [
            f"({kind.lower()})=",
            f"## {kind}",
            "",
            f"*Severity: {kind.severity}.*",
            "",
            f"> {kind.message}",
            "",
            kind.remedy,
            "",
        ]
    page = HERE / "reference" / "events.md"
    text = "\n".join(lines)
    if not page.exists() or page.read_text() != text:
        page.write_text(text)


def setup(app) -> None:
    app.connect("builder-inited", write_event_page)
