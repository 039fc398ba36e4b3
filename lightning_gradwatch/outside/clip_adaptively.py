"""``clip_adaptively(optimizer)`` does for a loop what AdaptiveClip does for a Trainer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.clip import ClipPolicy, TensorPolicy
from lightning_gradwatch.clip.step.groups import PolicyGroups
from lightning_gradwatch.clip.step.state import ClipCounts, clip_counts
from lightning_gradwatch.events import Event
from lightning_gradwatch.findings.clip_events import ClipEvents, closing_line
from lightning_gradwatch.findings.clip_nonfinite import NonFinite
from lightning_gradwatch.findings.clip_step import ClipStep
from lightning_gradwatch.findings.harmless import unclipped_at_worst
from lightning_gradwatch.outside.backward import listen
from lightning_gradwatch.outside.fused import found_inf, unscale
from lightning_gradwatch.outside.loop_findings import Scalars
from lightning_gradwatch.outside.loop_step import LoopStep
from lightning_gradwatch.outside.model import inner_model, inner_optimizer, optimizers_of
from lightning_gradwatch.outside.processes import is_alone
from lightning_gradwatch.outside.run_log import close_run_log, open_run_log
from lightning_gradwatch.outside.terminal import say
from lightning_gradwatch.recurrent.capture.direct_norm import DirectNorms
from lightning_gradwatch.scaler import scale_of
from lightning_gradwatch.step_hooks import keep_step_hooks

_MOST_PASSES = 64  # whose losses are kept: where no step is taken, they are not to pile up
_clipped: WeakKeyDictionary[Optimizer, clip_adaptively] = WeakKeyDictionary()


def clipper_of(optimizer: Optimizer) -> clip_adaptively | None:
    """What clips the gradients of an optimizer at present, if anything of ours does."""
    return _clipped.get(optimizer)


class clip_adaptively:  # noqa: N801  # it is called, and may be entered
    """Clip the gradients at each step of an optimizer, by an adaptive policy; skip the nonfinite.

    From ``clip = clip_adaptively(optimizer)`` on, until ``clip.close()`` or the end of a ``with``
    block, each ``optimizer.step()`` first measures the gradients that it finds, and clips them. The
    norm, the policies, the events and the records are those of :class:`AdaptiveClip`, with at most
    one host sync a step. Leave out a clipping of the loop's own: it would come first.

    A skipped step leaves the weights and the optimizer's state as they were, momentum and weight
    decay included: the gradients are set to None. A learning-rate schedule goes on. Under a
    ``GradScaler`` call ``scaler.step(optimizer)`` as ever: a step that the scaler skips never
    reaches the optimizer, and the policies never see it. Of an optimizer that is given a closure
    the gradients are clipped when the closure returns; of a line search of LBFGS only the first.

    All processes that train together come to the same decision, since it rests on gradients that
    are the same on each (``DistributedDataParallel``) or on their common norm (FSDP 2).

    Args:
        optimizer: or several; each has its own copy of the policies.
        policy: ``"spike"``, ``"norm"``, ``"value"``, ``"autoclip"``, ``"zclip"``, ``"agc"``,
            ``"adagc"``, ``"aggc"``, or a :class:`ClipPolicy` or :class:`TensorPolicy`.
        model: whose parameters' names the patterns mean, and ``shrink_recurrent``; its recurrent
            modules tell ``Spike``, in one process, how the gradient grows through time.
        exclude: patterns of parameter names that are not clipped and don't count in the norm.
        policies: patterns of those with a policy of their own. The first that matches counts, after
            ``exclude``. A pattern may also name a parameter group: ``group:0``,
            ``group:<its name>``.
        on_nonfinite: what to do when the norm is inf or NaN: ``skip`` the step; ``raise`` a
            :class:`NonFiniteGradientError`; ``ignore`` leaves the gradients;
            ``shrink_recurrent`` as in :class:`AdaptiveClip`.
        max_successive_skips: after so many skips (or shrinks) in a row the step raises a
            :class:`NonFiniteGradientError`; None for never.
        dirpath: the run log's folder, which may be that of :class:`watch`; None writes none.
        on_event: called with each event; an error in it is a warning.
        log: called with the values of each step, by the keys of :class:`AdaptiveClip`, and the
            step; an error in it is a warning.

    Raises:
        TypeError: the optimizer is none.
        ValueError: an argument breaks its rule, or the optimizer is clipped already.
    """

    def __init__(
        self,
        optimizer: Optimizer | Sequence[Optimizer],
        policy: str | ClipPolicy | TensorPolicy = "spike",
        *,
        model: nn.Module | None = None,
        exclude: list[str] | None = None,
        policies: dict[str, str | ClipPolicy | TensorPolicy] | None = None,
        on_nonfinite: Literal["skip", "raise", "shrink_recurrent", "ignore"] = "skip",
        max_successive_skips: int | None = 25,
        dirpath: str | Path | None = None,
        on_event: Callable[[Event], None] | None = None,
        log: Scalars | None = None,
    ) -> None:
        self._optimizers = [inner_optimizer(one) for one in optimizers_of(optimizer)]
        self._nonfinite = NonFinite.checked(on_nonfinite, max_successive_skips, can_stop=False)
        self._module = nn.Module() if model is None else inner_model(model)
        self._groups = PolicyGroups(policy, exclude, policies)
        self._groups.begin(self._module, self._optimizers)
        self._nonfinite.check(self._module)
        for one in self._optimizers:
            if one in _clipped:
                raise ValueError(
                    f"`optimizer` must not be clipped already; this {type(one).__name__} is. Close the other one first: close()."
                )
        self._states = [self._groups.new_state() for _ in self._optimizers]
        self._record, self._events = LoopStep(on_event, log, len(self._optimizers) > 1), ClipEvents()
        self._losses: deque[Tensor] = deque(maxlen=_MOST_PASSES)  # of the passes since the last step
        self._stepped = False  # since the last pass
        self._acting = True
        self._loss_scale: Tensor | float = 1.0
        writer = self._record.sink.log = None if dirpath is None else open_run_log(dirpath, self)
        self.run_dir: Path | None = None if writer is None else writer.folder
        self._direct = self._listens_for_growth()
        self._endings: list[Callable[[], None]] = [listen(self), self._direct.detach]
        keep_step_hooks(self._optimizers)
        for one in self._optimizers:
            _clipped[one] = self
            self._endings.append(one.register_step_pre_hook(self._before_step).remove)
            self._endings.append(one.register_step_post_hook(self._after_step).remove)

    @property
    def events(self) -> list[Event]:
        """All so far."""
        return self._record.sink.events

    @property
    def clips_by(self) -> str:
        """In words."""
        return f"clip_adaptively ({self._groups.rule})"

    def clip_counts(self, optimizer: Optimizer) -> ClipCounts:
        """How many steps of one of its optimizers were clipped and skipped, of how many."""
        index = next(number for number, one in enumerate(self._optimizers) if one is optimizer)
        return clip_counts({index: self._states[index]})[index]

    def close(self) -> None:
        """Let the optimizers go; close the run log. Calling it again does nothing."""
        if not self._endings:
            return
        for end in self._endings:
            end()
        self._endings.clear()
        for one in self._optimizers:
            _clipped.pop(one, None)
        self._losses.clear()
        counts = clip_counts(dict(enumerate(self._states))).values()
        said = closing_line("clip_adaptively", counts, self.run_dir)
        if said is not None:
            say(said)
        self._record.sink.log = None
        close_run_log(self)

    def __enter__(self) -> clip_adaptively:
        """It acts already; at the end of the block it is closed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """Each optimizer's policies and counts; loads under ``weights_only=True``."""
        return {"steps": self._record.steps, "optimizers": [state.state_dict() for state in self._states]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state: what comes is decided as if there had been no interruption."""
        self._record.steps = state_dict["steps"]
        for state, saved in zip(self._states, state_dict["optimizers"], strict=True):
            state.load_state_dict(saved)

    # ------------------------------------------------------------------ told of backward passes

    def before_backward(self, loss: Tensor | None, scaler: Any | None) -> None:
        """Keep the loss, to be read together with the norm. Of several processes each has its own:
        then none is kept.
        """
        if self._stepped:  # all optimizers that step before the next pass have its losses in common
            self._losses.clear()
            self._stepped = False
        self._loss_scale = 1.0 if scaler is None else scale_of(scaler)
        if loss is not None and loss.numel() == 1 and is_alone():
            value = loss.detach()
            self._losses.append(value if scaler is None else value / scale_of(scaler))

    def _listens_for_growth(self) -> DirectNorms:
        direct, policies = DirectNorms(), [policy for state in self._states for policy in state.policies()]
        if is_alone() and any(getattr(policy, "wants_growth", False) for policy in policies):
            direct.attach(self._module)
        return direct

    def after_backward(self, *, failed: bool) -> None:
        """Nothing: what counts is what the optimizer finds."""

    def before_unscale(self, optimizer: Optimizer) -> None:
        """Nothing, as well."""

    # ------------------------------------------------------------------ one step

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Act on the gradients; where a closure makes them, when it has."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._act(optimizer)
            return None
        searches, calls = optimizer.param_groups[0].get("line_search_fn") is not None, [0]

        def evaluated() -> Any:
            result = closure()
            calls[0] += 1
            if calls[0] == 1 or not searches:  # a probe's gradients tell the search how far to go
                self._act(optimizer)
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": evaluated}
        return (optimizer, evaluated, *args[2:]), kwargs

    def _after_step(self, *_: Any) -> None:
        self._record.steps += 1

    @torch.no_grad()
    def _act(self, optimizer: Optimizer) -> None:
        if self._acting:
            with unclipped_at_worst("clip_adaptively", self._switch_off):
                self._step(optimizer)

    def _switch_off(self, why: str) -> None:
        self._acting = False
        self._record.warn_once("broken", why)

    def _step(self, optimizer: Optimizer) -> None:
        index = next(number for number, one in enumerate(self._optimizers) if one is optimizer)
        state = self._states[index]
        groups = self._groups.of(self._module, optimizer, state)
        if not groups:
            return
        scale = unscale(optimizer, [gradient for group in groups for gradient in group.gradients])
        self._stepped = True
        step = ClipStep(
            self._events,
            self._nonfinite,
            skipped_by_scaler=lambda: scale if scale is not None and found_inf(optimizer) else None,
            direct=self._direct,
            loss_scale=self._loss_scale,
        )
        step.take(self._record, optimizer, index, groups, state, list(self._losses))
