"""Draw what the commands print, as they print it, about the run logs that `gradwatch demo` left.

gradwatch demo --out DEMO
python docs/make_terminal_pictures.py DEMO
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from lightning_gradwatch import EventKind, load_run
from lightning_gradwatch.report.console import print_events, print_explanation, print_summary
from lightning_gradwatch.report.live import frame

PICTURES = Path(__file__).parent / "pictures" / "terminal"


def draw(name: str, title: str, show: Callable[[Console], None], *, width: int = 100) -> None:
    """Let ``show`` print to a console and save it as an SVG."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    show(console)
    picture = console.export_svg(title=title, theme=MONOKAI, unique_id=name)
    # Without the web fonts that rich would fetch: a reader has a monospaced one.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL).replace(
        "Fira Code, monospace", "monospace"
    )
    (PICTURES / f"{name}.svg").write_text(picture, "utf-8")
    print(f"wrote {PICTURES / f'{name}.svg'}")


def main(demo: Path) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    run = replace(load_run(demo / "explosion-clipped"), path=Path("gradwatch-demo/explosion-clipped"))

    def events(console: Console) -> None:
        print_summary(run, console=console)
        print_events(run.event_records, console=console)

    draw("watch", "gradwatch watch", lambda console: console.print(frame(run, width=100, height=30, age=1.0)))
    draw("events", "gradwatch events", events)
    kind = EventKind.NONFINITE_STATE
    draw("explain", f"gradwatch explain {kind.page}", lambda console: print_explanation(kind, console=console))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
