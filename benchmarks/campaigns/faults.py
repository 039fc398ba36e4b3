"""The fault campaign: is every number that is not finite found, and located exactly where it began?

    python -m benchmarks.campaigns.faults [--injections N] [--seed N] [--list]

Each injection is a few training steps of a small model under ``Watch``, the last of them with a fault drawn at random. The
truth is the model unrolled with PyTorch's own cells, and autograd. Columns of the table:

- ``due``: the norm of the gradients is not finite in its number format, or, on a sampled step, a weight of the recurrent part is
  not, or the loss, so an event is due; ``found``: there was one;
  ``exact``: its kind, module, layer, direction, state, timestep, sequence and parameter are all those of the truth.
- ``hidden``: something is not finite, but no parameter's gradient; ``finite``: nothing is (of 1e30);
  ``silent``: of both together, no event was reported.

What one step does not tell apart, or not at all, and the truth therefore counts as hidden or as the same:

- an infinite weight, bias or pre-activation whose gate it saturates (σ or tanh of ±inf is a finite number, and its slope 0): the step
  computes with finite numbers throughout, and nothing is learned wrongly but that gate is dead. The next sampled step finds the weight;
- under a loss scale, gradients that are not finite behind finite states and a finite loss: on one step they are what a scaler's search
  looks like, and are noted as that (``AMP_OVERFLOW``); they become an alarm, with the place, if they go on;
- an infinite or NaN gradient that arrives at an inactive unit of a relu, which passes on 0: no parameter ever sees it;
- several sequences spoilt at the same timestep (by a weight, say): the one of the lowest index is named, and their number
  where it is known; of the two directions of one layer at the same step the forward one;
- several weights that are not finite: the first in the model's order is named as the cause.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn

from benchmarks.campaigns.fault_models import (
    BATCH,
    HIDDEN,
    PLACES,
    TIME,
    VALUES,
    WEIGHTS,
    WIDTH,
    Fault,
    Subject,
    draw,
    overflowing,
    planted,
)
from benchmarks.campaigns.fault_truth import Truth, truth_of
from lightning_gradwatch.engine.backward_pass import Step
from lightning_gradwatch.engine.options import WatchOptions
from lightning_gradwatch.engine.watch import Watch
from lightning_gradwatch.events import Event, Moment
from lightning_gradwatch.recurrent.capture.modules import discover

HEALTHY = 3
"""Steps before the fault."""


@dataclass(frozen=True)
class Outcome:
    """What was said of a fault, and what is true."""

    fault: Fault
    truth: Truth
    said: Truth
    spoilt: bool
    false_alarms: int

    @property
    def due(self) -> bool:
        return self.truth.kind is not None

    @property
    def found(self) -> bool:
        return self.said.kind is not None

    @property
    def exact(self) -> bool:
        return self.said == self.truth


def inject(fault: Fault) -> Outcome:
    """Train healthily for a few steps, then with the fault."""
    torch.manual_seed(fault.seed)
    subject = Subject(fault).to(fault.dtype)
    optimizer = torch.optim.SGD(subject.parameters(), lr=0.01)
    events: list[Event] = []
    watch = Watch(
        subject,
        discover(subject),
        WatchOptions(find_cells=False, max_sequences=2, anchors=2),
    )
    try:
        for step in range(HEALTHY):
            optimizer.zero_grad()
            events += _step(watch, subject, _batch(fault), step, faulty=False)
            for parameter in subject.parameters():
                parameter.grad /= fault.scale
            optimizer.step()
        false_alarms = len(events)
        optimizer.zero_grad()
        batch = _plant(subject, _batch(fault))
        events += _step(watch, subject, batch, HEALTHY, faulty=True)
    finally:
        watch.close()
    said = [
        event for event in events[false_alarms:] if event.kind.startswith("NONFINITE") or event.kind == "AMP_OVERFLOW"
    ]
    assert len(said) <= 1, said
    truth, spoilt = truth_of(subject, *batch)
    return Outcome(fault, truth, _place(said), spoilt, false_alarms)


def _batch(fault: Fault) -> tuple[Tensor, Tensor, Tensor]:
    rows = fault.layers * (1 + fault.bidirectional)
    shapes = ((BATCH, TIME, WIDTH), (rows, BATCH, HIDDEN), (rows, BATCH, HIDDEN))
    x, h0, c0 = (torch.randn(shape, dtype=fault.dtype) for shape in shapes)
    return x, 0.5 * h0, 0.5 * c0


def _plant(subject: Subject, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What is planted before the forward, or as a hook on a parameter."""
    fault, (x, h0, c0) = subject.fault, batch
    index = fault.layer * (1 + fault.bidirectional) + fault.direction
    if fault.place == "gate":
        x = _overflow_gate(subject, x)
    elif fault.place == "input":
        x = planted(x, (fault.sequence, fault.timestep, fault.unit % WIDTH), fault.value)
    elif fault.place == "initial state":
        at = (index, fault.sequence, fault.unit)
        h0, c0 = (planted(h0, at, fault.value), c0) if fault.state == "h" else (h0, planted(c0, at, fault.value))
    elif fault.parameter is not None:
        parameter = subject.get_parameter(fault.parameter)
        at = tuple((fault.unit + i) % size for i, size in enumerate(parameter.shape))
        if fault.place in WEIGHTS:
            with torch.no_grad():
                parameter[at] = fault.value
        else:
            parameter.register_hook(lambda gradient: planted(gradient, at, fault.value))
    return x, h0, c0


