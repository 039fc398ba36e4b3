"""The sick campaign: what is said of runs that explode, vanish or diverge by construction, and by whom?

    python -m benchmarks.campaigns.sick [--runs N] [--steps N] [--seed N] [--list]

Each run is a real Trainer with ``GradWatch`` as it comes. Sick by construction are: recurrent matrices that are λ times an
orthogonal one, λ well under or over 1; gates that begin shut; sequences too long for the cell (depth in time); learning rates 30 to
1,000 times too high. As many runs again are healthy ones, drawn as the quiet campaign draws them.

The truth of a run does not come from GradWatch: every 10 steps the model is unrolled with PyTorch's own cells, and autograd says how
far the gradient of the last timestep grows or falls (``sick_truth.py``); divergence is read off the losses. *Explodes*: over 100-fold
growth in two looks in a row, or over 10,000-fold in one. *Vanishes*: in every look of the first 100 steps the horizon is under half
of the sequence and the first timestep's total gradient under 1 % of the largest. *Diverges*: the loss is not finite, or over three
times where it began.

The first table counts what the constructions came to, the second holds each kind of event against the truth that it claims. A note
(severity ``info``) claims nothing, save that timesteps get under 1 % of the largest gradient, where it says so: a loss that is low
makes a note of a gradient that vanishes, and the user is told all the same. The third table says of every detector in which share of
the runs of each sort it raised an alarm, such a note included:

- ZClip and smartclip (its ``ZScoreClip``), each as published and with its own defaults, save that ZClip's fixed bound on top is off:
  an alarm is a step that they would clip. They are shown the norms of the run's gradients;
- ``detect_anomaly``: a training of its own with ``Trainer(detect_anomaly=True)`` of each run in which a gradient was not finite; an
  alarm is that it raises;
- ``EarlyStopping(check_finite)`` on the training loss, at the end of each epoch of 50 steps; an alarm is that it stops the run;
- a NaN check of the loss at every step.
"""

# Over 300 lines: one campaign: its runs, its judges, and the table that is printed.
from __future__ import annotations

import argparse
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median

import smartclip
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from zclip import ZClip

from benchmarks.campaigns.quiet import RATES, draw, quietly
from benchmarks.campaigns.run_models import OPTIMIZERS, Run, train
from benchmarks.campaigns.sick_truth import Truth, diverges
from lightning_gradwatch import Event, EventKind, GradWatch

EPOCH = 50
"""Steps after which ``EarlyStopping`` looks."""

SORTS = ("λ < 1", "gates shut", "too long", "λ > 1", "deep in time", "gated, λ > 1", "learning rate")


@dataclass(frozen=True)
class Outcome:
    """What is true of a run, and at which step each detector first said something; None if it did not."""

    run: Run
    explodes: bool
    vanishes: bool
    diverges: bool
    events: tuple[Event, ...]
    said: dict[str, int | None]

    @property
    def healthy(self) -> bool:
        return not (self.explodes or self.vanishes or self.diverges or self.run.sick)

    def has(self, *kinds: EventKind) -> bool:
        return any(event.kind in kinds and _claims(event) for event in self.events)


def _claims(event: Event) -> bool:
    """Whether it says that something is wrong: as an alarm, or as a note in its words."""
    return event.severity != "info" or "get under 1 % of the largest gradient" in event.message


