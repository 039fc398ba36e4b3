"""The first-hour campaign: what does somebody read who makes one of the mistakes that newcomers make?

    python -m benchmarks.campaigns.first_hour [NAME …]

Each case is a training in a real Trainer, with the callbacks as they come; what is said while it trains, when it ends, and
by the commands that are tried first, is printed in full, and held against what has to be said there and what would be
false. The script ends with 1 where one of them is not so.
"""

# Over 300 lines: one campaign: its cases, what is heard of them, and the table that is printed.
from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.campaigns import first_hour_models as models
from lightning_gradwatch import AdaptiveClip, GradWatch
from lightning_gradwatch.cli import main as gradwatch

LOGGER = "lightning.pytorch.utilities.rank_zero"

Subject = tuple[models.Model, DataLoader]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training, and what has to be said of it.

    Args:
        name: in the list.
        make: the model and its data.
        says: what the training itself must say, while it runs or when it ends.
        never: what would be false there.
        commands: what is typed afterwards, and what that must print; ``RUN`` stands for the run log.
        steps, every: optimizer steps, and from one sampled one to the next.
        clip: whether ``AdaptiveClip`` is there too.
        happens: what befalls the model before step 12.
        watch: further arguments of ``GradWatch``.
        level: of Lightning's logger.
    """

    name: str
    make: Callable[[], Subject]
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    commands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    steps: int = 40
    every: int = 5
    clip: bool = False
    happens: Callable[[Any, Any], None] | None = None
    watch: dict[str, Any] = field(default_factory=dict)
    level: int = logging.INFO


@dataclass(frozen=True)
class Outcome:
    """All that was said, and what is wrong with it."""

    case: Case
    said: str
    printed: dict[str, str]
    wrong: tuple[str, ...]


class _Heard(logging.Handler):
    """What Lightning's logger lets through of what the two callbacks say."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if any(name in record.getMessage() for name in ("GradWatch", "AdaptiveClip")):
            self.lines.append(record.getMessage())


@contextlib.contextmanager
def _heard(level: int) -> Iterator[list[str]]:
    logger, handler = logging.getLogger(LOGGER), _Heard()
    before = logger.level, logger.propagate
    logger.setLevel(level)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield handler.lines
        ours = [
            str(one.message) for one in warned if "GradWatch" in str(one.message) or "AdaptiveClip" in str(one.message)
        ]
        handler.lines += ours
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def train(case: Case, folder: Path) -> str:
    """Everything that the training says."""
    torch.manual_seed(0)
    model, data = case.make()
    watch = GradWatch(every_n_steps=case.every, dirpath=folder / "run", **case.watch)
    callbacks: list[pl.Callback] = [watch]
    if case.clip:
        callbacks.append(AdaptiveClip(dirpath=folder / "run"))
    if case.happens is not None:
        callbacks.append(models.Happens(case.happens))
    with _heard(case.level) as lines, contextlib.suppress(ValueError, KeyboardInterrupt, SystemExit):
        pl.Trainer(
            accelerator="cpu",
            max_steps=case.steps,
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
            default_root_dir=folder,
        ).fit(model, data)
    return "\n".join(lines)


def typed(line: str, folder: Path) -> str:
    """What a command prints, its exit code in the last line."""
    out, before = io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = gradwatch(line.split())
    finally:
        os.chdir(before)
    return f"{out.getvalue()}exit code {code}"


def judge(case: Case) -> Outcome:
    """Train it, type its commands, and hold what is said against what has to be."""
    with tempfile.TemporaryDirectory() as name:
        said = train(case, Path(name))
        printed = {line: typed(line, Path(name)) for line in case.commands}
    wrong = [*_wrong("the training", said, case.says, case.never)]
    for line, parts in case.commands.items():
        wrong += _wrong(f"gradwatch {line}", printed[line], parts, case.never)
    return Outcome(case, said, printed, tuple(wrong))


def _wrong(who: str, text: str, says: Sequence[str], never: Sequence[str]) -> Iterator[str]:
    flat = " ".join(text.split())
    yield from (f"{who} does not say {part!r}" for part in says if part not in flat)
    yield from (f"{who} says {part!r}" for part in never if part in flat)


