"""Operations that a sweep launches, as a function of time: counted, not timed, so that a machine without a GPU can say it.

    python -m benchmarks.cost.launches

A dispatch mode sees every operation. Counted are those that work on a tensor in the call's own number format, which on a GPU lies
there; views, allocations and the bookkeeping that stays on the CPU in any case are not. PyTorch's fused operator counts as one, forward and
backward, as cuDNN takes it: on a CPU it is made up of one timestep after another.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from lightning_gradwatch.recurrent import Capture, RecurrentCall, sweep
from lightning_gradwatch.recurrent.adjoint import Adjoint
from lightning_gradwatch.recurrent.measure import anchors

KINDS: dict[str, type[nn.RNNBase]] = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}
FREE = {
    "view", "_unsafe_view", "_reshape_alias", "slice", "select", "transpose", "t", "unsqueeze", "squeeze", "expand", "detach",
    "alias", "unbind", "split", "split_with_sizes", "permute", "as_strided", "empty", "empty_like", "new_empty", "empty_strided",
    "new_empty_strided", "is_same_size", "lift_fresh", "_local_scalar_dense",
}  # fmt: skip
"""Operations that launch nothing; reading a number is a wait, and counted by what made it."""


class Launches(TorchDispatchMode):
    """Counts operations on tensors of one number format."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.count, self._dtype = 0, dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in FREE:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, torch.Tensor)]
            self.count += any(tensor.dtype == self._dtype for tensor in tensors)
        return made


@contextmanager
def counting(dtype: torch.dtype) -> Generator[Launches]:
    """Count what is launched within; the fused operator as one."""
    launches = Launches(dtype)
    operate, differentiate, in_slices = Adjoint.operate, Adjoint.differentiate, anchors.in_slices

    def once(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            launches.count += 1
            with _disable_current_modes():
                return function(*args, **options)

        return call

    Adjoint.operate, Adjoint.differentiate = once(operate), staticmethod(once(differentiate))  # type: ignore[method-assign]
    anchors.in_slices = once(in_slices)  # a norm that a CPU takes in slices, for its cache's sake
    try:
        with launches:
            yield launches
    finally:
        anchors.in_slices = in_slices
        Adjoint.operate, Adjoint.differentiate = operate, staticmethod(differentiate)  # type: ignore[method-assign]


@contextmanager
def called(module: nn.RNNBase, x: torch.Tensor, state: Any = None) -> Generator[RecurrentCall]:
    """One call of a fused module under a loss on all its outputs, while its gradients are there."""
    capture = Capture({"rnn": module})
    capture.attach()
    capture.begin()
    module(x, state)[0].square().mean().backward()
    (call,) = capture.read_calls()
    try:
        yield call
    finally:
        capture.detach()


def launches_of(kind: str, timesteps: int, *, layers: int = 1, hidden: int = 8, **options: Any) -> int:
    """Those of one sweep."""
    with called(KINDS[kind](4, hidden, layers), torch.randn(timesteps, 8, 4)) as call:
        with counting(call.output.dtype) as launches:
            swept = sweep(call, **options)
        assert swept.by_timestep is None
    return launches.count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[100, 256, 1_000, 10_000])
    options = parser.parse_args()
    print(
        f"{'':>6} {'timesteps':>9} {'timestep by timestep':>21} {'at once':>8} {'at once, in one chunk':>22} {'a layer more':>13}"
    )
    for kind in KINDS:
        for timesteps in options.timesteps:
            by_timestep, at_once = (launches_of(kind, timesteps, at_once=way) for way in (False, True))
            whole = launches_of(kind, timesteps, at_once=True, chunk=timesteps)
            more = launches_of(kind, timesteps, layers=2, at_once=True, chunk=timesteps) - whole
            print(f"{kind:>6} {timesteps:9,} {by_timestep:21,} {at_once:8,} {whole:22,} {more:13,}")


if __name__ == "__main__":
    main()
