"""Follow a subclass of a fused module into its own forward, to PyTorch's operator behind it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.capture.direct_calls import own_forward
from lightning_gradwatch.recurrent.shape import Shape

_OPERATORS = {getattr(torch._VF, name): name for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")}  # type: ignore[attr-defined]

_RNN_FILE = nn.RNNBase.__init__.__code__.co_filename


def has_own_forward(module: nn.RNNBase) -> bool:
    """Whether a subclass changed ``forward``, so that what goes in and comes out need
    not be what PyTorch's own takes.
    """
    if own_forward(module) is not None:
        return True
    code = getattr(
        type(module).forward, "__code__", None
    )  # by its file, since a class's own may have been replaced too
    return code is None or code.co_filename != _RNN_FILE


class InnerCalls(TorchFunctionMode):
    """Sees the calls of PyTorch's fused operators while it is entered, and
    passes everything on as it is.

    Args:
        keep: told how to read each call, given its module's name and its index, before the
            forward can change what was made.

    Attributes:
        seen: whether there was one.
    """

    def __init__(self, module: nn.RNNBase, keep: Callable[[Callable[[str, int], RecurrentCall]], None]) -> None:
        super().__init__()
        self._shape, self._keep = Shape.of(module), keep
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        ours = func in _OPERATORS
        rng_state = torch.get_rng_state() if ours and self._shape.dropout and args[0].device.type == "cpu" else None
        result = func(*args, **(kwargs or {}))
        if ours:
            self.seen = True
            self._keep(partial(self._read, args, result, rng_state))
        return result

    def _read(
        self, args: tuple[Any, ...], result: tuple[Tensor, ...], rng_state: Tensor | None, name: str, index: int
    ) -> RecurrentCall:
        """The operators take (input, hx, weights, …, batch_first), or packed
        (data, batch_sizes, hx, weights, …).
        """
        packed = isinstance(args[1], Tensor) and args[1].dtype == torch.int64 and args[1].dim() == 1
        batch_sizes = args[1] if packed else None
        hx, weights = (args[2], args[3]) if packed else (args[1], args[2])
        h0, c0 = (hx[0], hx[1]) if isinstance(hx, tuple | list) else (hx, None)  # pyright: ignore[reportUnknownVariableType]
        shape = self._shape
        if not packed and bool(args[-1]) != shape.batch_first:
            raise TypeError("its forward calls PyTorch's recurrence with another layout than it was made with")
        return RecurrentCall(
            module=name,
            index=index,
            shape=shape,
            weights=tuple(weights),
            input=args[0],
            h0=h0,
            c0=c0,
            output=result[0],
            h_n=result[1],
            c_n=result[2] if len(result) > 2 else None,
            batch_sizes=batch_sizes,
            rng_state=rng_state,
        )
