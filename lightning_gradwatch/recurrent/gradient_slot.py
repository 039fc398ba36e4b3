"""Where the gradient of a tensor in the graph is kept as autograd brings it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_gradwatch.recurrent.pause import is_paused
from lightning_gradwatch.recurrent.weakly_held import WeaklyHeld


class GradientSlot:
    """Keeps the gradient that autograd shows it.

    It holds nothing but gradients (its list may be one that autograd itself appends to, also None
    for none): a hook that led back to the call would close the cycle output →
    hook → call → output, which only the garbage collector frees.
    """

    __slots__ = ("_gradients", "_view")

    def __init__(self, gradients: list[Tensor | None] | None = None) -> None:
        self._gradients = [] if gradients is None else gradients
        self._view: _View | None = None

    def __call__(self, gradient: Tensor | None) -> None:
        if gradient is not None and not is_paused():
            self._gradients.append(gradient)

    def watch(self, tensor: Tensor) -> None:
        """Be shown what arrives at a tensor that needs a gradient.

        A hook on the operation that made it runs after all of the tensor's own: what a model's hook
        makes of the gradient (clamps it, say) is what flows on, and what is kept.
        """
        self.watch_at(tensor, tensor.grad_fn, tensor.output_nr)

    def watch_at(self, tensor: Tensor, node: Any, number: int) -> None:
        """The same at the operation that made it, in case it stands for another one by now."""
        if node is None:
            tensor.register_hook(self)
        else:
            node.register_prehook(_OfResult(self, number))

    def watch_result(self, tensor: Tensor) -> None:
        """The same of what an operator returned and nobody has used yet.

        It may be another view of all that the operator made (transposed, without a batch). Changing
        such a view in place takes it out of the graph and leaves what it is a view of, so that this
        is what is watched.
        """
        base = tensor._base
        if base is None or base.grad_fn is None or base.numel() != tensor.numel():
            self.watch(tensor)
            return
        self._view = _View.of(tensor, base)
        self.watch(base)

    @property
    def arrived(self) -> bool:
        """Whether a gradient was shown."""
        return any(gradient is not None for gradient in self._gradients)

    def value(self) -> Tensor | None:
        """The gradient, summed where several backward passes sent one; None if none arrived."""
        gradients = [gradient for gradient in self._gradients if gradient is not None]
        if not gradients:
            return None
        total = gradients[0]
        for gradient in gradients[1:]:
            total = total + gradient
        return total if self._view is None else self._view.of_gradient(total)

    def clear(self) -> None:
        """Forget what was kept."""
        self._gradients.clear()


class _OfResult:
    """Shows a slot the gradient of one of the results of an operation."""

    __slots__ = ("_number", "_slot")

    def __init__(self, slot: GradientSlot, number: int) -> None:
        self._slot, self._number = slot, number

    def __call__(self, gradients: Sequence[Tensor | None]) -> None:
        self._slot(gradients[self._number])


@dataclass(frozen=True, slots=True)
class _View(WeaklyHeld):
    """How a tensor lies in another one of as many elements."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    base_size: torch.Size
    base_stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, base: Tensor) -> _View:
        offset = int(tensor.storage_offset() - base.storage_offset())
        return cls(tensor.size(), tensor.stride(), offset, base.size(), base.stride())

    def of_gradient(self, gradient: Tensor) -> Tensor:
        """The view's part of the other one's gradient, which may lie in memory in another way."""
        order = self._order()
        if order is not None:
            return gradient.permute(order).reshape(self.size)  # no copy: only axes of 1 come and go
        if gradient.stride() != self.base_stride:
            laid_out = gradient.new_empty_strided(self.base_size, self.base_stride)
            gradient = laid_out.copy_(gradient)
        return gradient.as_strided(self.size, self.stride, int(gradient.storage_offset()) + self.offset)

    def _order(self) -> list[int] | None:
        """The other one's axes in the view's order, those of size 1 last; None if it lacks some."""
        wide = [axis for axis, size in enumerate(self.base_size) if size > 1]
        place = {(self.base_size[axis], self.base_stride[axis]): axis for axis in wide}
        order = [place.get(axis, -1) for axis in zip(self.size, self.stride, strict=True) if axis[0] > 1]
        return [*order, *(set(range(len(self.base_size))) - set(wide))] if sorted(order) == wide else None
