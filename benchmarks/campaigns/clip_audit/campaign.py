"""What is run, what is true of it, and what was said."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision

from benchmarks.campaigns.clip_audit import loops, models
from benchmarks.campaigns.clip_audit.models import ClipsWhen, Ledger, Network, Notes, Two
from lightning_gradwatch import AdaptiveClip, GradWatch, Norm, watch
from lightning_gradwatch.audit import ClippingSummary, ClipVerdict

CELLS = ("RNN", "GRU", "LSTM")
OPTIMIZERS = ("SGD", "momentum", "Adam", "AdamW", "RMSprop")
STEPS = 66
ACTS = "by its share"
"""In the place of a verdict: what the share of the steps that were clipped makes it."""


@dataclass(frozen=True)
class Way:
    """A way to clip, or to fail to.

    Args:
        model: made of cell, optimizer and ledger.
        truth: the verdict of each optimizer; :data:`ACTS` where the ledger says it.
        trainer: options of the Trainer, made of the bound.
        around: callbacks before and after GradWatch, made of the ledger.
        levels: of the bound, against the norms of a run that is not clipped.
        says: words that the sentence of the first optimizer must have.
        loop: trains without a Trainer, if it is so.
    """

    model: Callable[[str, str, Ledger], pl.LightningModule]
    truth: tuple[ClipVerdict | str, ...] = (ACTS,)
    trainer: Callable[[float], dict[str, Any]] = lambda bound: {}
    around: Callable[[Ledger], tuple[list[Any], list[Any]]] = lambda ledger: ([], [])
    levels: tuple[str, ...] = ("high", "net", "low")
    says: str = ""
    loop: loops.Train | None = None


def scaled(_: float) -> dict[str, Any]:
    """Mixed precision with a gradient scaler, on a CPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10_000)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


def noted(ledger: Ledger) -> tuple[list[Any], list[Any]]:
    return [], [Notes(ledger)]