def _overflow_gate(subject: Subject, x: Tensor) -> Tensor:
    """Have one pre-activation of the lowest layer become the value at one timestep, by finite inputs and weights alone."""
    fault = subject.fault
    weight = (
        subject.cells[0].weight_ih
        if fault.loop
        else subject.get_parameter("rnn.weight_ih_l0" + "_reverse" * fault.direction)
    )
    row = fault.unit + HIDDEN * (fault.seed % (len(weight) // HIDDEN))
    fed, weights = overflowing(fault.dtype, fault.value)
    with torch.no_grad():
        weight[row, 1:] = torch.tensor(weights).to(weight)
    x = x.clone()
    x[..., 1:] = 0
    x[fault.sequence, fault.timestep, 1:] = fed
    return x


def _step(
    watch: Watch, subject: nn.Module, batch: tuple[Tensor, Tensor, Tensor], number: int, *, faulty: bool
) -> list[Event]:
    """In the order in which the callback is asked."""
    sampled = subject.fault.sampled if faulty else number == 0
    scale = subject.fault.scale
    step = Step(Moment(number), 0, sampled, accumulation=1, scale=scale, complete=True, scaled=scale != 1)
    watch.capture.begin()
    loss = subject(*batch, faulty) * subject.fault.scale
    seen = [watch.before_backward(loss, step)]
    loss.backward()
    seen += [watch.after_backward(loss, step), watch.end_step(step.moment), watch.poll(wait=True)]
    return [event for one in seen for event in one.events]


def _place(said: list[Event]) -> Truth:
    return Truth(**{name: getattr(said[0], name) for name in Truth.__dataclass_fields__}) if said else Truth()


def campaign(injections: int, seed: int) -> list[Outcome]:
    """That many faults, the same for the same seed."""
    random = Random(seed)
    return [inject(draw(random)) for _ in range(injections)]


def table(outcomes: list[Outcome]) -> str:
    """By cell kind and place."""
    lines = [f"{'':32}{'faults':>8}{'due':>8}{'found':>8}{'exact':>8}{'hidden':>8}{'finite':>8}{'silent':>8}"]
    groups = [("all", outcomes)]
    groups += [
        (kind, [o for o in outcomes if o.fault.kind == kind]) for kind in sorted({o.fault.kind for o in outcomes})
    ]
    groups += [(place, [o for o in outcomes if o.fault.place == place]) for place in PLACES]
    formats = sorted({o.fault.precision for o in outcomes})
    groups += [(name, [o for o in outcomes if o.fault.precision == name]) for name in formats]
    groups += [(f"value {value}", [o for o in outcomes if repr(o.fault.value) == repr(value)]) for value in VALUES]
    for name, group in groups:
        due, not_due = [o for o in group if o.due], [o for o in group if not o.due]
        found, exact = sum(o.found for o in due), sum(o.exact for o in due)
        hidden, silent = sum(o.spoilt for o in not_due), sum(not o.found for o in not_due)
        figures = (len(group), len(due), found, exact, hidden, len(not_due) - hidden, silent)
        lines.append(f"{name:32}" + "".join(f"{figure:8}" for figure in figures))
    kinds = Counter(o.truth.kind for o in outcomes if o.due)
    lines.append("Due: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) + ".")
    lines.append(f"False alarms on {len(outcomes) * HEALTHY} healthy steps: {sum(o.false_alarms for o in outcomes)}.")
    return "\n".join(lines)


def main() -> int:
    """Print the table, and with ``--list`` every outcome that is not exact."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--injections", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = campaign(options.injections, options.seed)
    print(table(outcomes))
    wrong = [outcome for outcome in outcomes if not outcome.exact or outcome.false_alarms]
    for outcome in wrong if options.list else []:
        print(f"\n{outcome.fault}\n  true {outcome.truth}\n  said {outcome.said}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
