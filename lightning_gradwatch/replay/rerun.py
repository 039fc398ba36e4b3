"""Runs the one training step of a bundle again, in a Trainer of its own."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_gradwatch.callbacks.fit.fit_watch import FitWatch
from lightning_gradwatch.callbacks.grad_watch import GradWatch
from lightning_gradwatch.events import Event, Severity
from lightning_gradwatch.recurrent.measure.gradient_norm import local
from lightning_gradwatch.runlog.bundle_schema import WATCHING
from lightning_gradwatch.runlog.bundles import BUNDLE_KEY, BundleError
from lightning_gradwatch.runlog.portable import restored
from lightning_gradwatch.runlog.randomness import set_random_states
from lightning_gradwatch.trainer.compat import (
    Callback,
    LightningModule,
    MixedPrecision,
    Trainer,
)

_MANY = 2**31
"""Batches that the epoch seems to have, so that the step is not taken for its last."""


def watched_events(
    module: LightningModule, bundle: Mapping[str, Any], *, device: str = "cpu", warm: bool = False
) -> list[Event]:
    """The critical events that GradWatch sees when the step is run again.

    Args:
        warm: let GradWatch see the step once before, so that it knows cells of the model's own, as
            it did in the run.
    """
    recorded = bundle[BUNDLE_KEY]["config"]
    config = {name: value for name, value in recorded.items() if name in WATCHING}  # not where to write, nor what to do
    watch = _Watch(warm, **{**config, "every_n_steps": 1})
    rerun(module, bundle, [watch], device=device, times=2 if warm else 1)
    return [event for event in watch.events if event.severity == Severity.CRITICAL]


def rerun(
    module: LightningModule,
    bundle: Mapping[str, Any],
    callbacks: Sequence[Callback],
    *,
    device: str = "cpu",
    times: int = 1,
) -> None:
    """Run the step again with ``callbacks``; the last one's ``on_train_batch_end`` is the last
    thing that is called.

    The Trainer's own callbacks, and those of ``configure_callbacks``, take no part. Whatever the
    step's start was is put back before each of the ``times``.

    Raises:
        BundleError: the bundle does not fit the module, or the step raises an error of its own.
    """
    extras = bundle[BUNDLE_KEY]
    if device == "cuda" and not torch.cuda.is_available():
        raise BundleError("`--device cuda` needs a GPU; found none. Leave it out to run the step on the CPU.")
    step = _Step(bundle, device)
    # The saved batch is what came out of these.
    module.on_before_batch_transfer = module.on_after_batch_transfer = _as_it_is  # pyright: ignore[reportAttributeAccessIssue]
    module.configure_callbacks = list  # pyright: ignore[reportAttributeAccessIssue]
    with _quiet(), _backend(extras["backend"]), tempfile.TemporaryDirectory() as folder:
        try:
            trainer = Trainer(
                accelerator="cpu" if device == "cpu" else "gpu",
                devices=1,
                max_epochs=-1,
                accumulate_grad_batches=extras["counts"]["accumulate_grad_batches"],
                callbacks=[step, *callbacks, _Done(times)],
                default_root_dir=folder,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                limit_val_batches=0,
                **_precision(extras, device),
            )
            trainer.fit(module, _Batch(step, trainer, times))
        except (_DoneError, BundleError) as ended:
            if isinstance(ended, BundleError):
                raise
        except Exception as error:  # of the user's own step
            raise BundleError(f"The step ends in an error of its own ({type(error).__name__}: {error}).") from error


class _WarmFit(FitWatch):
    """Judges nothing on the first pass."""

    _is_warm = False

    def look(self) -> None:
        if self._is_warm:
            super().look()
        elif self.watch is not None:
            self.watch.observed.update(call.module for call in self.watch.capture.take())

    def end_batch(self) -> None:
        super().end_batch()
        self._is_warm = True


class _Watch(GradWatch):
    """A GradWatch that, where it is to be warm, sees the step once before it judges."""

    raise_own_errors = True

    def __init__(self, warm: bool, **config: Any) -> None:
        super().__init__(**config, summary=False)
        self.fit_watch = _WarmFit if warm else FitWatch


class _DoneError(Exception):
    """The step has been run: nothing after it is wanted, no validation and no end of an epoch."""


class _Done(Callback):
    def __init__(self, times: int) -> None:
        self._left = times

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._left -= 1
        if self._left == 0:
            raise _DoneError


class _Batch:
    """A dataloader of the one batch, which it hands out as the batch that it was in its epoch."""

    def __init__(self, step: _Step, trainer: Trainer, times: int) -> None:
        self._step, self._trainer, self._times = step, trainer, times

    def __len__(self) -> int:
        return self._times if self._step.counts["is_last_batch"] else _MANY

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self._times):
            self._trainer.fit_loop.epoch_loop.batch_progress.current.ready = self._step.counts["batch_idx"]
            yield self._step.batch()


class _Step(Callback):
    """Puts everything back to what it was at the start of the step."""

    def __init__(self, bundle: Mapping[str, Any], device: str) -> None:
        self._bundle, self._extras, self._device = bundle, bundle[BUNDLE_KEY], torch.device(device)
        self.counts: dict[str, Any] = self._extras["counts"]

    def batch(self) -> Any:
        return restored(apply_to_collection(self._extras["batch"], Tensor, _fresh))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loop: Any = trainer.fit_loop
        loop.epoch_progress.current.processed = loop.epoch_progress.current.completed = self.counts["epoch"]
        loop.epoch_loop._batches_that_stepped = self.counts["batches_that_stepped"]
        self._count_steps(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._count_steps(trainer)
        self._restore_module(pl_module)
        states = self._bundle["optimizer_states"]
        if len(states) != len(trainer.optimizers):
            raise BundleError(f"The bundle has {len(states)} optimizers; the module makes {len(trainer.optimizers)}.")
        try:
            for optimizer, state in zip(trainer.optimizers, states, strict=True):
                optimizer.load_state_dict(_all_fresh(state))
            for config, state in zip(trainer.lr_scheduler_configs, self._bundle["lr_schedulers"], strict=False):
                config.scheduler.load_state_dict(_all_fresh(state))
        except (ValueError, KeyError) as error:
            raise BundleError(
                f"The bundle's optimizer does not fit the one that the module makes ({error})."
            ) from error
        if self._extras["precision_state"]:
            trainer.precision_plugin.load_state_dict(dict(self._extras["precision_state"]))
        set_random_states(self._extras["random"], self._device)

    def _count_steps(self, trainer: Trainer) -> None:
        loop = trainer.fit_loop.epoch_loop
        loop.automatic_optimization.optim_progress.optimizer.step.total.completed = self.counts["global_step"]
        loop.manual_optimization.optim_step_progress.total.completed = self.counts["global_step"]

    @torch.no_grad()
    def _restore_module(self, module: LightningModule) -> None:
        module.load_state_dict(self._bundle["state_dict"], strict=False)  # whether they fit was seen when it was made
        buffers = dict(module.named_buffers())
        for name, saved in self._extras["buffers"].items():
            if name in buffers:
                buffers[name].data = saved.to(self._device, copy=True)
        evaluating, frozen = set(self._extras["eval_modules"]), set(self._extras["frozen"])
        for name, child in module.named_modules():
            child.training = name not in evaluating
            kept = {**self._extras["attributes"].get(name, {}), **self._extras["numbers"].get(name, {})}
            for attribute, value in kept.items():
                setattr(child, attribute, restored(apply_to_collection(value, Tensor, self._placed)))
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in frozen)
            gradient = self._extras["gradients"].get(name)
            parameter.grad = None if gradient is None else self._placed(gradient)

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, copy=True)


def _precision(extras: Mapping[str, Any], device: str) -> dict[str, Any]:
    if extras["precision"] == "16-mixed" and device == "cpu":
        # Lightning alone would take bfloat16 there.
        if not hasattr(torch.amp, "GradScaler"):
            raise BundleError(
                "It was recorded under 16-mixed, which the CPU knows from PyTorch 2.3 on. "
                "Replay it with `--device cuda`, or with a newer PyTorch."
            )
        return {"plugins": MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))}
    return {"precision": extras["precision"]}


@contextlib.contextmanager
def _backend(recorded: Mapping[str, Any]) -> Generator[None]:
    """The run's own switches, since another number of threads sums in another order."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    precision, deterministic = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(recorded["threads"])
    torch.set_default_dtype(recorded["default_dtype"])
    torch.set_float32_matmul_precision(recorded["matmul_precision"])
    torch.use_deterministic_algorithms(recorded["deterministic"], warn_only=True)
    try:
        with torch.backends.mkldnn.flags(enabled=recorded["onednn"]):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Without Lightning's own announcements: they are of a training, and this is none."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "pytorch_lightning", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _as_it_is(batch: Any, dataloader_idx: int) -> Any:
    return batch


def _fresh(tensor: Tensor) -> Tensor:
    copy = local(tensor.detach()).clone()
    return copy.requires_grad_() if tensor.requires_grad else copy


def _all_fresh(value: Any) -> Any:
    return apply_to_collection(restored(value), Tensor, _fresh)
