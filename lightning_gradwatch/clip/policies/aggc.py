"""Clipping of groups of parameters, each into an interval around its own earlier norms."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gradwatch import arguments
from lightning_gradwatch.clip.by_name import ByName
from lightning_gradwatch.clip.function_groups import Layout, lay_out
from lightning_gradwatch.clip.scaling_policy import ScalingPolicy
from lightning_gradwatch.clip.tensor_policy import share_of

_EPS = 1e-12  # of the published form
_EARLY = 10  # norms of a group of which the hardened mean begins as the median


class AGGC(ScalingPolicy):
    """Keep each group's gradient between two multiples of a running mean of its own norms.

    Li, Wu and Chang (2026), "AGGC: Adaptive group gradient clipping for stabilizing large language
    model training", arXiv 2601.11864. The rule is taken from the authors' code
    (github.com/ZhiyuanLi218/AGGC, ``GRPO/verl/utils/grad_clip.py``). A group holds the parameters
    of one function: those whose module has the same name, in whatever layer it lies. With n the norm
    of a group's gradient and S its mean, L = max(``min_norm``, low·S) and U = high·S: if n > U, it
    is multiplied by U/n, or by ``max_down`` if that is more; if n < L and ``raise_small``, by L/n,
    or by ``max_up`` if that is less. Then S ← βS + (1−β)n′ with the norm n′ that this leaves. Over
    training, low and high go to ``low_late`` and ``high_late``, linearly from a share ``switch`` of
    ``total_steps`` on, over a share ``transition``.

    It preserves the direction of each group's gradient, not of the whole. With ``raise_small`` it is
    the only policy that makes a gradient longer.

    ``as_published`` is this rule, where S begins at 0. (The authors add the squares of each
    micro-batch's gradient; here the norm is that of the gradient which the optimizer gets. Without
    accumulation these are the same.) The hardened form differs where it breaks:

    ==================================  ==========================================  ==================================
    input                               as published                                hardened
    ==================================  ==========================================  ==================================
    the first steps                     S is (1−β)n, and with high ≤ 1 stays there  S is the median of the first ten
    a first gradient of 1e-20           S takes long to grow back                   norms of the group
    a module that is called 0, 1, …     its parameters are left alone               they belong to what holds it
    zero gradients for a while          S → 0; what follows is clipped to nothing   they enter nothing
    one NaN or inf                      S is NaN or inf for ever                    the step leaves all as it is
    n = 1e-20 with ``raise_small``      multiplied by 1e20, where ``max_up`` is     ``max_up`` is 1.1 unless you say
                                        None                                        otherwise
    norms of 1e-9                       constants of 1e-8 and 1e-12 swamp them      no constant: scale-equivariant
    ==================================  ==========================================  ==================================

    Args:
        groups: patterns of parameter names by the name of a group; what no pattern names is grouped
            by its module's name. None groups all by that.
        low, high: multiples of the mean. The authors' scripts use 0.95 to 0.98 and 0.6 to 0.7, their
            code's defaults are 1 and 1; the default here lets a norm double.
        beta: β, the mean's memory.
        raise_small: multiply what lies below the interval, too.
        max_up, max_down: the most and the least that a gradient is multiplied by in a step; None for
            no limit. The authors' scripts use 1.1 and 0.9.
        min_norm: the least lower bound, in the norm's unit.
        low_late, high_late: the multiples at the end of training; None for the same.
        total_steps: of the training, for these; None for no schedule.
        switch, transition: when the change begins and how long it takes, as shares of
            ``total_steps``.
        as_published: follow the published code where it breaks, too.
    """  # noqa: W505  # a table keeps its width

    _arguments = (
        "groups",
        "low",
        "high",
        "beta",
        "raise_small",
        "max_up",
        "max_down",
        "min_norm",
        "low_late",
        "high_late",
        "total_steps",
        "switch",
        "transition",
        "as_published",
    )

    def __init__(
        self,
        groups: dict[str, list[str]] | None = None,
        low: float = 0.5,
        high: float = 2.0,
        beta: float = 0.98,
        raise_small: bool = False,
        max_up: float | None = 1.1,
        max_down: float | None = None,
        min_norm: float = 0.0,
        low_late: float | None = None,
        high_late: float | None = None,
        total_steps: int | None = None,
        switch: float = 0.5,
        transition: float = 0.2,
        as_published: bool = False,
    ) -> None:
        number, advice = functools.partial(arguments.number, owner=self), "The code's default is"
        positive = functools.partial(arguments.positive, owner=self)
        self.groups = _checked(groups, self)
        self.low = number("low", low, lambda f: 0 <= f < math.inf, "≥ 0 and finite", "Leave it at 0.5.")
        self.high = positive("high", high, "Leave it at 2.")
        self.beta = number("beta", beta, lambda f: 0 <= f < 1, "in [0, 1)", f"{advice} 0.98.")
        self.raise_small = raise_small
        rule = "≥ 1 and finite, or None"
        remedy = "Leave it at 1.1."
        self.max_up = None if max_up is None else number("max_up", max_up, lambda f: 1 <= f < math.inf, rule, remedy)
        rule, remedy = "in (0, 1], or None", "Leave it out for no limit."
        self.max_down = None if max_down is None else number("max_down", max_down, lambda f: 0 < f <= 1, rule, remedy)
        self.min_norm = number("min_norm", min_norm, lambda f: 0 <= f < math.inf, "≥ 0 and finite", "Leave it at 0.")
        self.low_late = None if low_late is None else positive("low_late", low_late, "Leave it out for the same.")
        self.high_late = None if high_late is None else positive("high_late", high_late, "Leave it out for the same.")
        self.total_steps = total_steps
        if total_steps is not None:
            self.total_steps = arguments.whole("total_steps", total_steps, "Leave it out for no schedule.", owner=self)
        share = functools.partial(number, holds=lambda f: 0 <= f <= 1, rule="in [0, 1]")
        self.switch = share("switch", switch, remedy=f"{advice} 0.5.")
        self.transition = share("transition", transition, remedy=f"{advice} 0.2.")
        self.as_published = as_published
        for name, (least, most) in {"low": (low, high), "low_late": self._late}.items():
            ordered = as_published or least <= most
            arguments.check(ordered, name, f"≤ the multiple above it, {most:g}", least, "Lower it.", self)
        self._means = ByName(torch.tensor(0.0))  # S
        self._early = ByName(torch.zeros(0 if as_published else _EARLY))
        self._steps = 0
        self._layout: Layout | None = None

    def state_dict(self) -> dict[str, Any]:
        """S by group, the norms that it began with (0: none), and the number of steps."""
        return {"means": self._means.state_dict(known=True), "early": self._early.state_dict(), "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self._means.load_state_dict(state_dict["means"])
        self._early.load_state_dict(state_dict["early"])
        self._steps = state_dict["steps"]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layout": None}  # it is made anew from the names

    @property
    def _late(self) -> tuple[float, float]:
        late = self.low_late, self.high_late
        return self.low if late[0] is None else late[0], self.high if late[1] is None else late[1]

    def _multiples(self) -> tuple[float, float]:
        """Low and high at this step."""
        if self.total_steps is None:
            return self.low, self.high
        passed = min(1.0, self._steps / self.total_steps) - self.switch
        part = min(1.0, max(0.0, passed / max(self.transition, 1e-6)))
        low, high = self._late
        return (1 - part) * self.low + part * low, (1 - part) * self.high + part * high

    def _judge(self, names: Sequence[str], norms: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        layout = self._laid_out(names, norms.device)
        scales = self._of_groups(layout, norms, norm.isfinite()) if layout.groups else None
        self._steps += 1
        if scales is None:
            return torch.ones_like(norms), share_of([])
        coefficients = torch.cat([scales, scales.new_ones(1)])[layout.places].to(norms)
        return coefficients, share_of([scales < 1])

    def _of_groups(self, layout: Layout, norms: Tensor, finite: Tensor) -> Tensor:
        """What each group is multiplied by; its mean moves."""
        wide = norms if norms.device.type == "mps" else norms.double()
        squares = torch.where(layout.members, wide.square(), 0.0).sum(1)
        n = (squares + 1e-16).sqrt() if self.as_published else squares.sqrt()
        if self.as_published:
            means = self._means.take(layout.groups, n)
            scales = self._scales(n, means)
            self._means.put(layout.groups, self.beta * means + (1 - self.beta) * n * scales)
            return scales
        return self._of_groups_hardened(layout, n, finite & (n > 0))

    def _of_groups_hardened(self, layout: Layout, n: Tensor, usable: Tensor) -> Tensor:
        known, early = self._means.take(layout.groups, n), self._early.take(layout.groups, n)
        means = torch.where(known > 0, known, n)
        scales = torch.where(usable, self._scales(n, means), 1.0)
        counts = (early > 0).sum(1, keepdim=True)
        now = usable[:, None] & (torch.arange(_EARLY, device=n.device) == counts)
        early = torch.where(now, n[:, None], early)
        self._early.put(layout.groups, early)
        moved = torch.where(
            counts[:, 0] < _EARLY, _lower_median(early), self.beta * means + (1 - self.beta) * n * scales
        )
        self._means.put(layout.groups, torch.where(usable, moved, known))
        return scales

    def _scales(self, n: Tensor, means: Tensor) -> Tensor:
        eps = _EPS if self.as_published else 0.0
        low, high = self._multiples()
        upper, lower = means * high, (means * low).clamp(min=self.min_norm)
        large = (n > upper + eps) & (upper > 0)
        down = (upper / (n + eps)).clamp(min=self.max_down or 0.0)
        scales = torch.where(large, down, 1.0)
        if not self.raise_small:
            return scales
        up = (lower / (n + eps)).clamp(max=self.max_up or math.inf)
        return torch.where((n < lower - eps) & (n > 0) & ~large, up, scales)

    def _laid_out(self, names: Sequence[str], device: torch.device) -> Layout:
        """Made anew where other parameters have a gradient than in the step before."""
        layout = self._layout
        if layout is None or layout.names != tuple(names) or layout.places.device != device:
            self._layout = layout = lay_out(names, self.groups, device, outwards=not self.as_published)
        return layout


def _lower_median(rows: Tensor) -> Tensor:
    """Of each row's entries that are greater than zero; those that are none stand at the end."""
    known = (rows > 0).sum(1, keepdim=True)
    ordered = torch.where(rows > 0, rows, math.inf).sort(dim=1).values
    return ordered.gather(1, ((known - 1) // 2).clamp(min=0))[:, 0]


def _checked(groups: object, owner: object) -> dict[str, list[str]]:
    """Patterns by group.

    Raises:
        ValueError: it is no mapping of names to lists of patterns.
    """
    known = {} if groups is None else groups
    fits = isinstance(known, Mapping) and all(isinstance(patterns, list) for patterns in known.values())  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    remedy = 'Write groups={"recurrent": ["*.weight_hh*"]}.'
    arguments.check(fits, "groups", "a dict of lists of patterns", groups, remedy, owner)
    return dict(known)  # pyright: ignore
