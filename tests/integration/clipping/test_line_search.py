"""LBFGS with a line search, whose probes may give a loss and gradients that are not finite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import AdaptiveClip, EventKind, GradWatch, clip_adaptively
from lightning_gradwatch.clip import Norm
from tests.integration.clipping.clip_models import data, finite, trainer_for
from tests.integration.clipping.clip_steps import steps_of

SPOILT = 4  # the optimizer step
BATCHES = 8


class Searching(pl.LightningModule):
    """A recurrent regression by LBFGS; in step ``SPOILT`` the loss of these evaluations is NaN.

    Attributes:
        losses: of each optimizer step those of its evaluations.
    """

    def __init__(
        self, *spoilt: int, by_hand: bool = False, search: str | None = "strong_wolfe", max_iter: int = 5
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = not by_hand
        self.rnn, self.head = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 1)
        self.spoilt, self.losses, self.search = spoilt, list[list[float]](), (max_iter, search)

    def loss(self, batch: Tensor) -> Tensor:
        now = len(self.losses) - 1, len(self.losses[-1])
        loss = (self.head(self.rnn(batch[..., None])[0][:, -1]) - batch.sum(1, keepdim=True)).square().mean()
        loss = loss * (math.nan if now[0] == SPOILT and now[1] in self.spoilt else 1.0)
        self.losses[-1].append(float(loss.detach()))
        return loss

    def on_train_batch_start(self, *_: Any) -> None:
        self.losses.append([])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        if self.automatic_optimization:
            return self.loss(batch)
        optimizer: Any = self.optimizers()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            return loss

        optimizer.step(closure=closure)
        self.losses.append([])
        optimizer.step(closure=closure)
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), 0.5, max_iter=self.search[0], line_search_fn=self.search[1])


def trained(folder: Path, module: Searching, *callbacks: pl.Callback) -> Searching:
    trainer_for(folder, *callbacks).fit(module, data(BATCHES))
    return module


def acting(folder: Path, kind: str, action: str) -> GradWatch | AdaptiveClip:
    if kind == "clip":
        return AdaptiveClip(Norm(1e9), on_nonfinite=action, dirpath=folder / "run")  # type: ignore[arg-type]
    return GradWatch(dirpath=folder / "run", on_anomaly=action, summary=False, snapshot_every_n_steps=1)  # type: ignore[arg-type]


ACTING = [("clip", "skip"), ("clip", "raise"), *(("watch", r) for r in ("skip", "rollback", "stop", "raise"))]


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("spoilt", [(1,), (2, 3)])
@pytest.mark.parametrize(("kind", "action"), ACTING)
def test_a_probe_that_is_not_finite_is_the_search_s_own(tmp_path, kind, action, spoilt, by_hand) -> None:
    """The training goes on to the bit as without the callback."""
    bare = trained(tmp_path, Searching(*spoilt, by_hand=by_hand))
    ours = trained(tmp_path, Searching(*spoilt, by_hand=by_hand), acting(tmp_path, kind, action))
    assert math.isnan(bare.losses[SPOILT][spoilt[0]])
    assert len(bare.losses) == BATCHES * (1 + by_hand)
    assert repr(ours.losses) == repr(bare.losses)  # a NaN is equal to none
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), bare.parameters(), strict=True))


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize(("kind", "action"), [("clip", "skip"), ("watch", "skip"), ("watch", "rollback")])
def test_a_step_that_begins_with_a_nan_is_skipped(tmp_path, kind, action, by_hand) -> None:
    """Without the callback such a step is the training's end."""
    assert not finite(trained(tmp_path, Searching(0, by_hand=by_hand)))
    callback = acting(tmp_path, kind, action)
    module = trained(tmp_path, Searching(0, by_hand=by_hand), callback)
    assert len(module.losses[SPOILT]) == 1
    assert finite(module)
    assert module.losses[-1][-1] < module.losses[0][0]
    assert [e.step for e in callback.events if e.kind == EventKind.STEP_SKIPPED] == [SPOILT]


