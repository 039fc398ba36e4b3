"""What is said of clipping where there is no Trainer. Every way to clip, and to fail to, is in the campaign."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from lightning_gradwatch import EventKind, load_run, watch
from lightning_gradwatch.audit import ClipVerdict
from tests.asserts import assert_identical
from tests.versions import cpu_scaler

STEPS = 40


def made(kind: str = "Adam") -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.GRU(4, 8, batch_first=True)
    return model, getattr(torch.optim, kind)(model.parameters(), lr=1e-2)


def loss_of(model: nn.Module) -> Tensor:
    return model(torch.randn(4, 7, 4))[0].pow(2).mean()


def watching(model: nn.Module, optimizer: Any, folder: Path, every: int = 2) -> watch:
    return watch(model, optimizer, every_n_steps=every, dirpath=folder / "run")


def clipped(bound: float, folder: Path, kind: str = "Adam") -> watch:
    model, optimizer = made(kind)
    with watching(model, optimizer, folder) as w:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss_of(model).backward()
            clip_grad_norm_(model.parameters(), bound)
            optimizer.step()
    return w


def test_the_verdict_is_told_everywhere_alike(tmp_path, caplog) -> None:
    """On the watch, in run.json, in the closing lines, as an event, through load_run."""
    with caplog.at_level("INFO"):
        w = clipped(1e-4, tmp_path)
    (found,) = w.clipping
    assert (found.verdict, found.share, found.samples, found.steps) == (ClipVerdict.STEP_LIMITER, 1.0, 20, STEPS)
    run = load_run(w.run_dir)
    assert run.clipping == [found.to_record()]
    (event,) = [event for event in w.events if event.kind == EventKind.CLIPPING_LIMITS_STEPS]
    assert found.sentence in event.message
    assert [one["kind"] for one in run.event_records].count("CLIPPING_LIMITS_STEPS") == 1
    assert f"Clipping: step limiter. {found.sentence}" in caplog.text


@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_the_bound_that_is_advised_no_longer_limits(tmp_path, kind: str) -> None:
    """The remedy names a number; with it clipping is not the rule."""
    (before,) = clipped(1e-4, tmp_path, kind).clipping
    (advised,) = re.findall(r"Raise the bound to about ([\d.e-]+)", before.remedy)
    (after,) = clipped(float(advised), tmp_path, kind).clipping
    assert after.verdict != ClipVerdict.STEP_LIMITER
    assert after.share <= 0.25


def test_fabric_clips_as_anybody_does(tmp_path) -> None:
    """By its own function, between its own backward and step."""
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(*made())
    with watching(model, optimizer, tmp_path) as w:
        for _ in range(STEPS):
            optimizer.zero_grad()
            fabric.backward(loss_of(model))
            fabric.clip_gradients(model, optimizer, max_norm=1e-4)
            optimizer.step()
    assert w.clipping[0].verdict == ClipVerdict.STEP_LIMITER


def test_fabric_that_clips_too_soon_is_told_so_and_the_remedy_helps(tmp_path) -> None:
    """Its call stands beside the step, and nothing writes to the gradient after the backward pass."""
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(*made())
    with watching(model, optimizer, tmp_path) as w:
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=False)
            loss = loss_of(model)
            fabric.clip_gradients(model, optimizer, max_norm=1e-4, error_if_nonfinite=False)
            fabric.backward(loss)
            optimizer.step()
    (found,) = w.clipping
    assert found.verdict == ClipVerdict.NO_EFFECT
    assert "Clip between the backward pass and optimizer.step()." in found.remedy
    assert EventKind.CLIPPING_WITHOUT_EFFECT in [event.kind for event in w.events]
    assert clipped(1e-4, tmp_path).clipping[0].verdict == ClipVerdict.STEP_LIMITER


def test_of_steps_that_are_made_in_several_places_nothing_is_sure(tmp_path) -> None:
    """A warm-up without clipping, and then one that clips what is not watched, are no fault."""
    model, optimizer = made()
    with watching(model, optimizer, tmp_path) as w:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        for _ in range(STEPS):
            optimizer.zero_grad()
            clip_grad_norm_(model.parameters(), 1.0)
            loss_of(model).backward()
            optimizer.step()
    (found,) = w.clipping
    assert found.verdict == ClipVerdict.NONE
    assert "names a clipping function" in found.sentence


def test_two_optimizers_are_told_apart(tmp_path) -> None:
    """One of two that take turns is clipped; the other is not, and is not said to be."""
    one, first = made()
    other, second = made("SGD")
    both = nn.ModuleList([one, other])
    with watching(both, [first, second], tmp_path) as w:
        for _ in range(STEPS):
            for model, optimizer in ((one, first), (other, second)):
                optimizer.zero_grad()
                loss_of(model).backward()
                if optimizer is first:
                    clip_grad_norm_(model.parameters(), 1e-4)
                optimizer.step()
    assert [found.verdict for found in w.clipping] == [ClipVerdict.STEP_LIMITER, ClipVerdict.NONE]


def test_what_is_known_is_written_while_the_training_goes_on(tmp_path) -> None:
    """Killed in its midst, a run says what was seen until then; broken off by an error, all of it."""
    model, optimizer = made()
    known: list[Any] = []
    with pytest.raises(KeyboardInterrupt), watching(model, optimizer, tmp_path, every=1) as w:  # noqa: PT012
        for step in range(STEPS):
            optimizer.zero_grad()
            loss_of(model).backward()
            clip_grad_norm_(model.parameters(), 1e-4)
            optimizer.step()
            known.append(load_run(w.run_dir).clipping)
            if step == 25:
                raise KeyboardInterrupt
    samples = [entries[0]["samples"] for entries in known]
    assert samples[:10] == list(range(1, 11))
    assert all(kept >= 0.9 * (step + 1) for step, kept in enumerate(samples))
    assert known[-1][0]["verdict"] == "step limiter"
    assert load_run(w.run_dir).clipping[0]["steps"] == 26


def test_weights_are_the_same_with_a_scaler_and_a_clipping_of_ones_own(tmp_path) -> None:
    """What hears the scaler hands everything on as it is."""

    def trained(watched: bool) -> tuple[Any, Any]:
        model, optimizer = made()
        scaler = cpu_scaler(init_scale=1024.0)
        torch.manual_seed(1)
        w = watching(model, optimizer, tmp_path, every=1) if watched else torch.enable_grad()
        with w:
            for _ in range(8):
                optimizer.zero_grad()
                scaler.scale(loss_of(model)).backward()
                scaler.unscale_(optimizer)
                clip_grad_norm_(model.parameters(), 1e-2)
                scaler.step(optimizer)
                scaler.update()
        return (dict(model.state_dict()), optimizer.state_dict(), scaler.state_dict(), torch.get_rng_state()), w

    (bare, _), (with_it, w) = trained(False), trained(True)
    assert_identical(bare, with_it)
    assert w.clipping[0].samples == 8
