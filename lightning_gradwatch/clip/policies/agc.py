"""Clipping of each unit by the size of its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradwatch import arguments
from lightning_gradwatch.clip.names import matches_any
from lightning_gradwatch.clip.norms import whole
from lightning_gradwatch.clip.policy import ArgumentsMixin, StatelessMixin
from lightning_gradwatch.clip.tensor_policy import dense, multiply_, share_of


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
        flags: list[Tensor] = []
        for gradient, parameter, name in zip(gradients, parameters, names, strict=True):
            if matches_any(name, self.exclude):
                continue
            if self.as_published:
                flags.append(self._published_(gradient, parameter))
            else:
                flags.append(self._clip_(gradient, parameter, norm.isfinite()))
        return share_of(flags)

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


def _unit_norms(tensor: Tensor, *, widen: bool = True) -> Tensor:
    """One norm a unit, kept broadcastable."""
    dim = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    dtype = torch.promote_types(tensor.dtype, torch.float32) if widen else None
    return torch.linalg.vector_norm(tensor, dim=dim, keepdim=dim is not None, dtype=dtype)
