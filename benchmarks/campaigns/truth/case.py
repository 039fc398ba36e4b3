"""A run of the truth campaign: a small model as somebody would write it, trained for a few steps by a real Trainer."""

from __future__ import annotations

import copy
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.campaigns.truth import oracle
from lightning_gradwatch import AdaptiveClip, Event, EventKind, GradWatch

Loss = Callable[[Any, Any, int], Tensor]


@dataclass(kw_only=True)
class Case:
    """One run, and what is wrong with it by construction.

    Args:
        kind: of the campaign's table.
        loss: from the network, a batch and its number.
        batches: what the loader gives, in this order.
        cause: what is wrong, in a word that :mod:`~benchmarks.campaigns.truth.remedies` knows; empty if nothing is.
        must: what has to be told: one of these kinds of events.
        never: kinds that would be false here whatever the curves say.
        held: the parameters that the optimizer is given.
        joined: modules whose calls in a step are one sequence.
        states: how the states are read from what an own cell returns, by the cell's name in the network.
        oracle: whether the unrolled network can say what is true of the curves.
        unmeasured: parts of which one line must say that they are not measured, unless they are.
        inexact: whether something stands in the way of an exact measurement.
        nonfinite: from which step on something is not finite; None for never.
        where: fields that the event which names it must have.
        entry: the entry of the batch that is not finite, as one would write it.
        culprits: operations between module and loss, or in a cell, that have no finite slope or hide that; one of them did it.
    """

    kind: str
    net: nn.ModuleDict
    loss: Loss
    batches: list[Any]
    cause: str = ""
    must: tuple[EventKind, ...] = ()
    never: tuple[EventKind, ...] = ()
    steps: int = 8
    every: int = 2
    lr: float = 1e-3
    optimizer: str = "SGD"
    held: Callable[[nn.ModuleDict], Iterable[nn.Parameter]] = nn.Module.parameters
    clip: bool = False
    precision: Any = "32-true"
    anchors: int = 4
    joined: tuple[str, ...] = ()
    states: dict[str, Callable[[Any], list[Tensor]]] = field(default_factory=dict)
    oracle: bool = True
    unmeasured: tuple[str, ...] = ()
    inexact: bool = False
    nonfinite: int | None = None
    where: dict[str, Any] = field(default_factory=dict)
    entry: str = ""
    culprits: tuple[str, ...] = ()
    seed: int = 0