def sick(sort: str, random: Random) -> Run:
    """A run that is sick in that way."""
    vanishing = Run(
        task=random.choice(("adding", "classification")),
        cell="RNN_TANH",
        hidden=random.choice((16, 32)),
        layers=random.choice((1, 1, 2)),
        timesteps=random.randint(24, 48),
        batch=8,
        optimizer=random.choice(("SGD", "Adam")),
        lr=1e-3,
        seed=random.randrange(2**30),
        clip=1.0,
        sick=sort,
    )
    exploding = replace(
        vanishing,
        task=random.choice(("text", "adding", "classification")),
        cell="RNN_RELU",
        lr=random.choice((1e-4, 1e-3)),
        clip=random.choice((None, 1.0)),
    )
    if sort == "λ < 1":
        return replace(vanishing, radius=random.uniform(0.2, 0.6))
    if sort == "gates shut":
        return replace(vanishing, cell=random.choice(("LSTM", "GRU")), gate_bias=random.uniform(-4, -2))
    if sort == "too long":
        return replace(vanishing, cell=random.choice(("LSTM", "GRU", "RNN_TANH")), timesteps=random.randint(60, 100))
    if sort == "λ > 1":
        return replace(exploding, radius=random.uniform(2.0, 2.6), timesteps=random.randint(16, 40))
    if sort == "deep in time":
        return replace(exploding, radius=random.uniform(1.6, 1.8), timesteps=random.randint(60, 100))
    if sort == "gated, λ > 1":
        return replace(exploding, cell=random.choice(("LSTM", "GRU")), radius=random.uniform(6, 12))
    optimizer = random.choice(OPTIMIZERS)
    rate = RATES[optimizer][1] * 10 ** random.uniform(1.5, 3)
    return replace(
        exploding,
        cell=random.choice(("RNN_TANH", "RNN_RELU", "LSTM", "GRU")),
        timesteps=random.randint(10, 30),
        optimizer=optimizer,
        lr=rate,
        clip=None,
    )


def draw_healthy(random: Random) -> Run:
    """One of the quiet campaign's, of a cell that can be unrolled and in full precision, as the truth needs it."""
    while True:
        run = draw(random)
        if run.cell != "LSTM cells" and run.precision == "32-true":
            return run


