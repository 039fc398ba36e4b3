"""Which policy governs which parameter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lightning_gradwatch.clip import make_policy
from lightning_gradwatch.clip.names import matches_any, unmatched
from lightning_gradwatch.clip.policy import describe
from lightning_gradwatch.clip.step.state import ClipState, OptimizerState, Policy
from lightning_gradwatch.plain import plain
from lightning_gradwatch.recurrent.capture.modules import plain_name


@dataclass
class PolicyGroup:
    """Those parameters of an optimizer that have a gradient in this step and one policy in common.

    Args:
        key: how it is called in the loggers' keys; empty for what no pattern names.
        pattern: what names them.
        trained: all that the policy governs, those without a gradient in this step among them.
        by_rate: the gradients by how far the optimizer moves a parameter per unit of the gradient;
            None where it does not go along it.
        momentum: the largest of SGD's parameter groups.
    """

    key: str
    pattern: str
    state: ClipState
    gradients: list[Tensor] = field(default_factory=list[Tensor])
    parameters: list[Tensor] = field(default_factory=list[Tensor])
    names: list[str] = field(default_factory=list[str])
    trained: list[Tensor] = field(default_factory=list[Tensor])
    by_rate: dict[float, list[Tensor]] | None = None
    momentum: float = 0.0


class PolicyGroups:
    """Divides an optimizer's parameters by name.

    Args:
        policy: for what no pattern names.
        exclude: patterns of what is not clipped.
        policies: patterns of what has a policy of its own; the first that matches counts.
    """

    def __init__(self, policy: str | Policy, exclude: Sequence[str] | None, policies: Mapping[str, Any] | None) -> None:
        if isinstance(exclude, str):
            raise TypeError(f'`exclude` must be a list of patterns; found {exclude!r}. Write exclude=["{exclude}"].')
        self.policy = make_policy(policy)
        self.exclude = list(exclude or ())
        self.policies = {
            pattern: make_policy(chosen, f"policies[{pattern!r}]") for pattern, chosen in (policies or {}).items()
        }
        self._keys = _keys(self.policies)
        self._names: dict[int, list[str]] = {}
        self._places: dict[tuple[int, int], int] = {}

    def new_state(self, saved: Mapping[str, Any] | None = None) -> OptimizerState:
        """For one optimizer, at the start; ``saved``: what it goes on from."""
        state = OptimizerState(self.policy, self.policies)
        if saved is not None:
            state.load_state_dict(saved)
        return state

    @property
    def rule(self) -> str:
        """The policy of what no pattern names, by name."""
        return type(self.policy).__name__

    def describe(self) -> dict[str, Any]:
        """Arguments that tell two callbacks apart; those that say nothing are left out."""
        policies = {pattern: _name_in_state(policy) for pattern, policy in self.policies.items()}
        patterns = {"exclude": self.exclude, "policies": policies}
        return {"policy": _name_in_state(self.policy), **{name: value for name, value in patterns.items() if value}}

    def begin(self, module: nn.Module, optimizers: Iterable[Optimizer]) -> None:
        """Learn the parameters' names.

        Raises:
            ValueError: a pattern names none of them.
        """
        self._learn(module)
        names = [name for of_parameter in self._names.values() for name in of_parameter]
        numbered = [pair for optimizer in optimizers for pair in enumerate(optimizer.param_groups)]
        groups = [name for index, group in numbered for name in _group_names(index, group)]
        checks = {"exclude": self.exclude, "policies": list(self.policies)}
        for argument, patterns in checks.items():
            _require_matches(f"`{argument}`", patterns, [*names, *groups])
        for policy in (self.policy, *self.policies.values()):
            _require_matches(f"{type(policy).__name__}: `exclude`", getattr(policy, "exclude", ()), names)
            grouped: Mapping[str, Sequence[str]] = getattr(policy, "groups", {})
            _require_matches(f"{type(policy).__name__}: `groups`", chain.from_iterable(grouped.values()), names)

    def of(self, module: nn.Module, optimizer: Optimizer, state: OptimizerState) -> list[PolicyGroup]:
        """The groups that have gradients, in an order that is the same on every rank."""
        groups = [PolicyGroup("", "", state.rest)]
        groups += [PolicyGroup(self._keys[pattern], pattern, state.patterns[pattern]) for pattern in self.policies]
        groups.append(PolicyGroup("excluded", "", state.excluded))
        for index, param_group in enumerate(optimizer.param_groups):
            rate = float(param_group["lr"]) if isinstance(optimizer, SGD) else None
            for parameter in param_group["params"]:
                if not parameter.numel() or (parameter.grad is None and not parameter.requires_grad):
                    continue
                names = self._names_of(parameter, module)
                place = (id(parameter), index)
                if place not in self._places:
                    self._places[place] = self._place([*names, *_group_names(index, param_group)])
                group = groups[self._places[place]]
                group.trained.append(parameter)
                if parameter.grad is None:
                    continue
                if rate is not None:
                    group.momentum = max(group.momentum, float(param_group.get("momentum", 0.0)))
                    group.by_rate = group.by_rate or {}
                    group.by_rate.setdefault(rate, []).append(parameter.grad)
                group.gradients.append(parameter.grad)
                group.parameters.append(parameter)
                group.names.append(names[0])
        return [group for group in groups if group.gradients]

    def _place(self, names: list[str]) -> int:
        if any(matches_any(name, self.exclude) for name in names):
            return -1
        for place, pattern in enumerate(self.policies, start=1):
            if any(matches_any(name, [pattern]) for name in names):
                return place
        return 0

    def _names_of(self, parameter: Tensor, module: nn.Module) -> list[str]:
        if id(parameter) not in self._names:  # made since training began
            self._learn(module)
        return self._names.setdefault(id(parameter), [f"parameter{len(self._names)}"])  # it is not the module's

    def _learn(self, module: nn.Module) -> None:
        self._names, self._places = {}, {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            self._names.setdefault(id(parameter), []).append(plain_name(name))


def _name_in_state(policy: Policy) -> str:
    """What it is called in a checkpoint: where it says so itself, that stays from version to
    version.
    """
    return getattr(policy, "name_in_state", None) or describe(policy)


def _group_names(index: int, param_group: Mapping[str, Any]) -> list[str]:
    named = [f"group:{param_group['name']}"] if param_group.get("name") else []
    return [f"group:{index}", *named]


def _keys(patterns: Iterable[str]) -> dict[str, str]:
    """Pattern → what stands for it in a logger's key, where not every character is allowed."""
    keys: dict[str, str] = {}
    for pattern in patterns:
        key = re.sub(r"[^\w.-]+", "_", pattern).strip("._") or "all"
        if key in {*keys.values(), "excluded"}:
            key = f"{key}_{len(keys)}"
        keys[pattern] = key
    return keys


def _require_matches(argument: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    for pattern in unmatched(patterns, names):
        shown = plain(", ".join(names[:8])) + (", …" if len(names) > 8 else "")
        raise ValueError(
            f"{argument} must hold patterns that match the name of a parameter; found {pattern!r}, which matches none. "
            f"The names are: {shown}. For a whole submodule write 'head.*'."
        )
