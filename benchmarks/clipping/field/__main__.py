"""Adaptive clipping on recurrent networks: none, a fixed norm, six published rules and ours, on 29 problems, on one CPU.

    python -m benchmarks.clipping.field                          # all: an estimated day on one core, most of it temporal order
    python -m benchmarks.clipping.field --tasks polyphony VAE    # those whose name begins so
    python -m benchmarks.clipping.field --quick                  # a few updates of each
    python -m benchmarks.clipping.field --again "AdaptiveClip()" # make these runs anew

Every family with more than one setting chooses it for each problem on the tuning seeds (100, 101); the table and the picture show the
reporting seeds (0, 1, 2) alone. Runs go to a file, one a line; what is there is not run again, so a comparison may be made in parts.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.clipping.field.results import Record, Results, Row, best, rows
from benchmarks.clipping.field.rules import rules
from benchmarks.clipping.field.show import picture, table
from benchmarks.clipping.field.task import Task, train
from benchmarks.clipping.field.tasks import tasks
from benchmarks.clipping.methods import Method

TUNING, REPORTING = (100, 101), (0, 1, 2)


class Comparison:
    """Runs what is missing.

    Args:
        results: what there is.
        size: how long the runs are; only runs of one size are compared.
    """

    def __init__(self, results: Results, size: str, tuning: Sequence[int], reporting: Sequence[int]) -> None:
        self.results, self.size, self.tuning, self.reporting = results, size, tuning, reporting

    def on(self, task: Task) -> list[Row]:
        """Each family's chosen setting on one problem, on the reporting seeds."""
        families: dict[str, list[Method]] = {}
        for method in rules():
            families.setdefault(method.family, []).append(method)
        return [self._family(task, settings) for settings in families.values()]

    def _family(self, task: Task, settings: list[Method]) -> Row:
        chosen = settings[0]
        if len(settings) > 1:
            tried = best(rows(self._run(task, method, seed) for method in settings for seed in self.tuning))
            (chosen,) = (method for method in settings if method.setting == tried.setting)
        (row,) = rows(self._run(task, chosen, seed) for seed in self.reporting)
        return row

    def _run(self, task: Task, method: Method, seed: int) -> Record:
        key = (self.size, task.name, method.family, method.setting, seed)
        known = self.results.find(key)
        if known is None:
            known = Record.of(*key, train(task, method, seed))
            self.results.add(known)
        return known


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("field.jsonl"))
    parser.add_argument("--picture", type=Path, help="an SVG or PNG file to draw")
    parser.add_argument("--tasks", nargs="+", default=[""], help="beginnings of names")
    parser.add_argument("--seeds", type=int, nargs="+", default=REPORTING)
    parser.add_argument("--tuning-seeds", type=int, nargs="+", default=TUNING)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--again", help="a family whose runs are made anew")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    results = Results(given.results, given.again)
    comparison = Comparison(results, "quick" if given.quick else "full", given.tuning_seeds, given.seeds)
    compared: dict[str, list[Row]] = {}
    for name, task in tasks(given.quick).items():
        if name.startswith(tuple(given.tasks)):
            compared[name] = comparison.on(task)
            print("\n".join(table(name, compared[name])), flush=True)
    if given.picture:
        picture(compared, given.picture)


if __name__ == "__main__":
    main()
