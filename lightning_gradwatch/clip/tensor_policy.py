"""What a policy is that judges each tensor for itself, on the device, where
one norm for all would not do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_gradwatch.clip.norms import global_norm

_T = TypeVar("_T")

CACHED = 2**17
"""Entries that a cache of the CPU holds: what passes over so many at a time finds them there."""


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


class Clipped(NamedTuple):
    """Scalars on the device: the norm before and after, and the share that was clipped."""

    norm: Tensor
    clipped_norm: Tensor
    share: Tensor


@runtime_checkable
class MeasuringPolicy(TensorPolicy, Protocol):
    """A :class:`TensorPolicy` that needs norms of its own, and makes of them those of the whole
    gradient, too: a pass over all gradients costs as much as the rule itself.
    """

    def measure_and_clip_(
        self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], names: Sequence[str]
    ) -> Clipped:
        """What :meth:`clip_` does, for gradients that are all :func:`plain`."""
        ...


def measure_and_clip_(
    policy: TensorPolicy, gradients: Sequence[Tensor], parameters: Sequence[Tensor], names: Sequence[str]
) -> Clipped:
    """Clip in place, with the norm before and after, in as few passes as the policy and the kind of
    gradients allow.
    """
    if isinstance(policy, MeasuringPolicy) and all(map(plain, gradients)):
        return policy.measure_and_clip_(gradients, parameters, names)
    norm = global_norm(gradients)
    share = policy.clip_(gradients, parameters, names, norm)
    return Clipped(norm, global_norm(gradients), share)


def plain(tensor: Tensor) -> bool:
    """Whether operations on lists of tensors take it: strided, not sharded, no half precision, and
    not empty.
    """
    strided = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return strided and tensor.element_size() >= 4 and tensor.numel() > 0


def alike(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Places of the plain tensors that share device and precision, group by group; each other one
    is a group by itself.
    """
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for place, tensor in enumerate(tensors):
        groups[(tensor.device, tensor.dtype) if plain(tensor) else place].append(place)
    return list(groups.values())


def chosen(items: Sequence[_T], places: Sequence[int]) -> list[_T]:
    """Those at the places."""
    return [items[place] for place in places]


def by_cache(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In lists that the CPU's cache holds, a larger tensor by itself; on other devices all in
    one.
    """
    if tensors and tensors[0].device.type != "cpu":
        yield list(tensors)
        return
    batch: list[Tensor] = []
    entries = 0
    for tensor in tensors:
        if batch and entries + tensor.numel() > CACHED:
            yield batch
            batch, entries = [], 0
        batch.append(tensor)
        entries += tensor.numel()
    if batch:
        yield batch


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


def multiply_all_(gradients: Sequence[Tensor], coefficients: Sequence[Tensor]) -> None:
    """Multiply each in place by its own tensor, which broadcasts; those that are alike at once."""
    for places in alike(gradients):
        own, factors = chosen(gradients, places), chosen(coefficients, places)
        factors = [factor.to(own[0].device) for factor in factors]
        if plain(own[0]):
            torch._foreach_mul_(own, factors)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            continue
        with dense(own[0]) as values:
            multiply_(values, factors[0])


def share_of(flags: Sequence[Tensor]) -> Tensor:
    """The share of true entries over all of them, on the first one's device; 0 of none."""
    if not flags:
        return torch.zeros(())
    device = flags[0].device
    return torch.stack([flag.sum().to(device) for flag in flags]).sum() / sum(flag.numel() for flag in flags)
