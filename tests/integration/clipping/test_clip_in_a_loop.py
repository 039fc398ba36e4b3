"""clip_adaptively() does for a loop what AdaptiveClip does for a Trainer."""

# Over 300 lines: one function, whose promises are those of the callback, one after the other.
from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gradwatch import (
    AdaptiveClip,
    NonFiniteGradientError,
    Norm,
    clip_adaptively,
    load_run,
    watch,
)
from tests.asserts import assert_identical
from tests.integration.loops import WAYS, Loop, Tagger, data
from tests.models import trainer
from tests.versions import cpu_scaler, needs_fused

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda weights: torch.optim.Adam(weights, 0.01, weight_decay=0.1),
    "fused": lambda weights: needs_fused() or torch.optim.AdamW(weights, 0.01, fused=True),
    "RMSprop": lambda weights: torch.optim.RMSprop(weights, 0.01, momentum=0.5),
}


def batches(spoilt: int | None = None, huge: int | None = None, count: int = 8) -> list[Tensor]:
    """Batches of data, of which one may hold a NaN and one be a million times as large."""
    made = [data() for _ in range(count)]
    if spoilt is not None:
        made[spoilt][1, 2, 3] = math.nan
    if huge is not None:
        made[huge] *= 1e6
    return made


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return (batch.mean() * model(batch)).pow(2).mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, given: list[Tensor]) -> Iterator[int]:
    for number, batch in enumerate(given):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        yield number


class InTrainer(pl.LightningModule):
    def __init__(self, model: nn.Module, make: Callable[[Any], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.model, self.make = model, make

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return loss_of(self.model, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.parameters())


@pytest.mark.parametrize("policy", ["spike", "norm", "value", "autoclip", "zclip", "agc", "adagc", "aggc"])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_loop_is_clipped_as_a_trainer_is(name: str, policy: str, tmp_path: Path) -> None:
    """The same weights to the bit, the same record of every step, the same events: with a NaN and an explosion on the way."""
    model, given = Tagger(), batches(spoilt=3, huge=6)
    twin = copy.deepcopy(model)
    ours = AdaptiveClip(policy=policy, dirpath=tmp_path / "trainer")
    loader = DataLoader(torch.cat(given), batch_size=4)
    trainer(tmp_path, [ours], max_epochs=1, max_steps=-1).fit(InTrainer(model, OPTIMIZERS[name]), loader)
    optimizer = OPTIMIZERS[name](twin.parameters())
    with clip_adaptively(optimizer, policy, model=twin, dirpath=tmp_path / "loop") as clip:
        list(train(twin, optimizer, given))
    assert_identical(model.state_dict(), twin.state_dict())
    found, wanted = (load_run(run).step_records for run in (tmp_path / "loop", tmp_path / "trainer"))
    assert len(found) == len(given)
    assert found == wanted
    assert [(e.kind, e.step, e.action) for e in clip.events] == [(e.kind, e.step, e.action) for e in ours.events]
    assert any(e.kind == "STEP_SKIPPED" for e in clip.events)


@pytest.mark.parametrize("make", WAYS, ids=lambda make: make.__name__)
def test_a_healthy_loop_is_left_alone(make: Callable[[], Loop]) -> None:
    """Whatever it does: weights and optimizer states are those without it."""
    left: list[Any] = []
    for clipped in (False, True):
        torch.manual_seed(3)
        loop = make()
        clip = clip_adaptively(loop.optimizers) if clipped else None
        list(loop.train())
        left.append([loop.model.state_dict(), [optimizer.state_dict() for optimizer in loop.optimizers]])
        if clip is not None:
            assert not clip.events
            clip.close()
    assert_identical(*left)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_changes_nothing(name: str) -> None:
    """Neither weights nor momentum, decay and counters of the optimizer."""
    model = Tagger()
    optimizer = OPTIMIZERS[name](model.parameters())
    given = batches(spoilt=4)
    with clip_adaptively(optimizer) as clip:
        for number in train(model, optimizer, given):
            state = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
            if number == 3:
                before = state
            if number == 4:
                assert_identical(before, state)
    assert [event.kind for event in clip.events] == ["STEP_SKIPPED"]


def test_a_loop_that_explodes_is_held() -> None:
    """The step is brought back to the ordinary level."""
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    norms: list[float] = []
    with clip_adaptively(optimizer, log=lambda values, step: norms.append(values["gradwatch/clipped_norm"])) as clip:
        list(train(model, optimizer, batches(huge=5)))
    assert [event.kind for event in clip.events] == ["GRADIENT_CLIPPED"]
    assert norms[5] < 100 * max(norms[:5])
    assert "clip_adaptively" in clip.events[0].remedy or "learning rate" in clip.events[0].remedy


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_gradient_scaler_the_true_norm_counts(fused: bool) -> None:
    """Norms and weights are those without a scaler, also where the optimizer unscales by itself."""
    if fused:
        needs_fused()
    results: list[Any] = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = Tagger()
        optimizer = torch.optim.Adam(model.parameters(), 0.01, fused=fused)
        scaler, norms = cpu_scaler(init_scale=1024.0, enabled=enabled), list[float]()
        with clip_adaptively(
            optimizer, Norm(1e-3), log=lambda values, step, n=norms: n.append(values["gradwatch/grad_norm"])
        ):
            for batch in batches():
                optimizer.zero_grad()
                scaler.scale(loss_of(model, batch)).backward()
                scaler.step(optimizer)
                scaler.update()
        results.append([model.state_dict(), norms])
    assert_identical(*results)


@pytest.mark.parametrize("fused", [False, True])
def test_what_the_scaler_skips_is_no_step_of_ours(fused: bool) -> None:
    """Its search for a scale is neither a skip nor in a history; weights stay until a step is finite."""
    if fused:
        needs_fused()
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), 0.01, fused=fused)
    scaler, start = cpu_scaler(init_scale=2.0**127), copy.deepcopy(model.state_dict())
    with clip_adaptively(optimizer, on_nonfinite="raise") as clip:
        output = model(data()).mean()
        scaler.scale(1e3 * (output - output.detach())).backward()
        scaler.step(optimizer)
        scaler.update()
        assert_identical(start, model.state_dict())
        scaler.update(1024.0)
        optimizer.zero_grad()
        scaler.scale(model(data()).mean()).backward()
        scaler.step(optimizer)
    assert {event.kind for event in clip.events} <= {"AMP_OVERFLOW"}
    assert clip.state_dict()["optimizers"][0]["skipped"] == 0
    assert not torch.equal(start["head.weight"], model.head.weight)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_the_gradients_of_a_closure_are_clipped(search: str | None) -> None:
    """When it has made them; of a line search the first ones."""
    model, seen = Tagger(), list[float]()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2, line_search_fn=search)
    batch, calls = data(), 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    with clip_adaptively(optimizer, Norm(1e-6), log=lambda values, step: seen.append(values["gradwatch/clipped_norm"])):
        optimizer.step(closure)
    assert len(seen) == (calls if search is None else 1)
    assert all(norm <= 1.001e-6 for norm in seen)


