"""Read a recurrent call from what a forward hook is shown."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.shape import Shape


def in_order(inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a fused module's forward by position, whichever were given by name."""
    return (*inputs, *(kwargs[key] for key in ("input", "hx")[len(inputs) :] if key in kwargs))


def read_call(
    name: str,
    index: int,
    module: nn.RNNBase,
    inputs: tuple[object, ...],
    outputs: object,
    rng_state: Tensor | None,
    doubt: str | None = None,
) -> RecurrentCall:
    """A call from what a forward hook is shown.

    Args:
        inputs: :func:`in_order`.

    Raises:
        TypeError: the module's forward takes or returns something other than PyTorch's own does.
    """
    source, hx = inputs[0], inputs[1] if len(inputs) > 1 else None
    if not isinstance(outputs, tuple) or len(outputs) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise TypeError(f"its forward returned {type(outputs).__name__}, not (output, state)")
    result, state = outputs  # pyright: ignore[reportUnknownVariableType]
    h_n, c_n = state if isinstance(state, tuple) else (state, None)  # pyright: ignore[reportUnknownVariableType]
    h0, c0 = hx if isinstance(hx, tuple | list) else (hx, None)  # pyright: ignore[reportUnknownVariableType]
    packed = source if isinstance(source, PackedSequence) else None
    given = packed.data if packed is not None else source
    made = result.data if isinstance(result, PackedSequence) else result  # pyright: ignore[reportUnknownVariableType]
    if not (isinstance(given, Tensor) and isinstance(made, Tensor) and isinstance(h_n, Tensor)):
        raise TypeError("its forward takes or returns something other than tensors and packed sequences")
    if isinstance(result, PackedSequence) != (packed is not None):
        raise TypeError("its forward packs the sequences itself")
    return RecurrentCall(
        module=name,
        index=index,
        shape=Shape.of(module),
        weights=tuple(module._flat_weights),  # pyright: ignore[reportPrivateUsage, reportArgumentType]
        input=given,
        h0=h0 if isinstance(h0, Tensor) else None,
        c0=c0 if isinstance(c0, Tensor) else None,
        output=made,
        h_n=h_n,
        c_n=c_n if isinstance(c_n, Tensor) else None,
        batch_sizes=packed.batch_sizes if packed is not None else None,
        sorted_indices=packed.sorted_indices if packed is not None else None,
        unsorted_indices=packed.unsorted_indices if packed is not None else None,
        rng_state=rng_state,
        doubt=doubt,
        limit=getattr(made.grad_fn, "limit", None),
    )
