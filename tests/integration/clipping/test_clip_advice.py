"""What is said of clipping fits what was clipped, and what ran."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from lightning_gradwatch import EventKind, GradWatch, watch
from lightning_gradwatch.audit import ClippingSummary, ClipVerdict
from tests.asserts import assert_identical
from tests.integration.clipping.clip_models import trainer_for

BATCHES = 24


class ByHand(pl.LightningModule):
    """An LSTM and a head, in manual optimization; ``before`` and ``after`` the backward pass something may clip."""

    def __init__(self, bound: float | None = 1e-3) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.rnn, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 1)
        self.bound, self.automatic_optimization = bound, False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        self.clips()
        optimizer.step()

    def loss(self, batch: Tensor) -> Tensor:
        return (self.head(self.rnn(batch)[0][:, -1]) - 1).square().mean()

    def clips(self) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Branch(ByHand):
    """Clips before the backward pass, if it was asked to."""

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer = self.optimizers()
        loss = self.loss(batch)
        optimizer.zero_grad()
        if self.bound:
            clip_grad_norm_(self.parameters(), self.bound)
        self.manual_backward(loss)
        optimizer.step()


class HeadAlone(ByHand):
    norms: list[float]

    def clips(self) -> None:
        self.norms.append(float(clip_grad_norm_(self.head.parameters(), self.bound or 1.0)))


class EachTensor(ByHand):
    def clips(self) -> None:
        for weight in self.parameters():
            clip_grad_norm_([weight], self.bound or 1.0)


class EachEntry(ByHand):
    def clips(self) -> None:
        clip_grad_value_(self.parameters(), self.bound or 1.0)


def fit(folder: Path, model: pl.LightningModule, *callbacks: pl.Callback) -> pl.LightningModule:
    x = torch.randn(BATCHES * 4, 12, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    trainer_for(folder, *callbacks).fit(model, torch.utils.data.DataLoader(x, batch_size=4))  # type: ignore[arg-type]
    return model


def found_in(folder: Path, model: pl.LightningModule) -> tuple[ClippingSummary, GradWatch]:
    seen = GradWatch(every_n_steps=1, dirpath=folder / "run")
    fit(folder, model, seen)
    (found,) = seen.clipping
    return found, seen


def test_a_branch_that_clips_too_soon_is_told_so(tmp_path) -> None:
    """Gradients that are thrown away as None keep no trace of it: the module's own setting says that the branch is taken."""
    found, seen = found_in(tmp_path, Branch())
    assert found.verdict is ClipVerdict.NO_EFFECT
    assert "Branch.training_step clips before the backward pass: on the 24 steps" in found.sentence
    assert EventKind.CLIPPING_WITHOUT_EFFECT in [event.kind for event in seen.events]


def test_a_branch_that_is_not_taken_is_no_clipping(tmp_path) -> None:
    """Nor is it said to clip: a call stands in the code."""
    found, _ = found_in(tmp_path, Branch(None))
    assert found.verdict is ClipVerdict.NONE
    assert found.by == ["Branch.training_step (a clip call stands in it)"]


def test_looking_a_condition_up_changes_nothing(tmp_path) -> None:
    """Weights are equal to the bit with and without GradWatch."""
    bare = fit(tmp_path, Branch())
    watched = fit(tmp_path, Branch(), GradWatch(every_n_steps=1, dirpath=tmp_path / "run"))
    assert_identical(bare.state_dict(), watched.state_dict())


@pytest.mark.parametrize(("bound", "verdict"), [(1e-3, ClipVerdict.NO_EFFECT), (None, ClipVerdict.NONE)])
def test_a_branch_of_a_loop_is_read_alike(tmp_path, bound: float | None, verdict: ClipVerdict) -> None:
    """By what the loop's own name stands for at a step that is looked at."""
    torch.manual_seed(0)
    model = nn.GRU(4, 8, batch_first=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, optimizer, every_n_steps=1, dirpath=tmp_path / "run") as w:
        for _ in range(12):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 7, 4))[0].square().mean()
            if bound is not None:
                clip_grad_norm_(model.parameters(), bound)
            loss.backward()
            optimizer.step()
    (found,) = w.clipping
    assert found.verdict is verdict
    assert ("clips before the backward pass:" in found.sentence) == (bound is not None)


def test_where_a_part_is_clipped_the_bound_is_of_that_part(tmp_path) -> None:
    """The advised figure is the largest norm that the head's own clipping was given, rounded up; with it, hardly anything is clipped."""
    model = HeadAlone()
    model.norms = []
    found, _ = found_in(tmp_path, model)
    assert found.verdict is ClipVerdict.STEP_LIMITER
    assert "the gradients of some of the parameters smaller" in found.sentence
    (advised,) = re.findall(r"to about ([\d.e+-]+),", found.remedy)
    assert 1 - 1e-6 <= float(advised) / max(model.norms) <= 1.1
    again = HeadAlone(float(advised))
    again.norms = []
    assert found_in(tmp_path / "again", again)[0].verdict in (ClipVerdict.SAFETY_NET, ClipVerdict.NEVER_ACTED)


@pytest.mark.parametrize("kind", [EachTensor, EachEntry])
def test_where_no_one_norm_is_bounded_the_figure_is_for_another_way(tmp_path, kind: Any) -> None:
    """Of a bound on each tensor or entry no figure is named; one on the norm of all gradients is, as the other way."""
    found, _ = found_in(tmp_path, kind())
    assert found.verdict is ClipVerdict.STEP_LIMITER
    assert "raise that bound until it acts on a few steps" in found.remedy
    assert "A bound on the norm of all gradients" in found.remedy


class Carried(pl.LightningModule):
    """Truncated backpropagation with a loss at every timestep; of a cell's kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn, self.head = getattr(nn, kind)(4, 16, batch_first=True), nn.Linear(16, 1)
        self.state: Any = None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        state = self.state
        if state is not None:
            state = tuple(one.detach() for one in state) if isinstance(state, tuple) else state.detach()
        output, self.state = self.rnn(batch, state)
        return (self.head(output) - batch.mean(2, keepdim=True)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_the_event_of_vanishing_says_what_the_cut_was_measured_to_cost(tmp_path, kind: str) -> None:
    """It names the share that the profile of its step has, and does not say that longer segments were useless."""
    seen = GradWatch(every_n_steps=1, dirpath=tmp_path / "run")
    x = torch.randn(BATCHES * 4, 30, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(x, batch_size=4)  # type: ignore[arg-type]
    trainer_for(tmp_path, seen).fit(Carried(kind), loader)
    event = next(event for event in seen.events if event.kind == EventKind.VANISHING_HIDDEN_GRADIENT)
    (share,) = re.findall(r"([\d.]+) % of it over both would lie there", event.message)
    assert 1 < float(share) < 20
    assert "next to nothing" not in event.message
    assert "Longer segments do not help" not in event.remedy
