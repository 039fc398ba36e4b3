"""The moment at which a backward pass is over, before anybody's hook for it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle


def at_its_end(loss: Tensor, then: Callable[[], None]) -> RemovableHandle | None:
    """Call ``then`` when the backward pass of ``loss`` is over and its gradients are in place; None
    where there is no such pass.

    Lightning's ``on_after_backward`` comes later, and goes to one callback after the other: one of
    them may have clipped already. DDP and FSDP finish their gradients in calls that are queued in
    the course of the pass; a call that is queued from within the first queued one comes after them.
    """
    if not loss.requires_grad:
        return None

    def queue(_: Tensor) -> None:
        _queue(lambda: _queue(then))

    return loss.register_hook(queue)


def _queue(call: Callable[[], None]) -> None:
    """As FSDP does it: the engine calls it when the present backward pass is done."""
    Variable._execution_engine.queue_callback(call)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