class Subject(pl.LightningModule):
    """Keeps, of every step, what is needed to look at it again."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net, self.case = case.net, case
        self.kept: list[tuple[dict[str, Tensor], Any, int]] = []
        self.losses: list[float] = []
        self.norms: list[dict[str, float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        kept = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
        self.kept.append((kept, batch, batch_idx))
        loss = self.case.loss(self.net, batch, batch_idx)
        self.losses.append(float(loss.detach()))
        return loss

    def on_after_backward(self) -> None:
        self.norms.append(
            {name: float(p.grad.double().norm()) for name, p in self.named_parameters() if p.grad is not None}
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.case.optimizer)(self.case.held(self.net), self.case.lr)


@dataclass
class Told:
    """Everything that was said of a run: the closing lines, the warnings, the events."""

    lines: list[str]
    warnings: list[str]
    events: list[Event]
    sampled: list[int]
    batch_sizes: set[int]


class Truth:
    """What is true of a run that is over, worked out when it is asked for."""

    def __init__(self, case: Case, subject: Subject) -> None:
        self.case, self.losses, self.norms = case, subject.losses, subject.norms
        self._kept, self._net = subject.kept, case.net
        self._known: dict[int, dict[oracle.LayerWeights, list[oracle.Facts]]] = {}

    @property
    def steps(self) -> int:
        return len(self.losses)

    def norm(self, step: int, recurrent: bool = False) -> float:
        """Of the gradients of all parameters of a step; or of those of the recurrent modules."""
        own = [name for name, m in self._net.named_modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase))]
        found = [
            norm
            for name, norm in self.norms[step].items()
            if not recurrent or any(name.startswith(f"net.{module}.") for module in [*own, *self.case.states])
        ]
        return math.nan if any(map(math.isnan, found)) else math.hypot(*found)

    def step_length(self, step: int) -> float:
        """Of what plain SGD would do with the gradient of a step as it is, in norms of all parameters."""
        kept = self._kept[step][0]
        sizes = [float(kept[name].double().norm()) for name, _ in self._net.named_parameters()]
        return self.case.lr * self.norm(step) / math.hypot(*sizes)

    def input_sizes(self) -> list[tuple[float, float]]:
        """Median and maximum of the inputs of each batch."""
        found = [(batch[0] if isinstance(batch, list) else batch).abs().flatten() for _, batch, _ in self._kept]
        return [(float(x.median()), float(x.max())) for x in found]

    def padding(self) -> list[int]:
        """How many of the last words of each sequence are padding; nothing where inputs are no words."""
        words = [batch[0] for _, batch, _ in self._kept if isinstance(batch, list) and not batch[0].is_floating_point()]
        return [int(row.flip(0).eq(0).long().cumprod(0).sum()) for batch in words for row in batch]

    def largest_weights(self, step: int) -> list[float]:
        """The largest entry, by its size, of each weight and bias before a step."""
        return [float(weight.abs().max()) for weight in self._kept[step][0].values() if weight.is_floating_point()]

    def held_norms(self, step: int) -> list[float]:
        """Of the gradients of the parameters that the optimizer was given, those that have one."""
        given = set(map(id, self.case.held(self._net)))
        names = {f"net.{name}" for name, weight in self._net.named_parameters() if id(weight) in given}
        return [norm for name, norm in self.norms[step].items() if name in names]

    def moved(self, module: str) -> bool:
        """Whether the weights of a module changed in the run."""
        (first, _, _), (last, _, _) = self._kept[0], self._kept[-1]
        return any(not torch.equal(first[name], last[name]) for name in first if f"net.{name}".startswith(f"{module}."))

    def growth_of_weights(self, step: int) -> list[float]:
        """How many times its norm at the start each weight matrix has after that step, or had before it."""
        first = self._kept[0][0]
        near = [self._kept[min(at, self.steps - 1)][0] for at in (step, step + 1)]
        matrices = [name for name, weight in first.items() if weight.dim() > 1 and bool(weight.any())]
        return [
            float(weights[name].double().norm() / first[name].double().norm()) for weights in near for name in matrices
        ]

    def before(self, step: int) -> tuple[nn.ModuleDict, Any]:
        """The network as it was before a step, in float64, and the step's batch."""
        weights, batch, _ = self._kept[step]
        net = copy.deepcopy(self._net)
        net.load_state_dict(weights)
        return net.double(), _double(batch)

    def finite(self, step: int) -> bool:
        """Whether loss and gradients of a step were."""
        return math.isfinite(self.losses[step]) and all(map(math.isfinite, self.norms[step].values()))

    @property
    def first_bad(self) -> int | None:
        """The first step whose loss or gradients were not finite."""
        return next((step for step in range(self.steps) if not self.finite(step)), None)

    def at(self, step: int) -> dict[oracle.LayerWeights, list[oracle.Facts]]:
        """Of every place, the facts of each call in a step."""
        if step not in self._known:
            self._known[step] = self._look(step) if self.case.oracle else {}
        return self._known[step]

    def _look(self, step: int) -> dict[oracle.LayerWeights, list[oracle.Facts]]:
        weights, batch, number = self._kept[step]
        if not all(bool(w.isfinite().all()) for w in weights.values()):
            return {}
        net = copy.deepcopy(self._net)
        net.load_state_dict(weights)
        net.double()
        seen: dict[str, oracle.Unrolled | oracle.Recorded] = {}
        for name, module in list(net.named_modules()):
            made = self._stand_in(name, module)
            if made is not None:
                seen[name] = made
                parent, _, own = name.rpartition(".")
                net.get_submodule(parent)._modules[own] = made
        loss = self.case.loss(net, _double(batch), number)
        found: dict[oracle.LayerWeights, list[oracle.Facts]] = {}
        for name, stand_in in seen.items():
            for (layer, direction), paths in self._paths(name, stand_in).items():
                found[f"net.{name}", layer, direction] = [oracle.facts_of(path, loss) for path in paths]
        return found

    def _stand_in(self, name: str, module: nn.Module) -> oracle.Unrolled | oracle.Recorded | None:
        if isinstance(module, nn.RNNBase):
            return oracle.Unrolled(module)
        if name in self.case.states:
            return oracle.Recorded(module, self.case.states[name])
        if isinstance(module, nn.LSTMCell):
            return oracle.Recorded(module, list)
        return oracle.Recorded(module, lambda h: [h]) if isinstance(module, nn.RNNCellBase) else None

    def _paths(
        self, name: str, stand_in: oracle.Unrolled | oracle.Recorded
    ) -> dict[tuple[int, str], list[oracle.Path]]:
        if isinstance(stand_in, oracle.Recorded):
            return {(0, "forward"): [stand_in.path]} if stand_in.path.states else {}
        keys = stand_in.calls[0] if stand_in.calls else {}
        found = {key: [call[key] for call in stand_in.calls] for key in keys}
        return {key: [oracle.joined(paths)] for key, paths in found.items()} if name in self.case.joined else found


def _double(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: _double(value) for key, value in batch.items()}
    return [_double(part) for part in batch] if isinstance(batch, (list, tuple)) else batch


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "GradWatch" in record.getMessage() or "AdaptiveClip" in record.getMessage():
            self.lines += record.getMessage().splitlines()


def train(case: Case) -> tuple[Truth, Told]:
    """Train it, and hear what is said."""
    torch.manual_seed(case.seed)
    subject = Subject(case)
    logger, heard = logging.getLogger("lightning.pytorch.utilities.rank_zero"), _Heard()
    level, spread = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.addHandler(heard)
    logger.propagate = False
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            watch = GradWatch(every_n_steps=case.every, anchors=case.anchors, dirpath=Path(folder) / "run")
            watch.raise_own_errors = True
            clip = [AdaptiveClip()] if case.clip else []
            pl.Trainer(
                accelerator="cpu",
                precision=case.precision,
                max_steps=case.steps,
                max_epochs=-1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[watch, *clip],
                default_root_dir=folder,
            ).fit(subject, DataLoader(case.batches, batch_size=None))
            from lightning_gradwatch import load_run

            profiles = load_run(watch.run_dir).profile_records
    finally:
        logger.removeHandler(heard)
        logger.setLevel(level)
        logger.propagate = spread
    ours = [str(w.message) for w in said if "GradWatch" in str(w.message) or "AdaptiveClip" in str(w.message)]
    events = [*watch.events, *(event for callback in clip for event in callback.events)]
    sampled, sizes = sorted({p["step"] for p in profiles}), {p["batch_size"] for p in profiles}
    return Truth(case, subject), Told(heard.lines, ours, events, sampled, sizes)


def noise(random: Random, *shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(random.randrange(2**30)))
