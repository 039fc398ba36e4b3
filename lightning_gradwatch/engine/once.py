"""One forward and backward pass of a model, measured, outside any training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_gradwatch.engine.backward_pass import Step
from lightning_gradwatch.engine.options import WatchOptions
from lightning_gradwatch.engine.watch import Watch
from lightning_gradwatch.events import Moment
from lightning_gradwatch.profile import Profile
from lightning_gradwatch.recurrent.capture.fit_over import beside_training
from lightning_gradwatch.recurrent.capture.modules import discover


def measure_once(model: nn.Module, loss: Callable[[], Tensor], options: WatchOptions) -> tuple[float, list[Profile]]:
    """The loss and the profiles of PyTorch's own recurrent modules. The model's gradients are
    added to, as by any backward pass; whoever watches it hears of nothing.

    Args:
        loss: runs the model forward; a scalar with a graph.
    """
    with beside_training(), torch.enable_grad():
        watch = Watch(model, discover(model), options)
        try:
            watch.capture.begin()
            value = loss()
            step = Step(Moment(0), 0, sampled=True, accumulation=1, scale=1.0, complete=True, scaled=False, loss=value)
            observations = [watch.before_backward(value, step)]
            value.backward()
            observations += [watch.after_backward(value, step), watch.end_step(step.moment)]
        finally:
            watch.close()
    profiles = [p for observation in observations for sample in observation.samples for p in sample.profiles]
    return float(value.detach()), profiles