@pytest.mark.parametrize("policy", ["spike", "zclip", "adagc", "aggc", "autoclip"])
def test_a_resumed_loop_decides_as_one_that_went_on(policy: str, tmp_path: Path) -> None:
    """From a checkpoint that is read with weights_only=True."""
    given = batches(huge=6, count=10)

    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = Tagger()
        return model, torch.optim.Adam(model.parameters(), 0.01)

    whole, optimizer = begin()
    with clip_adaptively(optimizer, policy) as clip:
        list(train(whole, optimizer, given))
        wanted = clip.state_dict()
    first, optimizer = begin()
    with clip_adaptively(optimizer, policy) as clip:
        list(train(first, optimizer, given[:4]))
        torch.save([first.state_dict(), optimizer.state_dict(), clip.state_dict()], tmp_path / "checkpoint")
    second, optimizer = begin()
    weights, state, clips = torch.load(tmp_path / "checkpoint", weights_only=True)
    second.load_state_dict(weights)
    optimizer.load_state_dict(state)
    with clip_adaptively(optimizer, policy) as clip:
        clip.load_state_dict(clips)
        list(train(second, optimizer, given[4:]))
        assert_identical(clip.state_dict(), wanted)
    assert_identical(second.state_dict(), whole.state_dict())


def test_each_optimizer_has_its_own_policy_and_patterns() -> None:
    """A pattern names parameters of the model that is given; what is excluded is neither clipped nor counted."""
    model = Tagger()
    optimizers = [torch.optim.SGD(model.rnn.parameters(), 0.1), torch.optim.SGD(model.head.parameters(), 0.1)]
    logged: list[dict[str, float]] = []
    with clip_adaptively(
        optimizers,
        Norm(1e-8),
        model=model,
        exclude=["head.*"],
        policies={"rnn.*_l1": Norm(1e-9)},
        log=lambda values, step: logged.append(dict(values)),
    ):
        loss_of(model, data()).backward()
        for optimizer in optimizers:
            optimizer.step()
    first, second = logged
    assert first["gradwatch/0/clipped_norm"] == pytest.approx(1e-8)
    assert first["gradwatch/0/rnn.__l1/clipped_norm"] == pytest.approx(1e-9)
    assert set(second) >= {"gradwatch/1/excluded/grad_norm"}
    with pytest.raises(ValueError, match=r"`exclude` must hold patterns that match.*found 'decoder'"):
        clip_adaptively(optimizers, model=model, exclude=["decoder"])