NONE, NO_EFFECT = ClipVerdict.NONE, ClipVerdict.NO_EFFECT
WAYS: dict[str, Way] = {
    "Trainer": Way(Network, trainer=lambda b: {"gradient_clip_val": b}, around=noted),
    "Trainer, accumulating": Way(
        Network, trainer=lambda b: {"gradient_clip_val": b, "accumulate_grad_batches": 2}, around=noted
    ),
    "Trainer, scaled": Way(Network, trainer=lambda b: {"gradient_clip_val": b, **scaled(b)}, around=noted),
    "Trainer, by value": Way(
        Network,
        trainer=lambda b: {"gradient_clip_val": b / 100, "gradient_clip_algorithm": "value"},
        around=noted,
        levels=("low",),
    ),
    "own configure_gradient_clipping": Way(models.Configures),
    "own, by Lightning's function": Way(models.ConfiguresByLightning),
    "AdaptiveClip(Norm) before": Way(Network, around=lambda lg: ([Notes(lg), AdaptiveClip(Norm(lg.bound))], [])),
    "AdaptiveClip(Norm) after": Way(Network, around=lambda lg: ([Notes(lg)], [AdaptiveClip(Norm(lg.bound))])),
    "by hand": Way(models.ClipsByHand),
    "by hand, Lightning's function": Way(models.LightningByHand),
    "by hand, accumulating": Way(lambda *args: models.ClipsByHand(*args, every=2)),
    "callback before, after backward": Way(Network, around=lambda lg: ([ClipsWhen("on_after_backward", lg)], [])),
    "callback after, after backward": Way(Network, around=lambda lg: ([], [ClipsWhen("on_after_backward", lg)])),
    "callback before, before step": Way(Network, around=lambda lg: ([ClipsWhen("on_before_optimizer_step", lg)], [])),
    "callback after, before step": Way(Network, around=lambda lg: ([], [ClipsWhen("on_before_optimizer_step", lg)])),
    "module, before step": Way(models.InHook),
    "module, before step, scaled": Way(models.InHook, trainer=scaled),
    "module, after backward": Way(models.AfterBackward),
    "through .data": Way(models.Replaces, levels=("net", "low")),
    "before unscaling": Way(models.ClipsScaled, trainer=scaled, levels=("low",), says="before the gradient scaler"),
    "after backward, scaled": Way(
        models.AfterBackward, trainer=scaled, levels=("low",), says="before the gradient scaler"
    ),
    "in training_step": Way(models.ClipsInStep, (NO_EFFECT,), says="before the backward pass"),
    "by hand, too soon": Way(models.ClipsTooSoon, (NO_EFFECT,)),
    "the other optimizer's": Way(
        lambda *args: Two(*args, clipped="other"), (NO_EFFECT, NONE), says="another optimizer", levels=("net", "low")
    ),
    "bound set, not used": Way(
        models.ConfiguresNothing, (NO_EFFECT,), trainer=lambda b: {"gradient_clip_val": b}, levels=("net", "low")
    ),
    "the first of two": Way(lambda *args: Two(*args, clipped="own"), (ACTS, NONE)),
    "the first of two, one backward": Way(lambda *args: models.OneBackward(*args, clipped="own"), (ACTS, NONE)),
    "nothing": Way(Network, (NONE,)),
    "nothing, two optimizers": Way(lambda *args: Two(*args, clipped=""), (NONE, NONE)),
    "nothing, by hand": Way(models.ByHand, (NONE,)),
    "nothing, scaled": Way(Network, (NONE,), trainer=scaled),
    "switched off": Way(models.SwitchedOff, (NONE,), says="names a clipping function"),
    "a fixed factor": Way(models.Multiplies, (NONE,), says="fixed factor"),
    "noise": Way(models.AddsNoise, (NONE,)),
    "a frozen head": Way(models.Freezes, (NONE,)),
    "gradient hooks": Way(models.Hooked, (NONE,), says="hooks on their gradients"),
    "loop, by hand": Way(Network, loop=loops.by_hand),
    "loop, accumulating": Way(Network, loop=loops.accumulating),
    "loop, closure": Way(Network, loop=loops.with_a_closure),
    "loop, unscaled": Way(Network, loop=loops.unscaled),
    "loop, before unscaling": Way(
        Network, loop=loops.before_unscaling, levels=("low",), says="before the gradient scaler"
    ),
    "loop, Fabric": Way(Network, loop=loops.by_fabric),
    "loop, adaptively": Way(Network, loop=loops.adaptively),
    "loop, too soon": Way(Network, (NO_EFFECT,), loop=loops.too_soon, says="before the backward pass"),
    "loop, too late": Way(Network, (NO_EFFECT,), loop=loops.too_late, says="after the step"),
    "loop, another module": Way(Network, (NONE,), loop=loops.another_module, says="names a clipping function"),
    "loop, nothing": Way(Network, (NONE,), loop=loops.nothing),
    "loop, switched off": Way(Network, (NONE,), loop=loops.switched_off, says="names a clipping function"),
}


@dataclass(frozen=True)
class Outcome:
    """What was said of a run, and what is true.

    Args:
        share: of the steps, those that were truly clipped.
    """

    way: str
    cell: str
    optimizer: str
    level: str
    every: int
    share: float
    said: tuple[ClippingSummary, ...]
    events: tuple[str, ...]

    @property
    def truth(self) -> tuple[ClipVerdict, ...]:
        """The verdict that each optimizer should get."""
        return tuple(by_share(self.share) if truth == ACTS else ClipVerdict(truth) for truth in WAYS[self.way].truth)

    @property
    def undecided(self) -> bool:
        """Whether some verdict was left open."""
        return any(one.verdict is ClipVerdict.UNDECIDED for one in self.said)

    @property
    def wrong(self) -> list[str]:
        """What was said and is not so."""
        both = zip(self.said, self.truth, strict=True)
        wrong = [one.line(several=True) for one, truth in both if one.verdict not in (truth, ClipVerdict.UNDECIDED)]
        if WAYS[self.way].says not in self.said[0].sentence:
            wrong.append(f"{WAYS[self.way].says!r} is not said: {self.said[0].sentence}")
        limits = sum(one.verdict is ClipVerdict.STEP_LIMITER for one in self.said)
        useless = sum(one.verdict is NO_EFFECT for one in self.said)
        expected = {"CLIPPING_LIMITS_STEPS": limits, "CLIPPING_WITHOUT_EFFECT": useless}
        told = {kind: self.events.count(kind) for kind in expected}
        return wrong if told == expected else [*wrong, f"events {told}, expected {expected}"]


