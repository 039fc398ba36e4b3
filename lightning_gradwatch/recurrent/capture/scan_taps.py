"""``tap_scan``: mark the states of a diagonal recurrence that a scan computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lightning_gradwatch.recurrent.capture.compiled import must_not_break
from lightning_gradwatch.recurrent.scan import Scan
from lightning_gradwatch.recurrent.scan_shape import ScanShape, broadcasts

T = TypeVar("T", bound=Tensor)

_listeners: list[Callable[[Scan], None]] = []
_WIDE = (torch.float64, torch.complex128)


def tap_scan(
    h: T,
    decay: Tensor | complex,
    *,
    inputs: Tensor | None = None,
    readout: Tensor | None = None,
    name: str = "ssm",
    dim: int = 1,
    reverse: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
) -> T:
    """Mark ``h`` as all states of the diagonal recurrence h_t = a_t ⊙ h_{t−1} + b_t, and return it
    unchanged.

    Call it once a forward pass, on what the rest of the model uses. A GradWatch that is training
    measures how the gradient flows back through the states; without one, nothing happens.

    Args:
        h: the states, time along ``dim``. The batch is the first of the other dimensions, all
            that remain are channels; ``(time, channels)`` with ``dim=0`` is one sequence.
        decay: a, which broadcasts against the states; complex where they are.
        inputs: b, as large as ``h``. Then it is also checked whether ``h`` is what the recurrence
            makes of it.
        readout: C, where a kernel hides the states and ``h`` is y_t = C_t h_t: a matrix
            ``(…, out, state)`` with ``decay`` ``(…, state)``; or with states for each channel of
            ``h``, y = Σₙ Cₙ hₙ, ``(…, channel, state)`` or ``(batch, time, state)`` with ``decay``
            ``(…, channel, state)``. Of complex states the real part may be what is read out.
        name: under which the recurrence is reported. Layers of a stack need one each.
        dim: which dimension is time.
        reverse: h_t = a_t ⊙ h_{t+1} + b_t instead.
        lengths: of the sequences ``(batch,)``, where they are padded at the end.

    Raises:
        TypeError: ``h`` or another one is no tensor.
        ValueError: their shapes do not fit.
    """
    for argument, value in (("h", h), ("inputs", inputs), ("readout", readout)):
        if not isinstance(value, Tensor) and (value is not None or argument == "h"):
            raise TypeError(f"`{argument}` must be a tensor; found {type(value).__name__}.")
    a = decay if isinstance(decay, Tensor) else torch.tensor(decay, dtype=_WIDE[isinstance(decay, complex)])
    shape = ScanShape.of(h, a, readout, dim)
    _check(h, a, inputs, readout, shape)
    if lengths is not None and len(lengths) != shape.sequences:
        raise ValueError(f"`lengths` must hold one number a sequence, {shape.sequences}; found {len(lengths)}.")
    if _listeners and not must_not_break():
        scan = Scan(name, 0, shape, h, a, inputs, readout, reverse, lengths)
        for listener in tuple(_listeners):  # one that finds its fit over ends its listening
            listener(scan)
    return h


def listen_to_scans(listener: Callable[[Scan], None]) -> Callable[[], None]:
    """Have ``listener`` told of every scan; call what is returned to end it."""
    _listeners.append(listener)

    def end() -> None:
        if listener in _listeners:
            _listeners.remove(listener)

    return end


def _check(h: Tensor, decay: Tensor, inputs: Tensor | None, readout: Tensor | None, shape: ScanShape) -> None:
    if decay.is_complex() and readout is None and not h.is_complex():
        raise ValueError(
            "`h` must be complex where `decay` is; found real states. Mark the states before their real part is taken, "
            "or name what reads it out: readout=."
        )
    if readout is not None and readout.is_complex() and not decay.is_complex():
        raise ValueError(
            "`decay` must be complex where `readout` is, as the states are; found a real one. Use decay + 0j."
        )
    if inputs is None:
        return
    if readout is not None:
        raise ValueError("`inputs` must be left out beside `readout`: without the states there is nothing to check.")
    if not broadcasts(inputs.shape, shape.states):
        raise ValueError(f"`inputs` must be as large as `h`, {shape.states}; found {tuple(inputs.shape)}.")
