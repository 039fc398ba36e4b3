"""Sphinx configuration. The pages on event kinds are those that the package itself carries, so that they cannot differ."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import lightning_gradwatch
from lightning_gradwatch import EventKind
from lightning_gradwatch.report.explain import TOY, body, explanation

project = "lightning-gradwatch"
author = "The lightning-gradwatch developers"
release = version = lightning_gradwatch.__version__
NOTEBOOKS = importlib.util.find_spec("myst_nb") is not None  # without it they are left out
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
extensions.append("myst_nb" if NOTEBOOKS else "myst_parser")
nb_execution_mode = "force"  # a notebook is kept without what it shows
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "lightning-gradwatch"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
exclude_patterns = ["_build"] if NOTEBOOKS else ["_build", "**.ipynb"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
# Types of other projects that autodoc would otherwise want resolved.
suppress_warnings = ["ref.python"]
if not NOTEBOOKS:
    suppress_warnings += ["toc.not_readable", "ref.doc"]  # what leads to them

HERE = Path(__file__).parent


def write_event_pages(_app: object) -> None:
    """A page for each event kind, the one that `gradwatch explain` prints, and an index of them."""
    folder = HERE / "reference" / "events"
    folder.mkdir(parents=True, exist_ok=True)
    for kind in EventKind:
        _write(folder / f"{kind.page}.md", f"({kind.lower()})=\n{explanation(kind)}")
    rows = [f"| [`{kind}`](events/{kind.page}.md) | {kind.severity} | {_says(kind)} |" for kind in EventKind]
    pages = "\n".join(f"events/{kind.page}" for kind in EventKind)
    index = [
        "# Event kinds",
        "What went wrong, one page a kind: what it means, how it is found, what it looks like in the report, what to do "
        "about it, and an example. "
        "In a terminal `gradwatch explain KIND` prints the same page.",
        "| kind | severity | what it says |\n|---|---|---|\n" + "\n".join(rows),
        f"```{{toctree}}\n:hidden:\n\n{pages}\n```",
        "## The model of the examples",
        body(TOY),
    ]
    _write(HERE / "reference" / "events.md", "\n\n".join(index))


def _says(kind: EventKind) -> str:
    return re.sub(r"\{(\w+)[^}]*\}", r"*\1*", kind.message.replace("{detail}", ""))


def _write(page: Path, text: str) -> None:
    if not page.exists() or page.read_text("utf-8") != text:  # what is unchanged is not built again
        page.write_text(text, "utf-8")


def setup(app) -> None:
    app.connect("builder-inited", write_event_pages)
