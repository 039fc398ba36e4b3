"""What the user's code says of clipping."""

from __future__ import annotations

from functools import wraps
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.nn.utils import clip_grad_norm_ as renamed

from lightning_gradwatch.clip.between.source import naming, too_early


class Never(pl.LightningModule):
    def training_step(self, batch: Any) -> None:
        self.log("clip", 1.0)


class Always(pl.LightningModule):
    def training_step(self, batch: Any) -> None:
        with torch.no_grad():
            norm = torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.log("norm", norm)


class Renamed(pl.LightningModule):
    def on_after_backward(self) -> None:
        renamed(self.parameters(), 1.0)


class Branch(pl.LightningModule):
    def training_step(self, batch: Any) -> None:
        if batch:
            self.clip_gradients(batch, 1.0)


class Early(pl.LightningModule):
    def training_step(self, batch: Any) -> None:
        if batch:
            return
        torch.nn.utils.clip_grad_value_(self.parameters(), 1.0)


class Lazy(pl.LightningModule):
    def training_step(self, batch: Any) -> None:
        later = lambda: renamed(self.parameters(), 1.0)  # noqa: E731
        batch and later()


class Configured(pl.LightningModule):
    STRICT = True

    def __init__(self, bound: float | None = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.bound, self.automatic_optimization = bound, False


class BeforeIfAsked(Configured):
    def training_step(self, batch: Any) -> None:
        if self.bound is not None and self.bound > 0:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.bound)
        self.manual_backward(batch)


class BeforeByHparams(Configured):
    def training_step(self, batch: Any) -> None:
        if self.STRICT and self.hparams.bound:
            self.clip_gradients(batch, 1.0)
        self.manual_backward(batch)


class AfterIfAsked(Configured):
    def training_step(self, batch: Any) -> None:
        self.manual_backward(batch)
        if not self.bound:
            return
        renamed(self.parameters(), 1.0)


class Elsewhere(pl.LightningModule):
    def help(self) -> None:
        renamed(self.parameters(), 1.0)


class Inherits(Always): ...


class Overrides(Always):
    def training_step(self, batch: Any) -> None:
        return None


def noisy(method: Any) -> Any:
    @wraps(method)
    def around(*args: Any) -> Any:
        return method(*args)

    return around


class Decorated(pl.LightningModule):
    @noisy
    def training_step(self, batch: Any) -> None:
        renamed(self.parameters(), 1.0)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Never, {}),
        (Always, {"Always.training_step": True}),
        (Renamed, {"Renamed.on_after_backward": True}),
        (Branch, {"Branch.training_step": False}),
        (Early, {"Early.training_step": False}),
        (Lazy, {"Lazy.training_step": False}),
        (Elsewhere, {"Elsewhere.help": False}),
        (Inherits, {"Inherits.training_step": True}),
        (Overrides, {}),
        (Decorated, {"Decorated.training_step": True}),
        (pl.Callback, {}),
        (pl.callbacks.GradientAccumulationScheduler, {}),
    ],
)
def test_a_method_that_clips_is_found(kind: type, found: dict[str, bool]) -> None:
    """By the function's own name or one that it was given; sure only where no branch, loop or early return lies before it."""
    owner = kind({0: 1}) if kind is pl.callbacks.GradientAccumulationScheduler else kind()
    assert naming(owner) == found


@pytest.mark.parametrize("bound", [0.5, None])
@pytest.mark.parametrize(("kind", "early"), [(BeforeIfAsked, True), (BeforeByHparams, True), (AfterIfAsked, False)])
def test_a_branch_counts_where_its_condition_is_plain(kind: type, early: bool, bound: float | None) -> None:
    """By the module's own settings; and whether the clipping stands before the backward pass is told from its place."""
    owner, name = kind(bound), f"{kind.__name__}.training_step"
    assert naming(owner) == {name: bound is not None}
    assert too_early(owner, automatic=False) == ({name} if early and bound is not None else set())


def test_before_lightnings_own_backward_is_the_training_step() -> None:
    """In automatic optimization its place in the source says nothing."""
    assert too_early(Always(), automatic=True) == {"Always.training_step"}
    assert too_early(Renamed(), automatic=True) == set()


def test_code_without_a_file_is_no_proof() -> None:
    """What was typed in names the function; that it is always called cannot be read."""
    names: dict[str, Any] = {}
    exec(
        "import torch\nclass Typed:\n    def training_step(self):\n        torch.nn.utils.clip_grad_norm_([], 1.0)\n",
        names,
    )
    assert naming(names["Typed"]()) == {"Typed.training_step": False}