def test_a_loop_that_does_not_recover_is_ended() -> None:
    """After so many skips in a row by an error; with ``raise`` at once, and before the step."""
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    spoilt = [torch.full_like(data(), math.nan)] * 5
    alarm, at_once = (
        "clip_adaptively skipped 3 steps in succession",
        r"at optimizer step 0\. Use clip_adaptively\(optimizer, on_",
    )
    with clip_adaptively(optimizer, max_successive_skips=3) as clip, pytest.raises(NonFiniteGradientError, match=alarm):
        list(train(model, optimizer, spoilt))
    assert [event.action for event in clip.events] == ["skipped", "skipped", "stopped"]
    assert clip.events[-1].severity == "critical"
    start = copy.deepcopy(model.state_dict())
    with clip_adaptively(optimizer, on_nonfinite="raise"), pytest.raises(NonFiniteGradientError, match=at_once):
        list(train(model, optimizer, spoilt))
    assert_identical(start, model.state_dict())


def test_recurrent_weights_are_shrunk_as_pascanu_has_it() -> None:
    """Where the model says which they are."""
    model = nn.RNN(4, 8)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    before = copy.deepcopy(model.state_dict())
    with clip_adaptively(optimizer, model=model, on_nonfinite="shrink_recurrent"):
        model(torch.full((3, 2, 4), math.nan))[0].sum().backward()
        optimizer.step()
    torch.testing.assert_close(model.weight_hh_l0.detach(), 0.98 * before["weight_hh_l0"])
    assert torch.equal(model.weight_ih_l0, before["weight_ih_l0"])
    with pytest.raises(ValueError, match="needs parameters whose name holds 'weight_hh'"):
        clip_adaptively(optimizer, on_nonfinite="shrink_recurrent")


def test_watch_and_clip_write_one_run_log(tmp_path: Path) -> None:
    """Under one name; the watch sees the gradients before they are clipped, and ends with what both found."""
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    folder = tmp_path / "run"
    with watch(model, optimizer, dirpath=folder) as w, clip_adaptively(optimizer, dirpath=folder) as clip:
        list(train(model, optimizer, batches(spoilt=3)))
    assert w.run_dir == clip.run_dir
    run = load_run(folder)
    assert {event["kind"] for event in run.event_records} == {"NONFINITE_INPUT", "STEP_SKIPPED"}
    assert len(run.step_records) == 8
    assert "clip_adaptively skips such a step" in " ".join(event.remedy for event in w.events)
    assert not any("AdaptiveClip" in f"{event.message} {event.remedy}" for event in (*w.events, *clip.events))


def test_an_optimizer_is_clipped_once() -> None:
    """A second clipping would judge what the first has left; after the first is closed there is room again."""
    optimizer = torch.optim.SGD(Tagger().parameters(), 0.1)
    clip = clip_adaptively(optimizer)
    with pytest.raises(ValueError, match="must not be clipped already; this SGD is"):
        clip_adaptively(optimizer)
    clip.close()
    clip.close()
    clip_adaptively(optimizer).close()
    assert not optimizer._optimizer_step_pre_hooks
    with pytest.raises(TypeError, match=r"`optimizer` must be a torch\.optim\.Optimizer, or several; found list"):
        clip_adaptively([list[int]()])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="`on_nonfinite` must be"):
        clip_adaptively(optimizer, on_nonfinite="stop")  # type: ignore[arg-type]
