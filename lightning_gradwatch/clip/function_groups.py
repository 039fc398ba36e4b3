"""Which parameters have the same function: those of modules with the same name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gradwatch.clip.names import matches_any

KNOWN = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"),
    *("c_attn", "c_proj", "w1", "w2", "w3", "lm_head", "embed_tokens"),
)
"""Modules that count wherever they lie in a name, as in ``q_proj.lora_A.weight``; AGGC's
authors' list.
"""


def group_of(name: str, patterns: Mapping[str, Sequence[str]], *, outwards: bool) -> str | None:
    """The group of a parameter; None where it has none.

    Args:
        patterns: of names, by group; the first that matches counts.
        outwards: a module that is called by a number, or ``layers``, takes the name of what holds
            it, and what no module holds is the group ``""``. Else these have none.
    """
    for group, own in patterns.items():
        if matches_any(name, own):
            return group
    known = [module for module in KNOWN if f".{module}." in name]
    if known:
        return known[0]
    modules = name.split(".")[:-1]
    named = [module for module in modules if not module.isdigit() and module != "layers"]
    if outwards:
        return named[-1] if named else ""
    return named[-1] if named and named[-1] == modules[-1] else None


class Layout(NamedTuple):
    """Which parameter belongs to which group.

    Args:
        members: of each group (row) and parameter (column), whether it belongs.
        places: of each parameter its group's row; one beyond the last where it has none.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    members: Tensor
    places: Tensor


def lay_out(
    names: Sequence[str], patterns: Mapping[str, Sequence[str]], device: torch.device, *, outwards: bool
) -> Layout:
    """The groups of parameters with these names."""
    own = [group_of(name, patterns, outwards=outwards) for name in names]
    groups = tuple(dict.fromkeys(group for group in own if group is not None))
    rows = {group: row for row, group in enumerate(groups)}
    places = torch.tensor([len(groups) if group is None else rows[group] for group in own])
    members = places == torch.arange(len(groups))[:, None]
    return Layout(tuple(names), groups, members.to(device, non_blocking=True), places.to(device, non_blocking=True))
