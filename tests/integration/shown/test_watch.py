"""The live view in a real terminal, while another process trains and writes."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lightning_gradwatch.runlog import load_run
from tests.runlogs import write_run
from tests.terminal import Terminal, find_tmux

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_tmux() is None, reason="no tmux: apt-get install tmux"),
]
WATCH = [sys.executable, "-m", "lightning_gradwatch", "watch", "--interval", "0.2"]


@pytest.fixture
def terminal():
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        terminal = Terminal(Path(folder) / "tmux")
        yield terminal
        terminal.close()


def step_of(screen: str) -> int:
    found = re.search(r"GradWatch step ([\d,]+)", screen)
    return int(found[1].replace(",", "")) if found else -1


def test_it_follows_a_training(terminal, tmp_path):
    """Started before the training, it shows each module and layer, goes on with it, fits a smaller window, and Ctrl-C ends it."""
    folder = tmp_path / "run"
    terminal.type([*WATCH, str(folder)])
    terminal.wait_for(lambda screen: "waits for a run log" in screen)
    script = [sys.executable, "-m", "tests.integration.shown.train_slowly", str(folder), "60", "0.2"]
    with subprocess.Popen(script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as training:
        early = terminal.wait_for(lambda screen: step_of(screen) >= 0)
        later = terminal.wait_for(lambda screen: step_of(screen) >= step_of(early) + 10)
        assert training.poll() is None  # it still writes: what was seen is live
        terminal.resize(70, 20)
        small = terminal.wait_for(lambda screen: step_of(screen) > step_of(later) + 3)
        assert training.wait(200) == 0
    assert [f"rnn, layer {layer} LSTM" in later for layer in (0, 1)] == [True, True]
    assert "gradient norm" in later
    assert "GradWatch" in small.splitlines()[0]
    assert "events" in small  # the last part of the picture: it was made for this height
    assert "…" in small  # and for this width
    last = load_run(folder).step_records[-1]["step"]
    terminal.wait_for(lambda screen: step_of(screen) == last)
    terminal.press("C-c")
    ended = terminal.wait_for(lambda screen: screen.rstrip().endswith("$"))
    assert f"GradWatch step {last}" in ended  # the last picture stays
    assert "Traceback" not in ended


def test_a_torn_line_is_passed_over_and_what_follows_is_seen(terminal, tmp_path):
    """A line without its end is not there yet; when a resumed run goes on behind it, it counts as damaged."""
    write_run(tmp_path / "run", steps=100)
    steps = tmp_path / "run" / "steps.jsonl"
    with steps.open("a") as file:
        file.write('{"step": 777, "grad_n')
    terminal.type([*WATCH, str(tmp_path / "run")])
    screen = terminal.wait_for(lambda screen: step_of(screen) == 99)
    assert "damaged" not in screen
    with steps.open("a") as file:
        file.write('\n{"step": 100, "grad_norm": 0.5}\n')
    screen = terminal.wait_for(lambda screen: step_of(screen) == 100)
    assert "1 damaged line(s) passed over" in screen
