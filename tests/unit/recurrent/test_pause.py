"""Passes that are none of the training's: nothing is kept of them, and everything of the training's own."""

from __future__ import annotations

import threading

import pytest
import torch

from lightning_gradwatch.recurrent.gradient_slot import GradientSlot
from lightning_gradwatch.recurrent.pause import is_paused, paused


def test_pauses_may_be_nested() -> None:
    """The inner one's end is not the outer one's."""
    with paused():
        with paused():
            assert is_paused()
        assert is_paused()
    assert not is_paused()


def _fail() -> None:
    with paused():
        raise ValueError("within")


def test_an_error_ends_its_own_pause_alone() -> None:
    """The outer one goes on, and ends by an error as well."""
    with paused():
        with pytest.raises(ValueError, match="within"):
            _fail()
        assert is_paused()
    with pytest.raises(ValueError, match="within"):
        _fail()
    assert not is_paused()


def test_another_thread_trains_on_meanwhile() -> None:
    """A pause is that of the passes which its own thread begins; what another thread's backward brings is kept."""
    x = torch.ones(2, requires_grad=True)
    here, there = GradientSlot(), GradientSlot()

    def train() -> None:
        y = x * 2
        there.watch(y)
        y.sum().backward()

    y = x * 3
    here.watch(y)
    thread = threading.Thread(target=train)
    with paused():
        thread.start()
        thread.join()
        torch.autograd.grad(y.sum(), x)
    assert there.arrived
    assert not here.arrived


def test_pauses_of_two_threads_overlap() -> None:
    """One that ends while the other goes on ends for its own thread alone."""
    begun, ended = threading.Event(), threading.Event()
    seen: list[bool] = []

    def pause() -> None:
        with paused():
            begun.set()
            ended.wait(10)
            seen.append(is_paused())
        seen.append(is_paused())

    thread = threading.Thread(target=pause)
    with paused():
        thread.start()
        begun.wait(10)
    assert not is_paused()
    ended.set()
    thread.join()
    assert seen == [True, False]


class _Nested(torch.autograd.Function):
    """Its backward runs a backward of its own, ``depth`` times over; at the bottom it is asked whether all rests."""

    @staticmethod
    def forward(ctx, x, depth, look):
        ctx.depth, ctx.look = depth, look
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[override]
        with torch.enable_grad():
            x = torch.ones(1, requires_grad=True)
            y = _Nested.apply(x, ctx.depth - 1, ctx.look) if ctx.depth else x * 1
        if not ctx.depth:
            ctx.look()
        torch.autograd.grad(y, x)
        return gradient, None, None


@pytest.mark.parametrize("rests", [False, True])
def test_a_pause_follows_autograd_into_its_own_threads(rests: bool) -> None:
    """A backward within a backward goes on in another thread once it is deep enough, as it does on a GPU at once."""
    seen: list[tuple[int, bool]] = []
    x = torch.ones(1, requires_grad=True)
    y = _Nested.apply(x, 80, lambda: seen.append((threading.get_ident(), is_paused())))
    if rests:
        with paused():
            torch.autograd.grad(y, x)
    else:
        torch.autograd.grad(y, x)
    ((thread, was_paused),) = seen
    assert thread != threading.get_ident()
    assert was_paused == rests


def test_a_pass_within_the_trainings_own_is_paused_and_the_rest_of_that_is_not() -> None:
    """What arrives before and after it is kept."""
    x = torch.ones(2, requires_grad=True)
    early, late, aside = GradientSlot(), GradientSlot(), GradientSlot()
    low = x * 2
    side = x * 5
    aside.watch(side)
    early.watch(low)
    high = low * 3

    def look_aside(gradient: torch.Tensor) -> None:
        with paused():
            torch.autograd.grad(side, x, torch.ones(2), retain_graph=True)

    high.register_hook(look_aside)
    late.watch(high)
    high.sum().backward()
    assert early.arrived
    assert late.arrived
    assert not aside.arrived
