"""Photograph the report of the demo's first act in a headless Chromium, for the page that explains it.

gradwatch demo --out DEMO
python -m docs.make_report_picture DEMO
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from lightning_gradwatch import load_run
from lightning_gradwatch.report import write_report
from tests.browser import Browser, find_browser

PICTURES = Path(__file__).parent / "pictures" / "report"
RUNS = {"agreement-rnn": "vanilla RNN", "agreement-lstm": "LSTM"}
PARTS = {"verdict": "verdict", "heatmap": "h-grid", "lag": "h-lag", "horizon": "h-horizon", "direct": "h-last"}
"""File → the heading of the part that it shows."""

CLIPPED = {"clipping": "h-clip", "events": "h-events"}


def main(demo: Path) -> None:
    executable = find_browser()
    if executable is None:
        raise SystemExit("There is no Chromium here. Install it: apt-get install chromium")
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(executable, Path(folder) / "profile")
        try:
            for runs, parts in ((RUNS, PARTS), ({"explosion-clipped": "AdaptiveClip"}, CLIPPED)):
                logs = [load_run(demo / run) for run in runs]
                page = write_report(logs, Path(folder) / "report.html", names=list(runs.values()))
                browser.open(page, width=1000)
                browser.wait_for("document.body.dataset.drawn !== undefined")
                for name, heading in parts.items():
                    browser.screenshot(
                        PICTURES / f"{name}.png", of=f"document.getElementById('{heading}').closest('section')"
                    )
                    print(f"wrote {PICTURES / f'{name}.png'}")
        finally:
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
