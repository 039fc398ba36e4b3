"""All that this machine can measure of what a training step pays, one benchmark after the other.

    python -m benchmarks.cost            counts, CPU time, memory; with a CUDA device the time on the wall as well
    python -m benchmarks.cost --quick    the same at small sizes, to see that it runs: its figures say nothing

Each runs in a process of its own. One that fails does not end the others; the exit code then is 1.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Part:
    """A module of this package, with its command line, and that for a quick look."""

    title: str
    module: str
    full: str
    quick: str
    needs_cuda: bool = False

    def run(self, quick: bool) -> bool:
        """Whether it ended well."""
        command = [f"benchmarks.cost.{self.module}", *shlex.split(self.quick if quick else self.full)]
        print(f"\n== {self.title}\n$ python -m {shlex.join(command)}", flush=True)
        return subprocess.run([sys.executable, "-m", *command], check=False).returncode == 0


def _overhead(kind: str) -> Part:
    return Part(
        f"CPU time of a training step, {kind}", "overhead", f"--kind {kind}", f"--kind {kind} --steps 5 --rounds 0"
    )


PARTS = {
    "launches": Part("Operations that a sweep launches, counted", "launches", "", "--timesteps 8 16"),
    "memory": Part("Memory of a sweep of a very long sequence", "memory", "", "--timesteps 300"),
    "lstm": _overhead("LSTM"),
    "gru": _overhead("GRU"),
    "rnn": _overhead("RNN"),
    "cells": Part("CPU time of cells in a loop", "cells", "--calls 1000 --pairs 200", "--calls 100 --pairs 10"),
    "clip-step": Part("CPU time of a step of AdaptiveClip", "clip_step", "", "--rounds 2"),
    "clip-step-gpu": Part(
        "A step of AdaptiveClip on the GPU", "clip_step", "--device cuda --rounds 300", "--device cuda --rounds 2", True
    ),
    "wall": Part("Time of a training step on the GPU", "wall", "", "--quick", True),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args(arguments)
    failed = list[str]()
    for name in options.only:
        part = PARTS[name]
        if part.needs_cuda and not torch.cuda.is_available():
            print(f"\n== {part.title}: left out, there is no CUDA device", flush=True)
        elif not part.run(options.quick):
            failed.append(name)
    if failed:
        print(f"\nFailed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
