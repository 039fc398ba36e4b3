"""The memory that a sweep of very long sequences takes beyond the call's own, by module and chunk.

    python -m benchmarks.cost.memory [--timesteps N]

Linux only: the kernel keeps the highest resident memory of a process. Each sweep says whether it is exact. Seconds are those of a clock
on the wall, and mean little on a machine that does other things.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
from pathlib import Path

import torch

from benchmarks.cost.launches import KINDS, called
from lightning_gradwatch.recurrent import RecurrentCall, profiles, sweep


class PeakMemory:
    """By how much the process's resident memory rose above what it was before, at its highest (Linux)."""

    mebibytes = 0.0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free already would hide what is taken now
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._before = self._kibibytes("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.mebibytes = (self._kibibytes("VmHWM") - self._before) / 1024

    def _kibibytes(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))


def of_sweep(call: RecurrentCall, chunk: int, at_once: bool) -> str:
    """One line."""
    begun = time.perf_counter()
    with PeakMemory() as peak:
        swept = sweep(call, chunk=chunk, at_once=at_once)
    taken = time.perf_counter() - begun
    exact = all(profile.exact for profile in profiles(call, swept))
    way = "at once" if at_once else "timestep by timestep"
    return f"{way:>21} {chunk:7,} {peak.mebibytes:6.0f} {taken:9.1f} {exact!s:>6}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{'':>6} {'':>21} {'chunk':>7} {'MiB':>6} {'seconds':>9} {'exact':>6}")
    for kind, make in KINDS.items():
        torch.manual_seed(0)
        x = torch.randn(options.timesteps, options.batch, 32)
        with called(make(32, options.hidden), x) as call:
            for at_once, chunk in ((False, 64), (False, 256), (False, options.timesteps), (True, 256)):
                print(f"{kind:>6} {of_sweep(call, chunk, at_once)}", flush=True)


if __name__ == "__main__":
    main()
