"""Clipping of each entry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradwatch import arguments
from lightning_gradwatch.clip.norms import whole
from lightning_gradwatch.clip.policy import ArgumentsMixin, StatelessMixin
from lightning_gradwatch.clip.tensor_policy import dense, share_of


class Value(ArgumentsMixin, StatelessMixin):
    """Clamp each entry to [−c, c].

    Mikolov (2012), "Statistical language models based on neural networks", §3.2.2. It does not
    preserve the gradient's direction. Its share of what was clipped counts tensors.

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
        """Clamp in place; the share is that of the tensors with an entry beyond c."""
        bound = torch.full_like(norm, self.max_value)
        if not self.as_published:
            bound = torch.where(norm.isfinite(), bound, math.inf)
        flags: list[Tensor] = []
        for gradient in gradients:
            with dense(gradient) as values:
                if values.numel():
                    limit = bound.to(values.device, values.dtype)
                    # Two passes, which on the CPU take a third of the time
                    # of abs().amax() with its copy.
                    flags.append(torch.maximum(whole(values.amax()), -whole(values.amin())) > limit)
                    values.clamp_(-limit, limit)
        return share_of(flags)