def drawn(count: int, seed: int) -> list[Run]:
    """Half of them sick, in all ways in turn."""
    random = Random(seed)
    return [sick(SORTS[i // 2 % len(SORTS)], random) if i % 2 else draw_healthy(random) for i in range(count)]


def judge(run: Run, steps: int) -> Outcome:
    """Train it twice: with all that only looks, and with anomaly detection."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth, watch = Truth(), GradWatch(dirpath=Path(folder) / "run", summary=False)
        watch.raise_own_errors = True
        stopping = EarlyStopping(
            "loss", patience=10**6, check_finite=True, check_on_train_epoch_end=True, verbose=False
        )
        model = train(run, [truth, watch, stopping], Path(folder), steps, epoch=EPOCH)
        losses = model.losses
        # It raises at a NaN in a gradient and at nothing else: where every norm was finite there was none.
        anomaly = None if all(map(math.isfinite, truth.norms)) else _step_of_anomaly(run, Path(folder), steps)
    alarms = [event.step for event in watch.events if _claims(event)]
    said = {
        "GradWatch": min(alarms, default=None),
        "ZClip": _first_clipped(_zclip(), truth.norms),
        "smartclip": _first_clipped(_smartclip(), truth.norms),
        "detect_anomaly": anomaly,
        "EarlyStopping": len(losses) - 1 if len(losses) < steps else None,
        "loss is NaN": next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), None),
    }
    return Outcome(run, truth.explodes(), truth.vanishes(), diverges(losses), tuple(watch.events), said)


def _step_of_anomaly(run: Run, folder: Path, steps: int) -> int | None:
    made: list[nn.Module] = []
    try:
        train(run, [], folder, steps, made=made, detect_anomaly=True)
    except RuntimeError as error:
        if "nan values" not in str(error):
            raise
        return len(made[0].losses) - 1
    return None


def _zclip() -> Callable[[nn.Module], object]:
    return ZClip(max_grad_norm=None).step


def _smartclip() -> Callable[[nn.Module], object]:
    clipper = smartclip.ZScoreClip()
    return lambda model: smartclip.apply(model, clipper)


def _first_clipped(clip: Callable[[nn.Module], object], norms: list[float]) -> int | None:
    """The first step whose norm a clipper makes smaller."""
    model = nn.Linear(1, 1, bias=False)
    for step, norm in enumerate(norms):
        model.weight.grad = torch.full((1, 1), norm)
        clip(model)
        if math.isfinite(norm) and float(model.weight.grad) < 0.999 * norm:
            return step
    return None


def campaign(runs: list[Run], steps: int, tell: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
    """All of them, one after the other."""
    outcomes: list[Outcome] = []
    for run in runs:
        outcomes.append(judge(run, steps))
        tell(outcomes[-1])
    return outcomes


NONFINITE = tuple(kind for kind in EventKind if kind.startswith("NONFINITE"))

CLAIMS: dict[str, tuple[tuple[EventKind, ...], Callable[[Outcome], bool]]] = {
    "EXPLODING_HIDDEN_GRADIENT": ((EventKind.EXPLODING_HIDDEN_GRADIENT,), lambda o: o.explodes),
    "VANISHING_HIDDEN_GRADIENT": ((EventKind.VANISHING_HIDDEN_GRADIENT,), lambda o: o.vanishes),
    "EXPLODING_GRADIENT, NONFINITE_…": ((EventKind.EXPLODING_GRADIENT, *NONFINITE), lambda o: o.diverges),
    "NONFINITE_…": (NONFINITE, lambda o: o.said["loss is NaN"] is not None),
}


def table_of_kinds(outcomes: list[Outcome]) -> str:
    """Precision and recall of what each kind of event claims."""
    lines = [f"{'event':34}{'true':>6}{'said':>6}{'both':>6}{'precision':>11}{'recall':>8}"]
    for name, (kinds, holds) in CLAIMS.items():
        true, said = (
            {i for i, o in enumerate(outcomes) if holds(o)},
            {i for i, o in enumerate(outcomes) if o.has(*kinds)},
        )
        both = len(true & said)
        precision, recall = (f"{both / len(one):.1%}" if one else "–" for one in (said, true))
        lines.append(f"{name:34}{len(true):6}{len(said):6}{both:6}{precision:>11}{recall:>8}")
    return "\n".join(lines)


def table_of_detectors(outcomes: list[Outcome]) -> str:
    """Share of runs with an alarm, by what is true of them; and how many steps after the loss first is not finite, median."""
    sorts: dict[str, Callable[[Outcome], bool]] = {
        "vanishes": lambda o: o.vanishes,
        "explodes": lambda o: o.explodes,
        "diverges": lambda o: o.diverges,
        "healthy": lambda o: o.healthy,
    }
    groups = {name: [o for o in outcomes if holds(o)] for name, holds in sorts.items()}
    lines = [
        f"{'alarm in … of the runs':26}"
        + "".join(f"{f'{name} ({len(group)})':>16}" for name, group in groups.items())
        + f"{'before NaN by':>16}"
    ]
    for detector in outcomes[0].said:
        cells = [
            f"{sum(o.said[detector] is not None for o in group) / len(group):.0%}" if group else "–"
            for group in groups.values()
        ]
        lead = [
            o.said["loss is NaN"] - said
            for o in outcomes
            if o.said["loss is NaN"] is not None and (said := o.said[detector]) is not None
        ]
        cells.append(f"{median(lead):g} steps" if lead else "–")
        lines.append(f"{detector:26}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def table_of_sorts(outcomes: list[Outcome]) -> str:
    """What the constructions came to."""
    lines = [f"{'construction':18}{'runs':>6}{'vanishes':>10}{'explodes':>10}{'diverges':>10}{'GradWatch':>11}"]
    for sort in (*SORTS, ""):
        group = [o for o in outcomes if o.run.sick == sort]
        figures = [
            sum(values)
            for values in zip(
                *((o.vanishes, o.explodes, o.diverges, o.said["GradWatch"] is not None) for o in group), strict=True
            )
        ]
        if group:
            lines.append(
                f"{sort or 'none (healthy)':18}{len(group):6}"
                + "".join(f"{n:{w}}" for n, w in zip(figures, (10, 10, 10, 11), strict=True))
            )
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=112)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="print each run whose events are not those of the truth")
    options = parser.parse_args()
    quietly()
    begin = time.monotonic()

    def tell(outcome: Outcome) -> None:
        wrong = [name for name, (kinds, holds) in CLAIMS.items() if holds(outcome) != outcome.has(*kinds)]
        if options.list and wrong:
            print(
                f"{outcome.run}\n  {wrong}: vanishes {outcome.vanishes}, explodes {outcome.explodes}, diverges {outcome.diverges}"
            )
            print(f"  {outcome.said}")
            for event in outcome.events:
                print(
                    f"  {event.severity} {event.kind} {event.action or ''} at step {event.step}: {event.message}",
                    flush=True,
                )

    outcomes = campaign(drawn(options.runs, options.seed), options.steps, tell)
    for made in (table_of_sorts, table_of_kinds, table_of_detectors):
        print(made(outcomes), end="\n\n")
    print(f"{len(outcomes)} runs of {options.steps} steps, {time.monotonic() - begin:.0f} s.")


if __name__ == "__main__":
    main()
