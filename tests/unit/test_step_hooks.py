"""Hooks on the steps of optimizers are called, also once something was compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_gradwatch import Norm, clip_adaptively, load_run, watch
from lightning_gradwatch.step_hooks import keep_step_hooks, once_a_step
from tests.versions import TORCH

KINDS = [torch.optim.SGD, torch.optim.AdamW, torch.optim.SparseAdam]


@pytest.fixture(autouse=True)
def _something_was_compiled() -> None:
    torch.compile(torch.relu, backend="eager")(torch.zeros(1))


@pytest.mark.parametrize("kind", KINDS)
def test_each_hook_is_called_once_a_step(kind: Callable[..., torch.optim.Optimizer]) -> None:
    """However often it was seen to."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = kind([weight], lr=0.1)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    for _ in range(3):
        keep_step_hooks()
    optimizer.step()
    assert calls == ["before", "after"]


class Derived(torch.optim.SGD):
    """Its step calls that of its class, which PyTorch has call all hooks as well."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.fixture
def derived() -> Derived:
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)  # from the first one on the class calls hooks
    return Derived([nn.Parameter(torch.ones(2))], 0.1)


def test_a_step_within_a_step_is_not_heard(derived: Derived) -> None:
    """Nor is anything lost after a step that ended in an error, or of another optimizer within it."""
    other, calls = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), []
    bare: list[int] = []
    handles = [derived.register_step_pre_hook(lambda *_: bare.append(1))]
    for one in (derived, other):
        handles.append(one.register_step_pre_hook(once_a_step(lambda one, *_: calls.append(("before", one)))))
        handles.append(one.register_step_post_hook(once_a_step(lambda one, *_: calls.append(("after", one)))))

    def fails() -> float:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        derived.step(fails)
    assert calls == [("before", derived)]
    calls.clear()
    derived.step(lambda: other.step() or 0.0)
    assert calls == [("before", derived), ("before", other), ("after", other), ("after", derived)]
    assert len(bare) == 4  # PyTorch itself calls a hook twice
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("closure", [True, False])
def test_such_an_optimizer_is_clipped_and_counted_once_a_step(derived: Derived, closure: bool, tmp_path) -> None:
    """With a closure too; and the steps of a loop are those that were taken."""
    model = nn.RNN(2, 3, batch_first=True)
    derived.add_param_group({"params": list(model.parameters())})

    def loss() -> torch.Tensor:
        derived.zero_grad()
        value = model(torch.ones(2, 4, 2))[0].pow(2).sum()
        value.backward()
        return value

    clipping = clip_adaptively(derived, Norm(max_norm=1e-3))
    with watch(model, derived, every_n_steps=1, dirpath=tmp_path / "run") as looking, clipping:
        for _ in range(3):
            if closure:
                derived.step(loss)
            else:
                loss()
                derived.step()
    assert clipping.clip_counts(derived).steps == 3
    assert [record["step"] for record in load_run(tmp_path / "run").profile_records] == [0, 1, 2]
    assert looking.clipping[0].steps == 3


def test_no_step_function_is_replaced_where_pytorch_keeps_hooks() -> None:
    """Only PyTorch 2.2 lets go of them."""
    before = [kind.step for kind in KINDS]
    keep_step_hooks()
    assert [kind.step for kind in KINDS] == before or TORCH < (2, 4)


@pytest.mark.skipif(TORCH >= (2, 4), reason="later releases of PyTorch keep hooks")
def test_a_scheduler_that_holds_on_to_a_step_without_hooks_is_said() -> None:
    """Once seen to, a scheduler that is made afterwards does no harm."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    torch.optim.SGD.step = torch.optim.SGD.step.__wrapped__  # as the first compile of the process does
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.warns(UserWarning, match="The steps of this SGD are not heard"):
        keep_step_hooks([optimizer])
    later = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    torch.optim.lr_scheduler.StepLR(later, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keep_step_hooks([later])


def test_a_loop_is_clipped_and_watched(tmp_path) -> None:
    """The steps are heard."""
    model = nn.RNN(2, 3, batch_first=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    clipping = clip_adaptively(optimizer, Norm(max_norm=1e-3))
    before = [p.detach().clone() for p in model.parameters()]
    with watch(model, optimizer, every_n_steps=1, dirpath=tmp_path / "run"), clipping:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(2, 4, 2))[0].pow(2).sum().backward()
            optimizer.step()
    moved = sum((p - q).pow(2).sum() for p, q in zip(model.parameters(), before, strict=True)).sqrt()
    assert moved.item() == pytest.approx(2e-4, rel=0.05)
    assert [record["step"] for record in load_run(tmp_path / "run").profile_records] == [0, 1]
