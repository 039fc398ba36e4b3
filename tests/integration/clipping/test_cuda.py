"""On a CUDA device a step of AdaptiveClip waits for it once."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from lightning_gradwatch import AdaptiveClip
from tests.integration.cuda import ON_CUDA, full_precision
from tests.models import TinyLanguageModel, sentences, trainer

__all__ = ["full_precision"]

pytestmark = [*ON_CUDA, pytest.mark.usefixtures("full_precision")]


@pytest.mark.parametrize("policy", ["spike", "autoclip", "zclip", "norm", "agc", "adagc", "aggc", "value"])
def test_clipping_reads_the_device_once(policy: str, tmp_path: Any) -> None:
    """A step of AdaptiveClip waits for the device at most once."""
    syncs: list[int] = []

    class Counted(AdaptiveClip):
        def on_before_optimizer_step(self, *args: Any) -> None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                super().on_before_optimizer_step(*args)
                torch.cuda.set_sync_debug_mode("default")
            syncs.append(sum("synchronizing" in str(warning.message) for warning in caught))

    trainer(tmp_path, [Counted(policy, dirpath=tmp_path / "run")], accelerator="gpu").fit(
        TinyLanguageModel(), sentences()
    )
    assert len(syncs) == 6
    assert max(syncs) <= 1
