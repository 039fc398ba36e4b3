"""Where sequences differ in length by chance, event and verdict speak of the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import EventKind, GradWatch, load_run
from lightning_gradwatch.runlog.summary import LayerSummary, Verdict, summarise
from tests.integration.recurrences import HIDDEN, WIDTH, ByHand, Run, series
from tests.models import trainer

TIMESTEPS = 24


def fit(net: nn.Module, run: Run, tmp_path: Path, steps: int = 30) -> tuple[GradWatch, LayerSummary]:
    torch.manual_seed(0)
    watch = GradWatch(dirpath=tmp_path / "run", every_n_steps=1, summary=False)
    trainer(tmp_path, [watch], max_steps=steps).fit(ByHand(net, run), series(TIMESTEPS, WIDTH, count=40, batch=1))
    log = load_run(tmp_path / "run")
    (layer,) = summarise(log.profile_records, log.event_records)
    return watch, layer


def reset(often: float, seed: int) -> Run:
    """A cell, or a fused module fed by hand, whose state is begun anew at random timesteps; each has a loss."""
    random = torch.Generator().manual_seed(seed)

    def run(net: nn.Module, x: Tensor) -> Tensor:
        state, total = None, torch.zeros(())
        for t in range(x.shape[1]):
            if torch.rand((), generator=random) < often:
                state = None
            made: Any = net(x[:, t : t + 1], state) if isinstance(net, nn.RNNBase) else net(x[:, t], state)
            state = made[1] if isinstance(net, nn.RNNBase) else made
            h = made[0] if isinstance(made, tuple) else made
            total = total + (h[..., 0] - x[:, t, 0]).square().mean()
        return total / TIMESTEPS

    return run


MODULES = {
    "LSTMCell": lambda: nn.LSTMCell(WIDTH, HIDDEN),
    "GRUCell": lambda: nn.GRUCell(WIDTH, HIDDEN),
    "LSTM": lambda: nn.LSTM(WIDTH, HIDDEN, batch_first=True),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("often", [0.06, 0.15])
@pytest.mark.parametrize("name", MODULES)
def test_episodes_that_end_at_random(name: str, often: float, seed: int, tmp_path: Path) -> None:
    """No event calls vanishing what the verdict calls healthy, and where both speak of it, both say how long the sequences are."""
    torch.manual_seed(seed)
    watch, layer = fit(MODULES[name](), reset(often, seed), tmp_path)
    told = [
        event for event in watch.events if event.kind == EventKind.VANISHING_HIDDEN_GRADIENT and event.action is None
    ]
    assert "its sequences have" in layer.sentence
    assert not (told and layer.verdict is Verdict.HEALTHY)


def test_one_that_forgets_at_once_is_told_with_the_lengths(tmp_path: Path) -> None:
    """The range of the sequences' lengths, not the length of one that was chance."""
    torch.manual_seed(0)
    net = MODULES["LSTM"]()
    for weight in net.parameters():
        weight.data.mul_(0.05)
    watch, layer = fit(net, reset(0.1, 1), tmp_path)
    told = [
        event for event in watch.events if event.kind == EventKind.VANISHING_HIDDEN_GRADIENT and event.action is None
    ]
    assert layer.verdict is Verdict.VANISHING
    assert told
    assert " to " in told[0].message.partition("The sequences have ")[2].partition(".")[0]
