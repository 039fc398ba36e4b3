"""Which training steps are measured in full."""

from __future__ import annotations

from collections.abc import Iterable

Now = tuple[int, int | None]
"""Optimizer steps done in Lightning's own count, and the batch's index."""

DENSE = 4
"""Steps after an anomaly that are all measured; then every 2nd, 4th, 8th … until the
ordinary distance is reached again.
"""


class Sampling:
    """Of each module the first step that reaches it, then the first one in every
    ``every`` steps; more after an anomaly.

    It is kept for each module: of two that take turns (a GAN's, or a
    curriculum's), neither is always missed.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._last: dict[str, Now] = {}
        self._closer: frozenset[int] = frozenset()
        self._closer_until = -1

    def due(self, modules: Iterable[str], now: Now, *, again: bool) -> bool:
        """Whether one of ``modules`` should be measured.

        Args:
            again: whether a module may be measured more than once in a batch: where the training
                calls backward by itself, each backward pass is another part of it; otherwise they
                are micro-batches, or LBFGS evaluating one loss anew.
        """
        return any(self._is_due(module, now, again) for module in modules)

    def is_closer(self, modules: Iterable[str], now: Now) -> bool:
        """Whether one of ``modules`` should be measured because of
        an anomaly a few steps before.
        """
        return now[0] in self._closer and any(self._last.get(module, (-1, None))[0] != now[0] for module in modules)

    def look_closer(self, now: Now) -> None:
        """Something is out of the ordinary: measure the next steps more densely.

        While a closer look goes on another one does not begin: that bounds the cost of a run that
        never comes to rest to ``4 + log₂ every`` more samples in every ``every`` steps.
        """
        if now[0] >= self._closer_until:
            self._closer = frozenset(closer_steps(now[0], self._every))
            self._closer_until = now[0] + self._every

    def is_eve(self, modules: Iterable[str], now: Now) -> bool:
        """Whether one of ``modules`` will be due when the optimizer has made its next step."""
        after = now[0] + 1, None
        return any(module in self._last and self._is_due(module, after, False) for module in modules)

    def note(self, modules: Iterable[str], now: Now) -> None:
        """These are measured now."""
        self._last.update(dict.fromkeys(modules, now))

    def _is_due(self, module: str, now: Now, again: bool) -> bool:
        last = self._last.get(module)
        return last is None or now[0] // self._every > last[0] // self._every or (again and now == last)


def closer_steps(step: int, every: int) -> list[int]:
    """The steps after an anomaly at ``step`` that are measured beyond every ``every``-th: four in
    a row, then ever further apart.
    """
    steps = list(range(step + 1, step + min(DENSE, every - 1) + 1))
    gap = 2
    while steps and gap < every:
        steps.append(steps[-1] + gap)
        gap *= 2
    return steps