def _detached(cell: Callable[[], nn.Module], run: Callable[..., Any]) -> Callable[[], Subject]:
    return lambda: (models.by_hand(cell(), run), models.series())


def _regression(**options: Any) -> Callable[[], Subject]:
    return lambda: (models.regression(**options), models.series())


_NOTHING_FLOWS = ("nothing flows through time", "detach")
_FALSE_GREEN = ("healthy", "No events")
_ROWS = ("STEP_SKIPPED", "18 times, steps 12 to 29")

CASES = (
    Case(
        name="sequence to sequence with attention, Adam at 0.5",
        make=lambda: (models.translation(64, optimizer="Adam", lr=0.5), models.words()),
        says=("GradWatch, step 10: DIVERGED. The training has diverged: the loss is", "layer 0 (GRU): diverged"),
        never=_FALSE_GREEN,
        commands={"check run": ("failed", "exit code 1"), "events run": ("learning rate ten times lower",)},
    ),
    Case(
        name="the same with RMSprop, and Lightning's logger at WARNING",
        make=lambda: (models.translation(64, optimizer="RMSprop", lr=0.5), models.words()),
        level=logging.WARNING,
        says=(
            "GradWatch, step 10: DIVERGED. ",
            "layer 0 (GRU): diverged",
            "3 warnings, the first at step 10: DIVERGED",
        ),
        never=_FALSE_GREEN,
    ),
    Case(
        name="plain recurrent network, SGD at 300",
        make=_regression(cell="RNN", lr=300.0),
        says=("GradWatch, step 6: NONFINITE_LOSS", "The training had diverged: the loss rose from 4.64"),
        never=_FALSE_GREEN,
        commands={"check run": ("failed", "exit code 1"), "events run": ("learning rate ten times lower",)},
    ),
    Case(
        name="AdaptiveClip that clips nearly every step",
        make=lambda: (models.moving_target(lr=20.0), models.series()),
        clip=True,
        steps=90,
        says=("clipping has become the rule", "steps clipped"),
        never=_FALSE_GREEN,
        commands={"events run": ("Lower the learning rate, by ten times at first", "policy=Norm(")},
    ),
    Case(
        name="state detached: LSTMCell in a loop",
        make=_detached(lambda: nn.LSTMCell(models.WIDTH, models.HIDDEN), models.detached_lstm_cell),
        says=_NOTHING_FLOWS,
    ),
    Case(
        name="state detached: a cell of one's own",
        make=_detached(models.OwnCell, models.detached_own_cell),
        says=("GradWatch, step 0: net.cell. No gradient flows through time", *_NOTHING_FLOWS),
    ),
    Case(
        name="state detached: tapped before",
        make=_detached(models.OwnCell, models.tapped_before_detached),
        says=("mine", *_NOTHING_FLOWS),
        never=("found no recurrent module",),
    ),
    Case(
        name="state detached: tapped afterwards",
        make=_detached(models.OwnCell, models.detached_before_tapped),
        says=("GradWatch, step 0: mine. No gradient flows through time", *_NOTHING_FLOWS),
        never=("found no recurrent module",),
    ),
    Case(
        name="state detached: a fused LSTM fed step by step",
        make=_detached(
            lambda: nn.LSTM(models.WIDTH, models.HIDDEN, batch_first=True),
            models.detached_fused,
        ),
        says=_NOTHING_FLOWS,
    ),
    Case(
        name="batch_first forgotten",
        make=lambda: (models.regression(batch_first=False), models.series()),
        every=50,
        says=(
            "GradWatch, step 0: net.rnn, layer 0 (LSTM). Hardly any of its states gets a gradient.",
            "if 20 is the number of timesteps, batch_first=True was forgotten",
            "barely reached",
        ),
        never=_FALSE_GREEN,
        commands={"events run": ("ONE_SEQUENCE_REACHED", "batch_first=True was forgotten: make the module with it")},
    ),
    Case(
        name="weight of the head infinite from step 12 on, 18 steps skipped",
        make=_regression(),
        clip=True,
        happens=models.spoil_head,
        steps=30,
        says=("GradWatch, step 12: NONFINITE_", "not finite since step 12", "net.head.weight[0, 5] = inf"),
        never=("is not learned", "not over when training ended"),
        commands={
            "events run": ("not finite since step 12", "net.head.weight[0, 5] = inf", *_ROWS),
            "check run": ("net.head.weight[0, 5] = inf", "exit code 1"),
        },
    ),
    Case(
        name="bidirectional tagger, padded and not packed",
        make=lambda: (models.tagger(), models.padded()),
        steps=60,
        says=("net.rnn, layer 0 (reverse)",),
        never=("starve", "VANISHING", "barely reached", "is not learned"),
    ),
    Case(
        name="label at the start of 200 timesteps",
        make=lambda: models.label_first(200),
        steps=20,
        says=("vanishing", "gradwatch events"),
        commands={
            "events run": ("forget-gate bias of ln 200 = 5.3", "set that one's to 0"),
            "explain vanishing-hidden-gradient": ("order i, f, g, o", "bias[n : 2 * n], math.log(T)"),
        },
    ),
    Case(
        name="short memory where none is needed, and all is learned",
        make=lambda: (models.learned(), models.series()),
        steps=800,
        every=100,
        says=("with the loss down to",),
        never=("is not learned.", "nothing is learned"),
    ),
    Case(
        name="lag curve that lies flat near 1 %",
        make=models.plateau,
        steps=24,
        every=1,
        says=("after 9 of 50 timesteps (2 to 17 in the last 8 samples",),
        commands={"events run": ("9 of 50 (2 to 17)",)},
    ),
    Case(
        name="a recurrence that is found and tapped as well",
        make=_detached(models.OwnCell, models.tapped),
        says=("mine, layer 0",),
        never=("net.cell, layer 0",),
    ),
    Case(
        name="rollback",
        make=_regression(),
        happens=models.spoil_head,
        watch={"on_anomaly": "rollback", "snapshot_every_n_steps": 4},
        says=("GradWatch, step 12: STEP_SKIPPED", "go back to those after step"),
        never=("not finite since",),
        commands={"events run": ("head.weight[0, 5]",)},
    ),
    Case(
        name="Ctrl-C",
        make=_regression(),
        happens=models.interrupt,
        says=("how far the gradient reaches back through time", "net.rnn, layer 0", "gradwatch report"),
    ),
    Case(
        name="an exception of one's own",
        make=_regression(),
        happens=models.fail,
        says=("how far the gradient reaches back through time", "net.rnn, layer 0", "gradwatch report"),
    ),
    Case(
        name="Lightning's logger at WARNING, a NaN in the data",
        make=_regression(),
        happens=models.spoil_input,
        level=logging.WARNING,
        says=("GradWatch, step 12: NONFINITE_INPUT", "timestep 4, sequence 3", "1 critical event"),
    ),
    Case(
        name="gradwatch without an argument, and with a parent folder",
        make=_regression(),
        says=("gradwatch events",),
        commands={
            "events": ("net.rnn, layer 0", "reads", "exit code 0"),
            "events .": ("net.rnn, layer 0", "reads", "exit code 0"),
            "check": ("exit code 0",),
        },
    ),
    Case(
        name="gradwatch watch on a run that has ended",
        make=_regression(),
        clip=True,
        says=("gradwatch report",),
        commands={"watch run": ("This run has ended", "net.rnn", "loss", "gradient norm", "threshold", "exit code 0")},
    ),
)


def show(outcome: Outcome) -> None:
    """Print a case: its name, what was said, and what is wrong with it."""
    print(f"\n━━ {outcome.case.name}")
    print(*(f"   {line}" for line in outcome.said.splitlines()), sep="\n")
    for line, text in outcome.printed.items():
        print(f"   $ gradwatch {line}")
        print(*(f"   {row}" for row in text.splitlines()), sep="\n")
    print(*(f"   WRONG: {one}" for one in outcome.wrong), sep="\n", end="")


def main() -> int:
    """Print what each case reads; 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help="only cases whose name has this in it")
    names = parser.parse_args().names
    torch.set_num_threads(1)
    os.environ.setdefault("COLUMNS", "120")
    begin, outcomes = time.monotonic(), []
    for case in CASES:
        if not names or any(name in case.name for name in names):
            outcomes.append(judge(case))
            show(outcomes[-1])
    wrong = sum(bool(outcome.wrong) for outcome in outcomes)
    print(f"\n{len(outcomes)} cases, {wrong} of them wrong; {time.monotonic() - begin:.0f} s.")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
