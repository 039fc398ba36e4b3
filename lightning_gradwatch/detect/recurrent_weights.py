"""Recurrent weights through which nothing flows, or which are not those of the module: what a
weight drop that does not work leaves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.recurrent import RecurrentCall
from lightning_gradwatch.recurrent.layout import DIRECTIONS

OTHERWISE = {
    "RNN": "",
    "LSTM": " What does flow goes through the cell state alone, and no gate hears of what came before.",
    "GRU": " What does flow is what the update gate lets through, and no gate hears of what came before.",
}

_FILL = (
    "Look at what sets this weight: a weight drop, a mask, an initialisation. Where it is the parameter itself, fill it, as by "
    "nn.init.orthogonal_; dropout of it works as a parametrization (torch.nn.utils.parametrize)."
)
_SET = (
    "Set the weight by setattr before every forward, so that PyTorch takes it up, or make what changes it a parametrization "
    "(torch.nn.utils.parametrize.register_parametrization)."
)


class RecurrentWeights:
    """Tells each recurrent weight once: one that is all zeros at two sampled steps, or that a
    forward no longer takes from the module.
    """

    def __init__(self) -> None:
        self._zero_at: dict[tuple[str, int, int], int] = {}
        self._told: set[object] = set()

    def __call__(
        self, call: RecurrentCall, module: nn.RNNBase, trained: Collection[int], moment: Moment
    ) -> Iterator[Event]:
        """The events of one call.

        Args:
            trained: identities of the model's parameters.
        """
        for layer in range(call.shape.num_layers):
            for direction in range(call.shape.num_directions):
                name = f"weight_hh_l{layer}{'_reverse' if direction else ''}"
                weight = call.flat_weights(layer, direction)[1]
                place = call.module, layer, direction
                if place not in self._told and self._stays_zero(place, weight, moment):
                    self._told.add(place)
                    yield _zero(call, name, layer, direction, moment)
                if (place, "left") not in self._told and _is_left(module, name, weight):
                    self._told.add((place, "left"))
                    yield _left(call.module, name, id(weight) in trained, moment)

    def _stays_zero(self, place: tuple[str, int, int], weight: Tensor, moment: Moment) -> bool:
        """Whether it is zero now and was so at another step: one that only
        begins with zeros is none of it.
        """
        if bool(weight.detach().any()):
            self._zero_at.pop(place, None)
            return False
        return self._zero_at.setdefault(place, moment.step) != moment.step


def _is_left(module: nn.RNNBase, name: str, weight: Tensor) -> bool:
    """Whether the module has no such weight any more, and its forward goes on with a tensor of
    before. It reads no attribute: that may change a parametrized one.
    """
    if weight.grad_fn is not None or is_parametrized(module, name):
        return False
    return name not in module._parameters and name not in vars(module)  # pyright: ignore[reportPrivateUsage]


def _zero(call: RecurrentCall, name: str, layer: int, direction: int, moment: Moment) -> Event:
    where = f"layer {layer}{' (reverse)' if direction else ''}"
    through = f"in {call.module}, {where}" if call.shape.kind == "RNN" else f"by the gates of {call.module}, {where}"
    return moment.event(
        EventKind.NO_GRADIENT_THROUGH_TIME,
        module=call.module,
        layer=layer,
        direction=DIRECTIONS[direction],
        state="h",
        parameter=f"{call.module}.{name}",
        message=f"No gradient flows through time {through}: the recurrent weight {name} is all zeros.{OTHERWISE[call.shape.kind]}",
        remedy=_FILL,
    )


def _left(module: str, name: str, trained: bool, moment: Moment) -> Event:
    fate = "what is done to that weight now has no effect" if trained else "that one is no parameter of the model"
    return moment.event(
        EventKind.NOT_OBSERVED,
        module=module,
        parameter=f"{module}.{name}",
        message=f"{module} has no {name} any more, and its forward goes on with the tensor that it had before: {fate}.",
        remedy=_SET,
    )
