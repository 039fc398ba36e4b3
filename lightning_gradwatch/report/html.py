"""One self-contained page about one or more runs. It opens offline; plotly draws it in the
browser."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightning_gradwatch.report import clip_cards, payload, sections, series
from lightning_gradwatch.report.extra import require
from lightning_gradwatch.report.summary import run_names
from lightning_gradwatch.runlog.reader import Run
from lightning_gradwatch.runlog.schema import to_json

_MOST_COLUMNS = 4
_SCRIPTS = ("frame.js", "pictures.js", "page.js")


def write_report(runs: Run | Sequence[Run], path: str | Path, *, names: Sequence[str] | None = None) -> Path:
    """Write the report of the runs, side by side, as one HTML file that asks nothing of the
    network.

    Args:
        runs: one or more.
        path: where the page goes.
        names: what to call the runs; their folders' names by default.

    Returns:
        ``path``.

    Raises:
        ValueError: there is no run.
        ImportError: plotly is missing.
    """
    page = report_page([runs] if isinstance(runs, Run) else list(runs), names)
    _write(Path(path), page.encode("utf-8", "replace"))  # a lone surrogate in a name has no UTF-8
    return Path(path)


def report_page(runs: Sequence[Run], names: Sequence[str] | None = None) -> str:
    """The page itself; arguments and errors as of :func:`write_report`."""
    if not runs:
        raise ValueError("`runs` must hold at least one run; found none. Load one with load_run(path).")
    names = list(names) if names is not None else run_names(runs)
    keys = list(dict.fromkeys(key for run in runs for key in series.group(run.profile_records)))
    template = files("lightning_gradwatch.report").joinpath("template")
    return _fill(
        template.joinpath("page.html").read_text("utf-8"),
        {
            # Only scripts that carry this word run: one that slipped in through a name would not.
            "nonce": secrets.token_urlsafe(16),
            "title": escape("GradWatch: " + ", ".join(names)),
            "columns": str(_columns(len(runs))),
            "css": template.joinpath("page.css").read_text("utf-8"),
            "headline": sections.headline(runs, names),
            "verdicts": sections.verdicts(runs, names, keys),
            "clipping": clip_cards.cards(runs, names),
            "notes": sections.notes(runs, names),
            "events": sections.events(runs, names, keys),
            "footer": sections.footer(runs, names),
            "data": _script_json(payload.build(runs, names)),
            "plotly": require("plotly.offline").get_plotlyjs(),
            "js": "\n".join(template.joinpath(name).read_text("utf-8") for name in _SCRIPTS),
        },
    )


def _write(path: Path, page: bytes) -> None:
    """In one move; a link is replaced, and what it leads to is left alone: a run log may have come
    from somebody else."""
    if path.exists() and not path.is_symlink() and not path.is_file():
        path.write_bytes(page)  # /dev/stdout, or a pipe
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(page)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _columns(panels: int) -> int:
    """Panels in a row at most, so that the last row is no orphan: 5 make 3 and 2, not 4 and 1."""
    return math.ceil(panels / math.ceil(panels / _MOST_COLUMNS))


def _fill(template: str, parts: Mapping[str, str]) -> str:
    """Put each part in its ``{{place}}``, in one pass, so that nothing within a part is taken for a
    place."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _script_json(value: Any) -> str:
    """JSON that cannot end or reopen the script element that it stands in."""
    text = json.dumps(to_json(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
