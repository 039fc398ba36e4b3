"""A bundle as a training would leave it, in the smallest form that is whole."""

from __future__ import annotations

import random
from typing import Any

import torch

from lightning_gradwatch.callbacks.anomaly.bundle import backend
from lightning_gradwatch.events import Event, EventKind
from lightning_gradwatch.runlog.bundles import BUNDLE_KEY, BUNDLE_VERSION
from lightning_gradwatch.runlog.portable import Portable


def whole_bundle(**own: Any) -> dict[str, Any]:
    """One whose weights fit no model. ``own`` goes over what is not Lightning's."""
    counts = dict.fromkeys(("batch_idx", "epoch", "global_step", "batches_that_stepped"), 0)
    return {
        "state_dict": {},
        "hyper_parameters": {},
        "hparams_name": None,
        "pytorch-lightning_version": "2.6.6",
        "optimizer_states": [],
        "lr_schedulers": [],
        "epoch": 0,
        "global_step": 0,
        BUNDLE_KEY: {
            "bundle_version": BUNDLE_VERSION,
            "event": Portable()(Event(EventKind.NONFINITE_LOSS, 0, value=1.0).to_record(), "event"),
            "problems": {},
            "batch": [torch.zeros(2, 3)],
            "random": {"torch": torch.get_rng_state(), "python": random.Random(0).getstate()},
            "counts": {**counts, "is_last_batch": False, "accumulate_grad_batches": 1},
            **{name: {} for name in ("buffers", "attributes", "numbers", "gradients", "precision_state", "versions")},
            **{name: [] for name in ("changed_weights", "eval_modules", "frozen")},
            "module": "tests.models:Another",
            "precision": "32-true",
            "device": "cpu",
            "world_size": 1,
            "backend": backend(),
            "config": {},
            **own,
        },
    }
