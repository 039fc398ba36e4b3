"""The lagged gradients of loops: exact, and without running anything of the user's twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch.profile import Profile
from lightning_gradwatch.recurrent import Capture, loop_profiles, measure_lags
from lightning_gradwatch.recurrent.graph import saved_hooks, second_pass
from lightning_gradwatch.recurrent.pause import is_paused

TIME, BATCH, WIDTH = 6, 3, 5


class Counts(torch.autograd.Function):
    """The identity; counts how often its backward runs."""

    runs = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Counts.runs += 1
        return gradient


@pytest.fixture(autouse=True)
def _from_zero() -> None:
    Counts.runs = 0


def count(*_: Any) -> None:
    Counts.runs += 1


class Model:
    """A GRU cell in a loop.

    Args:
        every: whether each state has a loss, or the last one alone.
        step: the cell's call.
        head: what makes the loss's part of a state.
    """

    def __init__(self, every: bool, step: Any = None, head: Any = torch.sin) -> None:
        self.every, self.head = every, head
        self.cell = nn.GRUCell(WIDTH, WIDTH).double()
        self.step = step or (lambda cell, x, h: cell(x, h))

    def loss(self, watched: bool = True) -> tuple[Tensor, list[Tensor]]:
        h, states = torch.zeros(BATCH, WIDTH, dtype=torch.float64), []
        step, head = (self.step, self.head) if watched else (lambda cell, x, h: cell(x, h), torch.sin)
        for x in torch.randn(TIME, BATCH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64):
            h = step(self.cell, x, h)
            states.append(h)
        return sum(head(h).square().sum() for h in (states if self.every else states[-1:])), states

    def truth(self) -> np.ndarray:
        """The last state's total gradient by lag, relative to lag 0 ``(curve, lag)``, by autograd on a graph of its own."""
        loss, states = self.loss(watched=False)
        (sent,) = torch.autograd.grad(loss, states[-1:], retain_graph=True)
        found = torch.stack(torch.autograd.grad((states[-1] * sent).sum(), states)[::-1]).norm(dim=-1)
        return (found / found[0]).T.numpy()


def measured(model: Model) -> Profile:
    """The profile of the model's loop, after a forward and the backward pass."""
    capture = Capture({"cell": model.cell})
    capture.attach()
    capture.begin()
    loss, _ = model.loss()
    (loop,) = capture.read_calls()
    measure_lags(loop, loss)
    assert Counts.runs == 0
    loss.backward()
    (found,) = loop_profiles(loop, None)
    capture.detach()
    assert loop.lagged is None
    return found


@pytest.mark.parametrize("every", [True, False], ids=["a loss on every state", "a loss on the last state"])
def test_the_head_runs_back_once(every: bool) -> None:
    """What lies between the states and the loss runs back as often as without us, and the curves are autograd's."""
    model = Model(every, head=lambda h: torch.sin(Counts.apply(h)))
    found = measured(model)
    assert Counts.runs == (TIME if every else 1)
    assert found.exact
    assert np.allclose(found.curves, model.truth(), rtol=1e-12)


def by_checkpoint(cell: nn.Module, x: Tensor, h: Tensor) -> Tensor:
    def run(x: Tensor, h: Tensor) -> Tensor:
        Counts.runs += 1
        return cell(x, h)

    made = checkpoint(run, x, h, use_reentrant=False)
    Counts.runs -= 1  # this was the forward
    return made


def with_hook(cell: nn.Module, x: Tensor, h: Tensor) -> Tensor:
    made = cell(x, h)
    made.register_hook(count)
    return made


def with_module_hook(cell: nn.Module, x: Tensor, h: Tensor) -> Tensor:
    handle = cell.register_full_backward_hook(count)
    made = cell(x, h)
    handle.remove()
    return made


def with_saved_hook(cell: nn.Module, x: Tensor, h: Tensor) -> Tensor:
    def unpack(saved: tuple[bool, Tensor]) -> Tensor:
        Counts.runs += saved[0]
        return saved[1]

    once = [True]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (bool(once and once.pop()), t), unpack):
        return cell(x, h)


CODE: dict[str, tuple[Callable[[nn.Module, Tensor, Tensor], Tensor], str]] = {
    "an autograd function": (lambda cell, x, h: cell(x, Counts.apply(h)), "the backward of Counts in it"),
    "activation checkpointing": (by_checkpoint, "activation checkpointing"),
    "a hook on the states": (with_hook, "a hook on its states"),
    "a module's backward hook": (with_module_hook, "the backward of BackwardHookFunction in it"),
    "a hook on saved tensors": (
        with_saved_hook,
        "a hook on what it saves" if saved_hooks.TELLS_HOOKS else "hooks on saved tensors",
    ),
}


@pytest.mark.parametrize("code", CODE)
def test_code_of_the_users_in_the_loop_runs_back_once(code: str) -> None:
    """Where a second pass through the loop would run the user's own code again, the lags are left out, with the reason."""
    step, reason = CODE[code]
    model = Model(True, step)
    model.loss()[0].backward()
    expected, Counts.runs = Counts.runs, 0
    found = measured(model)
    assert Counts.runs == expected > 0
    assert found.inexact_reason is not None
    assert reason in found.inexact_reason
    assert not found.curves.size
    assert (found.total > 0).all()


