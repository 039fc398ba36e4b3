"""A real terminal, tmux's, in which a command runs and of which one sees what a user would see."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def find_tmux() -> str | None:
    """The path of tmux, or None."""
    return shutil.which("tmux")


class Terminal:
    """One tmux server with one window, private to a test.

    Args:
        socket: where the server listens; a short path.
        width, height: characters and lines.
    """

    def __init__(self, socket: Path, *, width: int = 100, height: int = 40) -> None:
        self._tmux = ("tmux", "-S", str(socket), "-f", "/dev/null")
        self._run("new-session", "-d", "-x", str(width), "-y", str(height), "env PS1='$ ' sh")
        self.wait_for(lambda screen: screen.rstrip().endswith("$"))  # what is typed before the prompt stands before it

    def type(self, command: Sequence[str]) -> None:
        """Type a command and press Enter."""
        self._run("send-keys", "-l", shlex.join(command))
        self._run("send-keys", "Enter")

    def press(self, key: str) -> None:
        """Press a key, by tmux's name for it: ``C-c``."""
        self._run("send-keys", key)

    def resize(self, width: int, height: int) -> None:
        """Give the window another size."""
        self._run("resize-window", "-x", str(width), "-y", str(height))

    def screen(self) -> str:
        """The text that stands in the window."""
        return self._run("capture-pane", "-p")

    def wait_for(self, true_of: Callable[[str], object], seconds: float = 60) -> str:
        """The first screen of which the condition is true.

        Raises:
            TimeoutError: there was none; the message is the last screen.
        """
        end = time.monotonic() + seconds
        while not true_of(screen := self.screen()):
            if time.monotonic() > end:
                raise TimeoutError(screen)
            time.sleep(0.1)
        return screen

    def close(self) -> None:
        """End the server and what runs in it."""
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True)

    def _run(self, *arguments: str) -> str:
        # A test runner's idea of the width is not the window's.
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        command = [*self._tmux, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
