"""What a policy is told of a step in a real training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gradwatch import AdaptiveClip
from lightning_gradwatch.clip import Decision, StepReading
from tests.integration.clipping.clip_models import trainer_for


class Recording:
    """Wants all there is, and clips nothing."""

    wants_parameter_norm = wants_step_size = wants_growth = wants_loss = True

    def __init__(self) -> None:
        self.readings: list[StepReading] = []

    def decide(self, reading: StepReading) -> Decision:
        self.readings.append(reading)
        return Decision(None, 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Last(pl.LightningModule):
    """Reads the last output; keeps the truth of each backward pass."""

    def __init__(self, kind: type[nn.Module] | None) -> None:
        super().__init__()
        self.rnn = kind(3, 5, batch_first=True) if kind else nn.Linear(3, 5)  # type: ignore[call-arg]
        self.head = nn.Linear(5, 1)
        self.losses: list[float] = []
        self.direct: list[float] = []
        self.recurrent: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        output = self.rnn(batch)
        output = output[0] if isinstance(output, tuple) else output
        loss = (self.head(output[:, -1]) - batch.sum((1, 2))[:, None]).square().mean()
        self.losses.append(float(loss))
        self.direct.append(
            float(torch.autograd.grad(loss, output, retain_graph=True)[0].norm()) if output.grad_fn else 0.0
        )
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.recurrent.append(float(getattr(self.rnn, "weight_hh_l0", self.head.weight).grad.norm()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.8)


def fit(tmp_path: Path, kind: type[nn.Module] | None, policy: Any, **options: Any) -> tuple[Last, AdaptiveClip]:
    torch.manual_seed(0)
    module, clip = Last(kind), AdaptiveClip(policy)
    loader = DataLoader(torch.randn(24, 7, 3), batch_size=4)  # type: ignore[arg-type]
    trainer_for(tmp_path, clip, **options).fit(module, loader)
    return module, clip


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_policy_is_told_the_growth_through_time(tmp_path: Path, kind: type[nn.Module]) -> None:
    """Norms of the direct gradient and of the recurrent weights' as autograd gives them, the loss, and SGD's momentum."""

    class Once(Last):
        """Without a second backward pass, whose gradient would arrive too."""

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            output = self.rnn(batch)[0]
            output.register_hook(lambda gradient: self.direct.append(float(gradient.norm())))
            loss = (self.head(output[:, -1]) - batch.sum((1, 2))[:, None]).square().mean()
            self.losses.append(float(loss))
            return loss

    torch.manual_seed(0)
    module, clip = Once(kind), AdaptiveClip(Recording())
    loader = DataLoader(torch.randn(24, 7, 3), batch_size=4)  # type: ignore[arg-type]
    trainer_for(tmp_path, clip).fit(module, loader)
    ((policy,),) = clip.policies_in_use()
    readings = policy.readings  # type: ignore[union-attr]
    assert len(readings) == 6
    assert [reading.loss for reading in readings] == pytest.approx(module.losses)
    assert [reading.direct_norm for reading in readings] == pytest.approx(module.direct)
    growths = [recurrent / direct for recurrent, direct in zip(module.recurrent, module.direct, strict=True)]
    assert [reading.growth for reading in readings] == pytest.approx(growths)
    assert {(reading.step_size, reading.momentum) for reading in readings} == {(0.01, 0.8)}
    assert not module.rnn._forward_hooks


def test_without_recurrence_there_is_no_growth(tmp_path: Path) -> None:
    """None, and the rest is told all the same."""
    _, clip = fit(tmp_path, None, Recording())
    ((policy,),) = clip.policies_in_use()
    assert {(reading.growth, reading.direct_norm) for reading in policy.readings} == {(None, None)}  # type: ignore[union-attr]
    assert all(reading.loss is not None and reading.parameter_norm for reading in policy.readings)  # type: ignore[union-attr]


@pytest.mark.parametrize("policy", ["norm", "zclip", "adagc"])
def test_a_policy_that_does_not_ask_costs_no_hook(tmp_path: Path, policy: str) -> None:
    """The recurrent module has none during training."""

    class Looks(Last):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            assert not self.rnn._forward_hooks
            return super().training_step(batch, batch_idx)

    module = Looks(nn.RNN)
    loader = DataLoader(torch.randn(8, 7, 3), batch_size=4)  # type: ignore[arg-type]
    trainer_for(tmp_path, AdaptiveClip(policy)).fit(module, loader)
    assert len(module.losses) == 2


def test_an_event_says_why(tmp_path: Path) -> None:
    """The detail of a clipped step names its reason."""

    class Huge(Last):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (1e9 if batch_idx == 14 else 1.0)

    torch.manual_seed(0)
    clip = AdaptiveClip()
    loader = DataLoader(torch.randn(64, 7, 3), batch_size=4)  # type: ignore[arg-type]
    trainer_for(tmp_path, clip).fit(Huge(nn.GRU), loader)
    (event,) = clip.events
    assert event.step == 14
    assert "Its norm is out of the ordinary." in event.message
