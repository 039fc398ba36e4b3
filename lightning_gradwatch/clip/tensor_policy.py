"""What a policy is that judges each tensor for itself, on the device, where
one norm for all would not do.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class TensorPolicy(Protocol):
    """A rule that clips entries, units or tensors. One instance serves one
    optimizer, or one pattern of it.

    A policy of your own needs these three methods and nothing else::

        class Halve:
            def clip_(self, gradients, parameters, names, norm) -> Tensor:
                coefficient = torch.where(norm.isfinite() & (norm > 1.0), 0.5, 1.0)
                for gradient in gradients:
                    gradient.mul_(coefficient)
                return (coefficient < 1.0).float()

            def state_dict(self) -> dict[str, Any]:
                return {}

            def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...

    ``AdaptiveClip`` learns whether the norm is finite only after the call, since asking first would
    be a second host sync. So where ``norm`` is not, a policy leaves its state and the gradients as
    they are. If only the squares had overflowed, it is called again for that step with copies in
    float64.

    An attribute ``exclude``, if there is one, holds patterns of parameter names; ``AdaptiveClip``
    sees to it that each matches something.
    """

    def clip_(
        self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], names: Sequence[str], norm: Tensor
    ) -> Tensor:
        """Clip in place, without reading anything from the device.

        Args:
            gradients: what is to be clipped; a sparse one may hold an entry twice.
            parameters: those that they belong to, as many.
            names: theirs, qualified; a parameter's is the same at every step.
            norm: the L2 norm over all the gradients, a scalar on the device.

        Returns:
            The share, 0 to 1, of what the policy judges (entries, units, tensors) that was
            clipped: a scalar on the device.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state, of tensors, int, float, str, bool, None, list and dict only
        (``torch.load(weights_only=True)``).
        """
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state that :meth:`state_dict` gave."""
        ...


@contextmanager
def dense(gradient: Tensor) -> Generator[Tensor]:
    """What may be changed in place: the gradient, or a sparse one's rows, duplicates
    summed as its optimizer will do.
    """
    if not gradient.is_sparse:
        yield gradient
        return
    summed = gradient.coalesce()
    yield summed.values()
    gradient.copy_(summed)


def multiply_(gradient: Tensor, coefficient: Tensor) -> None:
    """Multiply in place by a tensor that broadcasts. Half precision is
    rounded once, after the product.
    """
    if gradient.element_size() < 4:
        gradient.copy_(gradient.to(coefficient.dtype) * coefficient)
    else:
        gradient.mul_(coefficient)


def share_of(flags: Sequence[Tensor]) -> Tensor:
    """The share of true entries over all of them, on the first one's device; 0 of none."""
    if not flags:
        return torch.zeros(())
    device = flags[0].device
    return torch.stack([flag.sum().to(device) for flag in flags]).sum() / sum(flag.numel() for flag in flags)
