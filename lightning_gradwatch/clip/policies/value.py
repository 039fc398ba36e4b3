"""Clipping of each entry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradwatch import arguments
from lightning_gradwatch.clip.norms import joined, norm_of, tensor_norms
from lightning_gradwatch.clip.policy import ArgumentsMixin, StatelessMixin
from lightning_gradwatch.clip.tensor_policy import Clipped, alike, by_cache, chosen, dense, plain, share_of


class Value(ArgumentsMixin, StatelessMixin):
    """Clamp each entry to [−c, c].

    Mikolov (2012), "Statistical language models based on neural networks", §3.2.2. It does not
    preserve the gradient's direction. Its share of what was clipped counts the tensors that came out
    shorter.

    ``as_published`` is ``torch.nn.utils.clip_grad_value_``. The hardened form
    differs where that hides a fault:

    ==================  =======================================  ===============================================
    input               as published                             hardened
    ==================  =======================================  ===============================================
    an inf              becomes c, and nobody learns of it       the gradients are left as they are
    ==================  =======================================  ===============================================

    Args:
        max_value: c, in the gradient's unit.
        as_published: clamp an inf, too.
    """  # noqa: W505  # a table keeps its width

    _arguments = ("max_value", "as_published")

    def __init__(self, max_value: float = 1.0, as_published: bool = False) -> None:
        remedy = "Use the largest entry of an ordinary step."
        self.max_value = arguments.positive("max_value", max_value, remedy, owner=self)
        self.as_published = as_published

    @torch.no_grad()
    def clip_(
        self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], names: Sequence[str], norm: Tensor
    ) -> Tensor:
        """Clamp in place; the share is that of the tensors that came out shorter."""
        some = [gradient for gradient in gradients if gradient.numel()]
        return self._clip_(some, tensor_norms(some), norm).share if some else share_of([])

    @torch.no_grad()
    def measure_and_clip_(
        self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], names: Sequence[str]
    ) -> Clipped:
        """The tensors' norms give those of the whole gradient, before and after."""
        norms = tensor_norms(gradients)
        return self._clip_(gradients, norms, norm_of(norms))

    def _clip_(self, gradients: Sequence[Tensor], before: Tensor, norm: Tensor) -> Clipped:
        bound = torch.full_like(norm, self.max_value)
        if not self.as_published:
            bound = torch.where(norm.isfinite(), bound, math.inf)
        afters: list[Tensor] = []
        flags: list[Tensor] = []
        for places in alike(gradients):
            own = chosen(gradients, places)
            limit = bound.to(own[0].device, own[0].dtype)
            after = torch.cat([_clamp_(batch, limit) for batch in by_cache(own)])
            flags.append(after < torch.stack(chosen(before.unbind(), places)).to(after))
            afters.append(norm_of(after))
        return Clipped(norm, joined(afters), share_of(flags))


def _clamp_(gradients: list[Tensor], limit: Tensor) -> Tensor:
    """In place; each one's norm afterwards."""
    if not plain(gradients[0]):
        with dense(gradients[0]) as values:
            values.clamp_(-limit, limit)
    elif limit.device.type == "cpu":
        bound = float(limit.numpy())  # it is in the host's memory: nothing is waited for
        for gradient in gradients:
            gradient.clamp_(-bound, bound)  # one pass, where a bound that is a tensor takes five times as long
    else:
        clamp_at_once_(gradients, limit)
    return tensor_norms(gradients)


def clamp_at_once_(gradients: list[Tensor], limit: Tensor) -> None:
    """In place, without a look at the limit."""
    torch._foreach_clamp_max_(gradients, [limit] * len(gradients))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    torch._foreach_clamp_min_(gradients, [-limit] * len(gradients))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
