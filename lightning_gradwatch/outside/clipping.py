"""``clip_adaptively(optimizer)`` does for a loop what AdaptiveClip does for a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch import arguments
from lightning_gradwatch.clip import ClipPolicy, TensorPolicy
from lightning_gradwatch.clip.step.groups import PolicyGroup, PolicyGroups
from lightning_gradwatch.clip.step.nonfinite import NonFiniteGradientError
from lightning_gradwatch.clip.step.state import OptimizerState
from lightning_gradwatch.clip.step.step import clip, measure, whole_norm
from lightning_gradwatch.events import Event
from lightning_gradwatch.findings.clip_events import ClipEvents, counts
from lightning_gradwatch.findings.clip_nonfinite import NonFinite
from lightning_gradwatch.outside.backward import listen
from lightning_gradwatch.outside.clip_record import LoopStep
from lightning_gradwatch.outside.findings import Scalars
from lightning_gradwatch.outside.fused import found_inf, unscale
from lightning_gradwatch.outside.model import inner_model, inner_optimizer, optimizers_of
from lightning_gradwatch.outside.processes import is_alone
from lightning_gradwatch.outside.run_log import close_run_log, open_run_log
from lightning_gradwatch.outside.terminal import say
from lightning_gradwatch.scaler import scale_of
from lightning_gradwatch.step_hooks import keep_step_hooks

_ACTIONS = ("skip", "raise", "shrink_recurrent", "ignore")

_clipped: WeakKeyDictionary[Optimizer, object] = WeakKeyDictionary()


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
            ``"adagc"``, or a :class:`ClipPolicy` or :class:`TensorPolicy`.
        model: whose parameters' names the patterns mean, and ``shrink_recurrent``.
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
        arguments.one_of("on_nonfinite", on_nonfinite, _ACTIONS, 'Leave it out for "skip".')
        if max_successive_skips is not None:
            max_successive_skips = arguments.whole("max_successive_skips", max_successive_skips, "None is no bound.")
        self._module = nn.Module() if model is None else inner_model(model)
        self._groups = PolicyGroups(policy, exclude, policies)
        self._groups.begin(self._module, self._optimizers)
        self._nonfinite = NonFinite(on_nonfinite, max_successive_skips)
        self._nonfinite.check(self._module)
        for one in self._optimizers:
            if one in _clipped:
                raise ValueError(
                    f"`optimizer` must not be clipped already; this {type(one).__name__} is. Close the other one first: close()."
                )
        self._states = [self._groups.new_state() for _ in self._optimizers]
        self._record, self._events = LoopStep(on_event, log, len(self._optimizers) > 1), ClipEvents()
        self._loss: Tensor | None = None
        self._acting = True
        writer = self._record.sink.log = None if dirpath is None else open_run_log(dirpath, self)
        self.run_dir: Path | None = None if writer is None else writer.folder
        self._endings: list[Callable[[], None]] = [listen(self)]
        keep_step_hooks()
        for one in self._optimizers:
            _clipped[one] = self
            self._endings.append(one.register_step_pre_hook(self._before_step).remove)
            self._endings.append(one.register_step_post_hook(self._after_step).remove)

    @property
    def events(self) -> list[Event]:
        """All so far."""
        return self._record.sink.events

    def close(self) -> None:
        """Let the optimizers go; close the run log. Calling it again does nothing."""
        if not self._endings:
            return
        for end in self._endings:
            end()
        self._endings.clear()
        for one in self._optimizers:
            _clipped.pop(one, None)
        self._loss = None
        said = counts("clip_adaptively", [state.rest for state in self._states], self.run_dir)
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
        self._loss = None
        if loss is not None and loss.numel() == 1 and is_alone():
            value = loss.detach()
            self._loss = value if scaler is None else value / scale_of(scaler)

    def after_backward(self, *, failed: bool) -> None:
        """Nothing: what counts is what the optimizer finds."""

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
        if not self._acting:
            return
        try:
            self._step(optimizer)
        except NonFiniteGradientError:
            raise
        except Exception as error:  # whatever it is, it is ours and must not reach the training
            self._acting = False
            self._record.warn_once(
                "broken", f"clip_adaptively failed and is off; training goes on unclipped: {error!r}"
            )

    def _step(self, optimizer: Optimizer) -> None:
        index = next(number for number, one in enumerate(self._optimizers) if one is optimizer)
        state, record = self._states[index], self._record
        groups = self._groups.of(self._module, optimizer, state)
        if not groups:
            return
        scale = unscale(optimizer, [gradient for group in groups for gradient in group.gradients])
        measured, record.loss = measure(groups, deferring=False, loss=self._loss)
        self._loss = None
        norm = whole_norm(measured)
        if not self._nonfinite.concerns(norm):
            self._take(index, groups, measured, state)
        elif scale is not None and found_inf(optimizer):
            self._events.overflow(record, index, norm, scale, state)
        else:
            self._nonfinite.handle(record, optimizer, index, norm, groups, state)

    def _take(self, index: int, groups: list[PolicyGroup], measured: Any, state: OptimizerState) -> None:
        loss = self._record.loss
        outcomes = [clip(group, own, deferring=False, loss=loss) for group, own in zip(groups, measured, strict=True)]
        self._events.taken(self._record, index, groups, outcomes, state)
