"""Which training steps are measured in full."""

from __future__ import annotations

from collections.abc import Iterable

Now = tuple[int, int | None]
"""Optimizer steps done in Lightning's own count, and the batch's index."""


class Sampling:
    """Of each module the first step that reaches it, then the first one in every ``every`` steps.

    It is kept for each module: of two that take turns (a GAN's, or a curriculum's), neither is always missed.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._last: dict[str, Now] = {}

    def due(self, modules: Iterable[str], now: Now, *, again: bool) -> bool:
        """Whether one of ``modules`` should be measured.

        Args:
            again: whether a module may be measured more than once in a batch: where the training calls backward by itself, each
                backward pass is another part of it; otherwise they are micro-batches, or LBFGS evaluating one loss anew.
        """
        return any(self._is_due(module, now, again) for module in modules)

    def note(self, modules: Iterable[str], now: Now) -> None:
        """These are measured now."""
        self._last.update(dict.fromkeys(modules, now))

    def _is_due(self, module: str, now: Now, again: bool) -> bool:
        last = self._last.get(module)
        return last is None or now[0] // self._every > last[0] // self._every or (again and now == last)
