"""The truth campaign: is every sentence true that GradWatch says of a run?

    python -m benchmarks.campaigns.truth [--runs N] [--seed N] [--kind WORDS] [-j N] [--list]

Each run is a small model drawn at random, trained for a few steps by a real Trainer with ``GradWatch`` and sometimes
``AdaptiveClip``. Some are healthy, some are sick by construction. What is true of a run does not come from GradWatch: every
step that a sentence speaks of is done again in float64 with the recurrent modules unrolled into PyTorch's own cells, and
autograd says what reaches each timestep, directly and by lag.

Every sentence of the closing lines, the warnings and the events (message and remedy) is then read by machine. Columns:

- ``sentences``: read, and held against the truth;
- ``false verdict``: a word that does not hold: healthy, vanishing, "no gradient reached it", a place or a cause that is another;
- ``false number``: a number outside of what the oracle allows. Where one anchor of one loss is followed it allows one number, up to
  rounding; where the figure is a median over several anchors, what the lowest and the highest of them allow;
- ``unfit remedy``: advice that does not help against what is wrong with the run by construction;
- ``miss``: what is wrong by construction, or a recurrence that is not measured, is not told; or a healthy run has a warning;
- ``not judged``: a sentence that no judge knows. New words need a judge first.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from random import Random

import torch

from benchmarks.campaigns import truth_accidents, truth_healthy, truth_loops, truth_remedies, truth_sick, truth_verdicts
from benchmarks.campaigns.truth_judge import MISS, NUMBER, REMEDY, SAID, UNREAD, VERDICT, Fault, Judgement, judged
from benchmarks.campaigns.truth_models import Case, Told, Truth, train
from lightning_gradwatch.events import Severity

JUDGES = (truth_accidents, truth_remedies, truth_verdicts)  # importing them fills SAID
MAKERS: tuple[Callable[[Random], Case], ...] = (*truth_healthy.KINDS, *truth_sick.KINDS, *truth_loops.KINDS)
SORTS = (VERDICT, NUMBER, REMEDY, MISS, UNREAD)


def draw(number: int, seed: int) -> Case:
    """The run of that number: every kind in turn, everything else at random."""
    return MAKERS[number % len(MAKERS)](Random(f"{seed}:{number}"))


def misses(truth: Truth, told: Told) -> Iterable[str]:
    """What had to be told and was not; and alarms where nothing is wrong."""
    case = truth.case
    kinds = {event.kind for event in told.events}
    if case.must and not kinds & set(case.must):
        yield f"none of {', '.join(case.must)} was told"
    said = " ".join((*told.lines, *told.warnings, *(event.message for event in told.events)))
    for module in case.unmeasured:
        if module not in said:
            yield f"{module} is neither measured nor told"
    if case.kind == "cell in a plain list" and "cell" not in said and "not measured" not in said and "tap(" not in said:
        yield "the recurrence in a plain list is neither measured nor told"
    alarms = [event for event in told.events if event.severity != Severity.INFO]
    if not case.cause and alarms:
        yield f"nothing is wrong, and there is {alarms[0].kind} at step {alarms[0].step}"


def judge(number: int, seed: int) -> Judgement:
    """Train the run of that number, and judge what is said."""
    quietly()
    case = draw(number, seed)
    try:
        return judged(*train(case), SAID, misses)
    except Exception as error:
        return Judgement(case.kind, 0, [Fault(MISS, "", f"it ended in {error!r}")], [])


def quietly() -> None:
    """One thread, and no word from Lightning but those that are listened to."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def campaign(numbers: Iterable[int], seed: int, jobs: int = 1) -> list[Judgement]:
    """Those runs."""
    one = partial(judge, seed=seed)
    if jobs == 1:
        return [one(number) for number in numbers]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        return pool.map(one, numbers, chunksize=8)


def table(outcomes: list[Judgement]) -> str:
    """By kind."""
    lines = [f"{'':40}{'runs':>6}{'sentences':>11}" + "".join(f"{sort:>15}" for sort in SORTS)]
    for name in ("all", *dict.fromkeys(outcome.kind for outcome in outcomes)):
        group = [outcome for outcome in outcomes if name in ("all", outcome.kind)]
        found = Counter(fault.sort for outcome in group for fault in outcome.faults)
        figures = "".join(f"{found[sort]:15}" for sort in SORTS)
        lines.append(f"{name:40}{len(group):6}{sum(outcome.sentences for outcome in group):11}{figures}")
    return "\n".join(lines)


def main() -> int:
    """Print the table; exit code 1 if any sentence is false, unread or missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=350)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="", help="only kinds whose name holds these words")
    parser.add_argument("-j", "--jobs", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print each fault, and everything that was said of its run")
    options = parser.parse_args()
    quietly()
    begin = time.monotonic()
    numbers = [n for n in range(options.runs) if options.kind in draw(n, options.seed).kind]
    outcomes = campaign(numbers, options.seed, options.jobs)
    for number, outcome in zip(numbers, outcomes, strict=True):
        if options.list and outcome.faults:
            show(number, outcome)
    print(table(outcomes))
    print(f"{time.monotonic() - begin:.0f} s.")
    return 1 if any(outcome.faults for outcome in outcomes) else 0


def show(number: int, outcome: Judgement) -> None:
    """Print what is wrong with a run, and all that was said of it."""
    print(f"\n{number}: {outcome.kind}")
    for fault in outcome.faults:
        print(f"  {fault.sort.upper()}: {fault.why}\n    {fault.sentence}")
    print(*(f"  | {line}" for line in outcome.said), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
