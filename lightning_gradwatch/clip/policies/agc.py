"""Clipping of each unit by the size of its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradwatch import arguments
from lightning_gradwatch.clip.names import matches_any
from lightning_gradwatch.clip.norms import global_norm, joined, norm_of, whole
from lightning_gradwatch.clip.policy import ArgumentsMixin, StatelessMixin
from lightning_gradwatch.clip.tensor_policy import (
    Clipped,
    alike,
    chosen,
    dense,
    multiply_,
    multiply_all_,
    plain,
    share_of,
)


class AGC(ArgumentsMixin, StatelessMixin):
    """Bound each unit's gradient by its weights: with c_i = λ·max(‖w_i‖, ε), g_i
    ← g_i·c_i/‖g_i‖ if ‖g_i‖ > c_i.

    Brock, De, Smith and Simonyan (2021), "High-performance large-scale image recognition without
    normalization", eq. 3. A unit is what one output of a layer reads: a row of a matrix, a filter
    of a convolution; a vector is one unit. The paper leaves out the last layer. It does not
    preserve the direction of the whole gradient, only of each unit's.

    ``as_published`` is timm's ``adaptive_clip_grad`` to the bit, which scales by c_i/max(‖g_i‖,
    1e-6) in the gradient's own precision. The hardened form differs where that breaks:

    ===================================  =============================================  ================================
    input                                as published                                   hardened
    ===================================  =============================================  ================================
    an inf or NaN                        its unit becomes 0 and NaN                     all gradients are left as they are
    c_i ≤ ‖g_i‖ < 1e-6                   comes out shorter than c_i                     is scaled to c_i
    half precision                       norms and factor are rounded to it             they are float32
    sparse gradients                     an error                                       rows are units
    ===================================  =============================================  ================================

    Args:
        clip_factor: λ, the share of a unit's weights that a gradient may be.
        eps: ε, so that a unit whose weights are zero can learn.
        exclude: patterns of parameter names that are left alone, such as ``["head.*"]``.
        as_published: follow the published code where it breaks, too.
    """  # noqa: W505  # a table keeps its width

    _arguments = ("clip_factor", "eps", "exclude", "as_published")

    def __init__(
        self,
        clip_factor: float = 0.01,
        eps: float = 1e-3,
        exclude: Sequence[str] = (),
        as_published: bool = False,
    ) -> None:
        self.clip_factor = arguments.positive("clip_factor", clip_factor, "The paper advises 0.01.", owner=self)
        rule = "> 0, or a unit that starts at zero never learns"
        self.eps = arguments.number("eps", eps, lambda f: f > 0, rule, "The paper advises 1e-3.", owner=self)
        listed = not isinstance(exclude, str)
        arguments.check(listed, "exclude", "a list of patterns", exclude, 'Write exclude=["head.*"].', self)
        self.exclude = list(exclude)
        self.as_published = as_published

    @torch.no_grad()
    def clip_(
        self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], names: Sequence[str], norm: Tensor
    ) -> Tensor:
        """Scale in place; the share is that of the units."""
        judged, _ = self._divided(names)
        gradients, parameters = chosen(gradients, judged), chosen(parameters, judged)
        if self.as_published:
            both = zip(gradients, parameters, strict=True)
            return share_of([self._published_(gradient, parameter) for gradient, parameter in both])
        flags: list[Tensor] = []
        for places in alike(gradients):
            own, weights = chosen(gradients, places), chosen(parameters, places)
            if plain(own[0]):
                flags.append(self._scale_(own, weights, _unit_norms_of(own), norm.isfinite())[0])
            else:
                flags.append(self._clip_(own[0], weights[0], norm.isfinite()))
        return share_of(flags)

    @torch.no_grad()
    def measure_and_clip_(
        self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], names: Sequence[str]
    ) -> Clipped:
        """The units' norms give those of the whole gradient, before and after."""
        if self.as_published:
            norm = global_norm(gradients)
            share = self.clip_(gradients, parameters, names, norm)
            return Clipped(norm, global_norm(gradients), share)
        judged, excluded = self._divided(names)
        own, weights = chosen(gradients, judged), chosen(parameters, judged)
        groups = alike(own)
        before = [_unit_norms_of(chosen(own, places)) for places in groups]
        rest = [global_norm(chosen(gradients, excluded))] if excluded else []
        norm = joined([*map(norm_of, before), *rest])
        scaled = [
            self._scale_(chosen(own, places), chosen(weights, places), norms, norm.isfinite())
            for places, norms in zip(groups, before, strict=True)
        ]
        after = [norm_of(norms * factors) for norms, (_, factors) in zip(before, scaled, strict=True)]
        return Clipped(norm, joined([*after, *rest]), share_of([flags for flags, _ in scaled]))

    def _divided(self, names: Sequence[str]) -> tuple[list[int], list[int]]:
        """Places of what is judged, and of what is left alone."""
        left = [place for place, name in enumerate(names) if matches_any(name, self.exclude)]
        return [place for place in range(len(names)) if place not in left], left

    def _scale_(
        self, gradients: list[Tensor], parameters: list[Tensor], norms: Tensor, finite: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of gradients that are alike; returns which units were beyond their bounds, and what
        each was multiplied by.
        """
        weights = _unit_norms_of([parameter.detach() for parameter in parameters])
        bounds = (weights.clamp_(min=self.eps) * self.clip_factor).to(norms.dtype)
        beyond = (norms > bounds) & finite.to(norms.device)
        factors = torch.where(beyond, bounds / norms, 1.0)
        units = [len(gradient) if gradient.ndim > 1 else 1 for gradient in gradients]
        pieces = zip(gradients, factors.split(units), strict=True)
        multiply_all_(gradients, [_beside(piece, gradient) for gradient, piece in pieces])
        return beyond, factors

    def _clip_(self, gradient: Tensor, parameter: Tensor, finite: Tensor) -> Tensor:
        weights = parameter.detach()
        if gradient.is_sparse:
            weights = weights.index_select(0, gradient.coalesce().indices()[0])
        with dense(gradient) as values:
            norms = _unit_norms(values)
            bounds = (_unit_norms(weights).clamp(min=self.eps) * self.clip_factor).to(norms.dtype)
            beyond = (norms > bounds) & finite.to(norms.device)
            multiply_(values, torch.where(beyond, bounds / norms, 1.0))
        return whole(beyond)

    def _published_(self, gradient: Tensor, parameter: Tensor) -> Tensor:
        bounds = _unit_norms(parameter.detach(), widen=False).clamp(min=self.eps).mul_(self.clip_factor)
        norms = _unit_norms(gradient, widen=False)
        clipped = gradient * (bounds / norms.clamp(min=1e-6))
        gradient.copy_(torch.where(norms < bounds, gradient, clipped))
        return whole(norms > bounds)


def _unit_norms_of(tensors: Sequence[Tensor]) -> Tensor:
    """Those of all units, as one vector."""
    return torch.cat([_unit_norms(tensor).reshape(-1) for tensor in tensors])


def _unit_norms(tensor: Tensor, *, widen: bool = True) -> Tensor:
    """One norm a unit, kept broadcastable."""
    dim = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    dtype = torch.promote_types(tensor.dtype, torch.float32) if widen else None
    return torch.linalg.vector_norm(tensor, dim=dim, keepdim=dim is not None, dtype=dtype)


def _beside(factors: Tensor, gradient: Tensor) -> Tensor:
    """One factor a unit, in the shape that broadcasts over the gradient."""
    return factors.reshape(-1, *[1] * (gradient.ndim - 1)) if gradient.ndim > 1 else factors.reshape(())
