"""Tells the probes of a line search from an optimizer step's own gradients."""

from __future__ import annotations

from torch.optim import Optimizer

from lightning_gradwatch.trainer.compat import Trainer


class LineSearch:
    """Of one fit. LBFGS with ``line_search_fn`` evaluates a step's loss again and again, each time
    with a closure that ends in ``on_before_optimizer_step``: first where the weights are, then at
    probes along its direction.

    A probe's gradient says how far to go. One that is not finite is an answer like any other, with
    which the search goes on; one that was altered, or taken away, misleads it.
    """

    def __init__(self) -> None:
        self._step: tuple[int, int] | None = None

    def is_probe(self, trainer: Trainer, optimizer: Optimizer) -> bool:
        """Whether the gradients at hand are a probe's. To be asked once an evaluation."""
        if optimizer.param_groups[0].get("line_search_fn") is None:
            return False
        before, self._step = self._step, (trainer.global_step, id(optimizer))  # counted when the whole step is over
        return self._step == before
