"""Pascanu's own way with gradients that are not finite."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch.callbacks.adaptive_clip import AdaptiveClip
from lightning_gradwatch.clip import Norm
from lightning_gradwatch.events import EventKind, Severity
from tests.integration.clipping.clip_models import Adversarial, Regression, fit, trainer_for
from tests.integration.clipping.clip_steps import kinds, steps_of

NAN, INF = math.nan, math.inf


class LastStep(nn.Module):
    """A recurrent network that reads each row of a batch as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(1, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.unsqueeze(-1))[0][:, -1])


class Recurrent(Regression):
    """The regression by a recurrent network."""

    def __init__(self, spoil: dict[int, float] | None = None) -> None:
        super().__init__(spoil, make=lambda p: torch.optim.SGD(p, 0.5))
        self.net = LastStep()  # type: ignore[assignment]


@pytest.mark.parametrize("factor", [NAN, INF, 1e20])
def test_recurrent_weights_are_shrunk(tmp_path: Path, factor: float) -> None:
    """The recurrent weights' gradient becomes 0.02 of them, also for a finite norm over 1e10, and all others zero."""
    module, callback = Recurrent({5: factor}), AdaptiveClip(Norm(1e30), on_nonfinite="shrink_recurrent")
    names = [name for name, _ in module.named_parameters()]
    fit(trainer_for(tmp_path, callback), module)
    for name, before, after in zip(names, module.weights[5], module.weights[6], strict=True):
        expected = before * (1 - 0.5 * 0.02) if "weight_hh" in name else before
        torch.testing.assert_close(after, expected, rtol=1e-6, atol=0)
    (event,) = callback.events
    assert (event.kind, event.step, event.action) == (EventKind.GRADIENT_CLIPPED, 5, "replaced")
    assert event.severity is Severity.WARNING
    assert "0.02" in event.message
    record = steps_of(callback)[5]
    recurrent = next(w for name, w in zip(names, module.weights[5], strict=True) if "weight_hh" in name)
    assert record["clipped_norm"] == pytest.approx(0.02 * float(recurrent.norm()), rel=1e-5)
    assert not record["skipped"]
    state = callback.state_dict()["optimizers"][0]
    assert (state["skipped"], state["clipped"]) == (0, 1)


def test_an_ordinary_step_is_left_to_the_policy(tmp_path: Path) -> None:
    """Under 1e10 nothing is shrunk: the run is that of the same policy with skip."""
    results = []
    for on_nonfinite in ("skip", "shrink_recurrent"):
        torch.manual_seed(0)
        module = Recurrent({5: 1e5})
        fit(trainer_for(tmp_path, AdaptiveClip(Norm(0.1), on_nonfinite=on_nonfinite)), module)  # type: ignore[arg-type]
        results.append(list(module.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_shrinking_without_end_is_an_alarm(tmp_path: Path) -> None:
    """After max_successive_skips replaced steps in a row training is stopped."""
    module = Recurrent(dict.fromkeys(range(4, 99), NAN))
    callback = AdaptiveClip(on_nonfinite="shrink_recurrent", max_successive_skips=3)
    messages = fit(trainer_for(tmp_path, callback), module)
    assert len(module.losses) == 7
    assert callback.events[-1].severity is Severity.CRITICAL
    assert len([m for m in messages if "in succession" in m]) == 1


class OneIsRecurrent(Adversarial):
    """The first optimizer's network has a recurrent cell beside it."""

    def __init__(self, spoil: dict[int, float]) -> None:
        super().__init__(spoil)
        self.a.cell = nn.RNNCell(1, 1)  # type: ignore[assignment]


def test_an_optimizer_without_recurrent_weights_skips(tmp_path: Path) -> None:
    """Where another optimizer has the recurrent weights, there is nothing to shrink here, and the step is skipped."""
    callback = AdaptiveClip(on_nonfinite="shrink_recurrent")
    fit(trainer_for(tmp_path, callback), OneIsRecurrent({4: NAN}))
    assert kinds(callback) == [EventKind.STEP_SKIPPED]


def test_without_recurrent_weights_shrinking_is_one_clear_error(tmp_path: Path) -> None:
    """It is raised before training and names the argument and a remedy."""
    module = Regression()
    with pytest.raises(ValueError, match=r"`on_nonfinite=\"shrink_recurrent\"` needs .*Regression has none\. Use"):
        fit(trainer_for(tmp_path, AdaptiveClip(on_nonfinite="shrink_recurrent")), module)
    assert module.losses == []
