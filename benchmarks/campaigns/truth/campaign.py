"""The runs of the truth campaign drawn, trained, judged and counted."""

from __future__ import annotations

import logging
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from random import Random

import torch

from benchmarks.campaigns.truth import (
    accidents,
    cells,
    curves,
    gates,
    healthy,
    newer,
    nonfinite,
    reach,
    remedies,
    sick,
    unlearned,
    verdicts,
)
from benchmarks.campaigns.truth.case import Case, Told, Truth, train
from benchmarks.campaigns.truth.sentences import MISS, NUMBER, REMEDY, SAID, UNREAD, VERDICT, Fault, Judgement, judged
from lightning_gradwatch.events import Severity

JUDGES = (accidents, curves, gates, remedies, unlearned, verdicts)  # importing them fills SAID
MAKERS: tuple[Callable[[Random], Case], ...] = (
    *healthy.KINDS,
    *reach.KINDS,
    *sick.KINDS,
    *nonfinite.KINDS,
    *cells.KINDS,
    *newer.KINDS,
)
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
    if (
        case.kind == "cell in a plain list"
        and "Leaky" not in said
        and "not measured" not in said
        and "tap(" not in said
    ):
        yield "the recurrence in a plain list is neither measured nor told"
    if "batch_size" in case.where and told.batch_sizes - {case.where["batch_size"]}:
        yield f"batches of {told.batch_sizes} were measured"
    alarms = [event for event in told.events if event.severity != Severity.INFO]
    if case.cause in ("", "padding, rightly read") and alarms:
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


def show(number: int, outcome: Judgement) -> None:
    """Print what is wrong with a run, and all that was said of it."""
    print(f"\n{number}: {outcome.kind}")
    for fault in outcome.faults:
        print(f"  {fault.sort.upper()}: {fault.why}\n    {fault.sentence}")
    print(*(f"  | {line}" for line in outcome.said), sep="\n")