@pytest.fixture
def tells_no_hooks(monkeypatch) -> None:
    """A PyTorch before 2.10."""
    for module in (second_pass, saved_hooks):
        monkeypatch.setattr(module, "TELLS_HOOKS", False)
    monkeypatch.setattr(second_pass, "_unpack_hooks", lambda node: iter(()))


@pytest.mark.parametrize("code", CODE)
def test_a_pytorch_that_does_not_show_hooks_runs_none_twice(code: str, tells_no_hooks) -> None:
    """Before PyTorch 2.10 the lags are left out once a hook on saved tensors has come into force, with the reason."""
    step, reason = CODE[code]
    model = Model(True, step)
    model.loss()[0].backward()
    expected, Counts.runs = Counts.runs, 0
    found = measured(model)
    assert Counts.runs == expected > 0
    assert (reason if code != "a hook on saved tensors" else "hooks on saved tensors") in str(found.inexact_reason)
    assert not found.curves.size


def in_memory(cell: nn.Module, x: Tensor, h: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return cell(x, h)


@pytest.mark.parametrize("step", [None, in_memory], ids=["none", "PyTorch's own, which may run twice"])
def test_a_pytorch_that_does_not_show_hooks_measures_where_there_are_none(step, tells_no_hooks) -> None:
    """Before PyTorch 2.10 a loop without such hooks is measured, and the curves are autograd's."""
    model = Model(True, step)
    found = measured(model)
    assert found.exact
    assert np.allclose(found.curves, model.truth(), rtol=1e-12)


def test_hooks_that_were_in_force_before_are_noticed(tells_no_hooks) -> None:
    """Before PyTorch 2.10 those of a context around the whole training leave the lags out, too."""
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        found = measured(Model(True))
    assert "hooks on saved tensors" in str(found.inexact_reason)
    assert measured(Model(True)).exact


def test_pytorch_s_own_function_is_put_back(tells_no_hooks) -> None:
    """Two may listen at once; when the last has left, PyTorch's function is its own, and nothing is certain."""
    own = torch._C._autograd._push_saved_tensors_default_hooks
    first, second = saved_hooks.listen(), saved_hooks.listen()
    assert torch._C._autograd._push_saved_tensors_default_hooks is not own
    assert not saved_hooks.may_be_hooked()
    first()
    assert not saved_hooks.may_be_hooked()
    second()
    assert torch._C._autograd._push_saved_tensors_default_hooks is own
    assert saved_hooks.may_be_hooked()


def test_a_pytorch_that_starts_at_no_edge_starts_at_the_tensor(monkeypatch) -> None:
    """Before PyTorch 2.5 the second pass begins at a state itself; the curves are autograd's."""
    monkeypatch.setattr(second_pass, "STARTS_AT_EDGES", False)
    model = Model(True)
    found = measured(model)
    assert found.exact
    assert np.allclose(found.curves, model.truth(), rtol=1e-12)


def test_a_pytorch_that_starts_at_no_edge_and_a_state_changed_in_place(monkeypatch) -> None:
    """Before PyTorch 2.5 the lags are left out there, with the reason; the totals are the same."""

    def step(cell: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        made = cell(x, h)
        made.mul_(0.5)
        return made

    model = Model(True, step)
    torch.manual_seed(0)
    expected = measured(model)
    monkeypatch.setattr(second_pass, "STARTS_AT_EDGES", False)
    torch.manual_seed(0)
    found = measured(model)
    assert "PyTorch before 2.5" in str(found.inexact_reason)
    assert not found.curves.size
    assert np.array_equal(found.total, expected.total)


@pytest.mark.parametrize("code", CODE)
def test_with_a_loss_on_the_last_state_alone_no_second_pass_is_needed(code: str) -> None:
    """There the total gradients are the lagged ones, whatever code the loop holds."""
    model = Model(False, CODE[code][0])
    model.loss()[0].backward()
    expected, Counts.runs = Counts.runs, 0
    found = measured(model)
    assert Counts.runs == expected > 0
    assert found.exact
    assert np.allclose(found.curves, model.truth(), rtol=1e-12)


def test_a_hook_within_a_step_is_called_once_more() -> None:
    """PyTorch does not show hooks on tensors that nobody holds: this is what is documented of them."""

    def step(cell: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        within = h * 1
        if within.requires_grad:
            within.register_hook(count)
        return cell(x, within)

    model = Model(True, step)
    assert measured(model).exact
    assert Counts.runs == 2 * (TIME - 1)


def test_a_second_pass_that_fails_leaves_the_backward_pass_alone() -> None:
    """An error within it is the reason why no lags were measured; the parameters' gradients are as without it."""

    def refuses(cell: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        made = cell(x, h)
        made.grad_fn.register_prehook(refuse)
        return made

    def refuse(gradients: tuple[Tensor, ...]) -> None:
        if is_paused():
            raise ValueError("not twice\nand more")

    model = Model(True, refuses)
    model.loss()[0].backward()
    expected = [parameter.grad.clone() for parameter in model.cell.parameters()]
    model.cell.zero_grad()
    found = measured(model)
    assert found.inexact_reason == "a second pass through it failed (not twice); no lags were measured"
    assert all(torch.equal(a, p.grad) for a, p in zip(expected, model.cell.parameters(), strict=True))
