"""How large the report of a long training is, and how quickly it is written and opened in a headless Chromium.

python -m benchmarks.cost.report [--steps 100000] [--every 50] [--layers 2] [--timesteps 128] [--rounds 5]

"Opened" is the time from the navigation to the load event, when all scripts have run and the words stand there; "drawn" ends when the
last picture is there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from lightning_gradwatch.report import write_report
from lightning_gradwatch.runlog import load_run
from tests.browser import Browser, find_browser
from tests.runlogs import write_run

DRAWN = "document.body.dataset.drawn !== undefined"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--timesteps", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    executable = find_browser()
    if executable is None:
        raise SystemExit("There is no Chromium here. Install it: apt-get install chromium")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = {"steps": options.steps, "every": options.every, "layers": options.layers}
        write_run(folder / "run", kind="LSTM", timesteps=options.timesteps, **shape)
        log = sum(file.stat().st_size for file in (folder / "run").iterdir())
        start = time.perf_counter()
        run = load_run(folder / "run")
        loaded = time.perf_counter()
        page = write_report(run, folder / "report.html")
        written = time.perf_counter()
        opened, drawn = _open(executable, page, folder / "profile", options.rounds)
        print(
            f"{options.steps:,} steps, {len(run.profile_records):,} profiles, {len(run.event_records):,} events\n"
            f"run log {log / 1e6:.1f} MB, read in {loaded - start:.1f} s\n"
            f"page {page.stat().st_size / 1e6:.1f} MB, written in {written - loaded:.1f} s\n"
            f"opened in {median(opened):.2f} s, drawn in {median(drawn):.2f} s (medians of {options.rounds})"
        )


def _open(executable: str, page: Path, profile: Path, rounds: int) -> tuple[list[float], list[float]]:
    browser = Browser(executable, profile)
    opened, drawn = list[float](), list[float]()
    try:
        for _ in range(rounds):
            start = time.perf_counter()
            opened.append(browser.open(page, width=1600))
            browser.wait_for(DRAWN)
            drawn.append(time.perf_counter() - start)
    finally:
        browser.close()
    return opened, drawn


if __name__ == "__main__":
    main()