@pytest.mark.parametrize(("max_iter", "bound"), [(1, 1e9), (4, 1e9), (5, 1e-3), (3, 1e-3)])
def test_without_a_line_search_gradients_are_counted_and_called_so(tmp_path, caplog, max_iter, bound) -> None:
    """Each evaluation's gradient is judged, and no more steps are told of than there were."""
    caplog.set_level("INFO")
    watch, clip = GradWatch(dirpath=tmp_path / "run", every_n_steps=1), AdaptiveClip(Norm(bound))
    module = trained(tmp_path, Searching(max_iter=max_iter, search=None), watch, clip)
    made = sum(map(len, module.losses))
    assert made > BATCHES or max_iter == 1
    each = "steps" if max_iter == 1 else "gradient evaluations"
    (said,) = [line for line in caplog.text.splitlines() if "Clipping: " in line]
    assert f" none of {made} {each}" in said if bound > 1 else f" on {made} of {made} {each}" in said
    if bound < 1:
        assert f"AdaptiveClip: {made} of {made} gradient evaluations clipped" in caplog.text


def test_a_search_s_steps_are_called_steps(tmp_path, caplog) -> None:
    """Its probes are not judged, and an LBFGS that evaluates once makes no more than a step."""
    caplog.set_level("INFO")
    for number, module in enumerate((Searching(), Searching(max_iter=1, search=None))):
        trained(tmp_path / str(number), module, AdaptiveClip(Norm(1e-3)))
    assert caplog.text.count(f"AdaptiveClip: {BATCHES} of {BATCHES} steps clipped") == 2


class Ascending(torch.optim.SGD):
    """Evaluates its closure twice in each step, as sharpness-aware minimisation does."""

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            closure()
            loss = closure()
        super().step()
        return loss


class Sharp(Searching):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return Ascending(self.parameters(), 0.01)


def test_an_optimizer_that_evaluates_twice_is_counted_so(tmp_path, caplog) -> None:
    """By what it does, whatever its type: the closing line and the verdict name evaluations."""
    caplog.set_level("INFO")
    watch, clip = GradWatch(dirpath=tmp_path / "run", every_n_steps=1), AdaptiveClip(Norm(1e-3))
    made = sum(map(len, trained(tmp_path, Sharp(), watch, clip).losses))
    assert made == 2 * BATCHES
    assert f"AdaptiveClip: {made} of {made} gradient evaluations clipped" in caplog.text
    assert f" on {made} of {made} gradient evaluations" in watch.clipping[0].sentence


@pytest.mark.parametrize(
    ("make", "each"),
    [
        (lambda weights: Ascending(weights, 0.01), "gradient evaluations"),
        (lambda weights: torch.optim.LBFGS(weights, max_iter=3), "gradient evaluations"),
        (lambda weights: torch.optim.LBFGS(weights, max_iter=3, line_search_fn="strong_wolfe"), "steps"),
        (lambda weights: torch.optim.SGD(weights, 0.01), "steps"),
    ],
)
def test_a_loop_s_closing_line_counts_the_same(make, each, caplog) -> None:
    """With a closure, whoever evaluates it how often."""
    caplog.set_level("INFO")
    module = Searching()
    optimizer = make(module.parameters())
    with clip_adaptively(optimizer, Norm(1e-3)) as clip:
        for batch in torch.randn(BATCHES, 4, 9):
            module.losses.append([])

            def closure(batch: Tensor = batch) -> Tensor:
                optimizer.zero_grad()
                loss = module.loss(batch)
                loss.backward()
                return loss

            optimizer.step(closure)
    made = clip.clip_counts(optimizer).steps
    assert made == (BATCHES if each == "steps" else sum(map(len, module.losses)))
    assert f"clip_adaptively: {made} of {made} {each} clipped, 0 skipped." in caplog.text


def test_a_step_is_clipped_and_written_once(tmp_path) -> None:
    """However often its loss is evaluated."""
    callback = AdaptiveClip("norm", dirpath=tmp_path / "run")
    module = trained(tmp_path, Searching(), callback)
    assert max(map(len, module.losses)) > 2
    assert [step["step"] for step in steps_of(callback)] == list(range(BATCHES))