def by_share(share: float) -> ClipVerdict:
    """What the share of clipped steps makes it."""
    if share == 0:
        return ClipVerdict.NEVER_ACTED
    return ClipVerdict.STEP_LIMITER if share > 0.5 else ClipVerdict.SAFETY_NET


def campaign(runs: int, seed: int) -> list[Outcome]:
    """Every way in turn, with cell, optimizer, bound and sampling drawn at random."""
    quietly()
    random = Random(seed)
    ways = list(WAYS)
    return [run(ways[number % len(ways)], random, seed + number) for number in range(runs)]


def run(way: str, random: Random, seed: int, level: str | None = None) -> Outcome:
    """One run.

    Args:
        level: of the bound; None draws one.
    """
    cell, optimizer, every = random.choice(CELLS), random.choice(OPTIMIZERS), random.choice((1, 2, 3))
    if way == "Trainer" and random.random() < 0.2:
        optimizer = "LBFGS"  # a closure that is evaluated several times a step
    level = level or random.choice(WAYS[way].levels)
    ledger = Ledger(_bound(way, level, cell, optimizer, seed))
    watched = _train(WAYS[way], ledger, cell, optimizer, level, seed, every)
    kinds = tuple(event.kind.value for event in watched.events)
    return Outcome(way, cell, optimizer, level, every, ledger.share, tuple(watched.clipping), kinds)


def _bound(way: str, level: str, cell: str, optimizer: str, seed: int) -> float:
    """By the gradient norms of the same network, not clipped."""
    pilot = Ledger(float("inf"))
    two = len(WAYS[way].truth) > 1
    model = Two(cell, optimizer, pilot, clipped="own") if two else Network(cell, optimizer, pilot)
    pl.seed_everything(seed, verbose=False)
    _fit(model, [] if two else [Notes(pilot)], level, seed, {})
    norms = pilot.norms
    return {"high": 10 * max(norms), "net": 6 * median(norms), "low": 0.05 * min(norms)}[level]


def _train(way: Way, ledger: Ledger, cell: str, optimizer: str, level: str, seed: int, every: int) -> GradWatch | watch:
    pl.seed_everything(seed, verbose=False)
    if way.loop is not None:
        model, batches = way.model(cell, optimizer, ledger), models.batches(seed, level == "net", STEPS)
        with tempfile.TemporaryDirectory() as folder:
            return loops.watched(way.loop, model, ledger, batches, every, folder)
    watcher = GradWatch(every_n_steps=every, summary=False)
    before, after = way.around(ledger)
    model = way.model(cell, optimizer, ledger)
    _fit(model, [*before, watcher, *after], level, seed, way.trainer(ledger.bound))
    return watcher


def _fit(model: pl.LightningModule, callbacks: list[Any], level: str, seed: int, options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            callbacks=callbacks,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(model, models.batches(seed, level == "net", STEPS))


def quietly() -> None:
    """Without what Lightning says of itself."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.backends.mkldnn.set_flags(False)  # oneDNN has no half precision for recurrent layers


def table(outcomes: Sequence[Outcome]) -> str:
    """How many runs of each way, how many undecided, and every wrong word."""
    counts = Counter(outcome.way for outcome in outcomes)
    rows = [f"{'way':34} {'runs':>5} {'undecided':>10} {'wrong':>6}"]
    for way in counts:
        own = [outcome for outcome in outcomes if outcome.way == way]
        open_ = sum(outcome.undecided for outcome in own)
        rows.append(f"{way:34} {len(own):5} {open_:10} {sum(bool(outcome.wrong) for outcome in own):6}")
    every = [sum(outcome.undecided for outcome in outcomes), sum(bool(outcome.wrong) for outcome in outcomes)]
    rows.append(f"{'all':34} {len(outcomes):5} {every[0]:10} {every[1]:6}")
    wrong = [(outcome, word) for outcome in outcomes for word in outcome.wrong]
    rows += [
        f"WRONG {one.way}, {one.cell}, {one.optimizer}, {one.level}, every {one.every}, share {one.share:.2f}: {word}"
        for one, word in wrong
    ]
    return "\n".join(rows)
