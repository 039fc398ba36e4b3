"""Writes a bundle for a critical event: everything needed to
repeat the step that it happened in.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lightning_gradwatch.callbacks.anomaly.bundle_start import Start
from lightning_gradwatch.events import Event
from lightning_gradwatch.findings.folder import versions
from lightning_gradwatch.plain import command, warn
from lightning_gradwatch.runlog.bundles import BUNDLE_FOLDER, BUNDLE_KEY, BUNDLE_VERSION, args_to_give, write_bundle
from lightning_gradwatch.runlog.portable import Portable, size
from lightning_gradwatch.trainer.compat import LightningModule, Trainer

_MIB = 2**20


class Bundles:
    """Keeps each step's start, and writes it when a critical event happens in the step.

    The first ones of a run are kept, since the first anomaly is the cause more often than the last.

    Args:
        most: bundles of a run and rank.
        max_mib: a larger one is not written.
        folder: of the run log.
        rank: in the names of the files.
        config: GradWatch's own arguments, so that the same is looked for in the repetition.

    Attributes:
        written: the files of this fit.
    """

    def __init__(self, most: int, max_mib: int, folder: Path, rank: int, config: Mapping[str, Any]) -> None:
        self._max_mib, self._folder, self._rank, self._config = max_mib, folder / BUNDLE_FOLDER, rank, dict(config)
        self._left = most - len(list(self._folder.glob(f"*-rank{rank}.pt")))  # a resumed run continues its folder
        self._start: Start | None = None
        self._first: Start | None = None
        self._warned: set[str] = set()
        self.written: list[Path] = []
        self._target = self._args = ""

    def hint(self) -> list[str]:
        """How to repeat the first step that was written."""
        if not self.written:
            return []
        words = command("gradwatch", "replay", str(self.written[0]), "--module", self._target)
        return [" ".join(filter(None, ("  To repeat its step:", words, self._args)))]

    def begin_batch(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep what the step will change, as long as a bundle may still be written."""
        self._start = Start.of(trainer, module, batch, batch_idx) if self._left > 0 else None
        if self._first is None and self._start is not None:
            self._first = replace(
                self._start, batch=None, buffers={}, attributes={}, gradients={}, parameters=None, optimizers=None
            )

    def end_batch(self) -> None:
        """Let go of the step."""
        self._start = None

    def write(self, event: Event, trainer: Trainer, module: LightningModule) -> None:
        """Write the bundle of a critical event in the present step; one for each step."""
        start, self._start = self._start, None
        if start is None:
            return
        weights = _weights(start, module)
        optimizers = start.optimizers or [optimizer.state_dict() for optimizer in trainer.optimizers]
        held = (weights, optimizers, start.batch, start.buffers, start.attributes, start.gradients)
        mib = size(held) / _MIB  # before anything is copied
        if mib > self._max_mib:
            self._warn("size", f"it would take {mib:.0f} MiB, over the {self._max_mib} of `bundle_mib`")
            return
        portable = Portable()
        content = self._content(start, event, trainer, module, portable)
        content["state_dict"] = portable(weights, "state_dict")
        content["optimizer_states"] = portable(optimizers, "optimizer_states")
        content[BUNDLE_KEY]["problems"] = dict(portable.problems)
        unheld = {at: kind for at, kind in portable.problems.items() if not at.startswith("hyper_parameters")}
        if unheld:
            listed = ", ".join(f"{at} ({kind})" for at, kind in unheld.items())
            self._warn(
                "problems",
                f"it lacks {listed}: a bundle holds tensors, NumPy arrays, numbers, texts, lists, dicts, tuples and dataclasses",
                whole=False,
            )
        path = self._folder / f"step{event.step:06d}-batch{start.counts['batch_idx']}-rank{self._rank}.pt"
        try:
            write_bundle(path, content)
        except OSError as error:
            self._left = 0
            self._warn("disk", f"{error.strerror or error}; no more are written")
            return
        self._left, self._target = self._left - 1, target_of(module)
        self._args = "" if content["hyper_parameters"] else args_to_give(type(module), ())
        self.written.append(path)

    def _content(
        self, start: Start, event: Event, trainer: Trainer, module: LightningModule, portable: Portable
    ) -> dict[str, Any]:
        plugin = trainer.precision_plugin
        schedulers = [_values(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs]
        packages = versions()
        extras = {
            "bundle_version": BUNDLE_VERSION,
            "event": portable(event.to_record(), "event"),
            "batch": portable(start.batch, "batch"),
            "buffers": portable(start.buffers, "buffers"),
            "attributes": portable(start.attributes, "attributes"),
            "numbers": start.changed_numbers(self._first or start),
            "gradients": portable(start.gradients, "gradients"),
            "random": portable(start.random, "random"),
            "counts": portable(start.counts, "counts"),
            "changed_weights": start.changed(module),
            "eval_modules": [name for name, child in module.named_modules() if not child.training],
            "frozen": start.frozen,
            "module": target_of(module),
            "precision": str(plugin.precision),
            "precision_state": portable(plugin.state_dict(), "precision"),
            "device": str(trainer.strategy.root_device),
            "world_size": trainer.world_size,
            "backend": backend(),
            "config": portable(self._config, "config"),
            "versions": packages,
        }
        hyper_parameters: dict[str, Any] = {}
        for name, value in dict(getattr(module, "_hparams", {})).items():
            known = len(portable.problems)
            made = portable(value, f"hyper_parameters[{name!r}]")
            if len(portable.problems) == known:  # what cannot be held in full is asked for at the replay
                hyper_parameters[name] = made
        return {
            # Lightning's own names, so that load_from_checkpoint() reads the weights of a bundle.
            "lr_schedulers": portable(schedulers, "lr_schedulers"),
            "hyper_parameters": hyper_parameters,
            "hparams_name": getattr(module, "_hparams_name", None),
            "pytorch-lightning_version": packages.get("lightning") or packages.get("pytorch-lightning"),
            "epoch": start.counts["epoch"],
            "global_step": start.counts["global_step"],
            BUNDLE_KEY: extras,
        }

    def _warn(self, about: str, what: str, *, whole: bool = True) -> None:
        if about not in self._warned:
            self._warned.add(about)
            lead = "No bundle was written" if whole else "A bundle cannot be replayed in full"
            warn(f"{lead}: {what}. Training goes on.", stacklevel=2)


def _weights(start: Start, module: LightningModule) -> dict[str, Any]:
    """The module's ``state_dict`` as it was at the step's start."""
    weights: dict[str, Any] = dict(module.state_dict())
    for kept in (start.buffers, start.parameters or {}):
        weights.update({name: tensor for name, tensor in kept.items() if name in weights})
    return weights


def _values(state: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's state without functions, which PyTorch 2.2 has in some."""
    return {name: value for name, value in state.items() if not callable(value)}


def target_of(module: LightningModule) -> str:
    """The module's class as ``gradwatch replay --module`` takes it; of a script its file."""
    place = type(module).__module__
    if place == "__main__":
        place = Path(getattr(sys.modules[place], "__file__", None) or "script.py").name
    return f"{place}:{type(module).__qualname__}"


def backend() -> dict[str, Any]:
    """The switches of torch that decide which code computes a step."""
    return {
        "threads": torch.get_num_threads(),
        "onednn": bool(torch.backends.mkldnn.enabled),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "default_dtype": torch.get_default_dtype(),
    }
