"""However a watched loop is left, nothing of ours stays behind, and the run log is whole."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradwatch import load_run, watch
from tests.integration.loops import Tagger, data, plain
from tests.versions import SCALER


def hooks_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """All hooks, and forwards put in front of a module's own."""
    found: list[Any] = [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
    for module in model.modules():
        found += [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        found += [vars(module)["forward"]] if "forward" in vars(module) else []
    return found


def leave_by_break(w: watch, train: Iterator[None]) -> None:
    for number, _ in enumerate(train):
        if number == 2:
            break


def leave_by_error(w: watch, train: Iterator[None]) -> None:
    next(train)
    raise OSError("a disk is full")


def leave_by_interrupt(w: watch, train: Iterator[None]) -> None:
    next(train)
    raise KeyboardInterrupt


def leave_at_once(w: watch, train: Iterator[None]) -> None:
    raise ValueError("before the first step")


def leave_in_a_backward_pass(w: watch, train: Iterator[None]) -> None:
    next(train)
    x = data().requires_grad_()
    x.register_hook(lambda gradient: 1 / 0)
    w.model(x).sum().backward()


WAYS_OUT = {
    leave_by_break: None,
    leave_by_error: OSError,
    leave_by_interrupt: KeyboardInterrupt,
    leave_at_once: ValueError,
    leave_in_a_backward_pass: ZeroDivisionError,
}


@pytest.mark.parametrize("leave", WAYS_OUT, ids=lambda leave: leave.__name__)
def test_no_hook_outlives_the_watch(leave: Any, tmp_path: Path) -> None:
    """Whatever ends it: nothing is left on the model, the optimizer or torch; the error is the caller's own."""
    loop, expected = plain(), WAYS_OUT[leave]
    backward, scale = torch.autograd.backward, SCALER.scale
    optimizer = loop.optimizers[0]
    w = watch(loop.model, optimizer, dirpath=tmp_path / "run")
    with nullcontext() if expected is None else pytest.raises(expected), w:
        leave(w, loop.train())
    assert not hooks_of(loop.model, optimizer)
    assert torch.autograd.backward is backward
    assert SCALER.scale is scale
    assert load_run(w.run_dir).meta["ended"] is not None


def test_a_generator_that_is_closed_leaves_nothing(tmp_path: Path) -> None:
    """A training that yields from within the watch may never be continued."""
    loop = plain()

    def train() -> Iterator[None]:
        with watch(loop.model, loop.optimizers, dirpath=tmp_path / "run"):
            yield from loop.train()

    training = train()
    next(training)
    training.close()
    assert not hooks_of(loop.model, loop.optimizers[0])


def test_a_watch_may_be_entered_again(tmp_path: Path) -> None:
    """Each time is a run of its own, with its own folder; not while it is entered."""
    loop = plain()
    w, folders = watch(loop.model, loop.optimizers, dirpath=tmp_path / "run"), list[Path | None]()
    for _ in range(2):
        with w:
            list(loop.train())
            with pytest.raises(RuntimeError, match="entered already"):
                w.__enter__()
        folders.append(w.run_dir)
        assert len(w.verdicts) == 3
    assert [folder.name for folder in folders if folder] == ["run", "run-1"]


def test_two_watches_at_once(tmp_path: Path) -> None:
    """Each sees its own model, and the first to be left takes nothing from the other."""
    one, other = plain(), plain()
    with watch(one.model, one.optimizers, every_n_steps=1, dirpath=tmp_path / "one") as first:
        with watch(other.model, other.optimizers, every_n_steps=1, dirpath=tmp_path / "other") as second:
            for _ in zip(one.train(), other.train(), strict=True):
                pass
        list(one.train())
    steps = [{record["step"] for record in load_run(w.run_dir).profile_records} for w in (first, second)]
    assert steps == [set(range(12)), set(range(6))]


def test_a_stand_in_of_somebody_else_stays(tmp_path: Path) -> None:
    """Who puts his own in front of ours while we listen keeps it, and it goes on working."""
    loop, original, called = plain(), torch.autograd.backward, []
    try:
        with watch(loop.model, loop.optimizers, dirpath=tmp_path / "run"):
            ours = torch.autograd.backward

            def theirs(*args: Any, **kwargs: Any) -> None:
                called.append(1)
                ours(*args, **kwargs)

            torch.autograd.backward = theirs
            list(loop.train())
        assert torch.autograd.backward is theirs
        list(loop.train())
        assert len(called) == 12
        with watch(loop.model, loop.optimizers, every_n_steps=1, dirpath=tmp_path / "again") as w:
            list(loop.train())
        assert len({record["step"] for record in load_run(w.run_dir).profile_records}) == 6
    finally:
        torch.autograd.backward = original
    with watch(loop.model, loop.optimizers, every_n_steps=1, dirpath=tmp_path / "last") as w:
        list(loop.train())
    assert len({record["step"] for record in load_run(w.run_dir).profile_records}) == 6


def test_a_copy_of_a_watched_model_is_free(tmp_path: Path) -> None:
    """An average of the weights, or a checkpoint of the whole model, is made within the loop."""
    loop = plain()
    with watch(loop.model, loop.optimizers, dirpath=tmp_path / "run") as w:
        for _ in loop.train():
            copied = pickle.loads(pickle.dumps(copy.deepcopy(loop.model)))
            copied(data()).sum().backward()
    assert len(w.verdicts) == 3
    assert not w.events


def test_validation_that_forgets_no_grad_fills_no_memory(tmp_path: Path) -> None:
    """Only so many passes are kept that no backward pass follows; the training is measured before and after."""
    loop = plain()
    alive, most = list[weakref.ref[Any]](), 0
    with watch(loop.model, loop.optimizers, every_n_steps=1, dirpath=tmp_path / "run") as w:
        for _ in loop.train():
            for _ in range(50):
                output = loop.model.rnn.register_forward_hook(lambda *made: alive.append(weakref.ref(made[2][0])))
                loop.model(data())
                output.remove()
                most = max(most, sum(reference() is not None for reference in alive))
    assert 0 < most <= 32
    # The first batch after an evaluation that long is not kept, since nothing tells it from the evaluation.
    assert {record["step"] for record in load_run(w.run_dir).profile_records} == {0}
    assert not w.events


def test_nothing_of_a_step_is_held_after_it(tmp_path: Path) -> None:
    """What the model returned is freed at once, without the garbage collector."""
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters())
    gc.collect()
    gc.disable()
    try:
        with watch(model, optimizer, every_n_steps=2, dirpath=tmp_path / "run"):
            for _ in range(4):
                output = model(data())
                output.pow(2).mean().backward()
                reference = weakref.ref(output)
                optimizer.step()
                del output
                assert reference() is None
    finally:
        gc.enable()
