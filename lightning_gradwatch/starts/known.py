"""Published initialisations of recurrent weights, one function each.

Each writes into the weights of one layer and direction; biases are set as sums, since PyTorch
adds two. ``d``: hidden size, ``T``: timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_gradwatch.starts.places import GATES, Place


@dataclass(frozen=True, slots=True)
class Start:
    """One initialisation.

    Args:
        name: by which it is asked for.
        kinds: of recurrent modules that it is for.
        source: where it was published.
        apply: writes it, for sequences of so many timesteps.
        biased: whether it sets biases, so that a module needs some.
        relu: whether it is for ``nonlinearity="relu"`` alone.
    """

    name: str
    kinds: Collection[str]
    source: str
    apply: Callable[[Place, int], None]
    biased: bool = False
    relu: bool = False

    def misfit(self, place: Place) -> str | None:
        """Why it is not for a layer; None where it is."""
        if place.kind not in self.kinds:
            return f"it is for {' and '.join(self.kinds)}"
        if self.biased and place.b_ih is None:
            return "it sets biases, and bias=False has none"
        if self.relu and not place.relu:
            return 'it is for nonlinearity="relu"'
        return None


def pytorch(place: Place, timesteps: int) -> None:
    """U(−1/√d, 1/√d), in recurrent weights and biases: what PyTorch begins with."""
    bound = 1 / math.sqrt(place.hidden_size)
    for tensor in (place.w_hh, place.b_ih, place.b_hh):
        if tensor is not None:
            tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound))


def gate_bias(place: Place, timesteps: int) -> None:
    """b = ln T: σ(b)^T ≈ 1/e of the state outlasts the sequence. An LSTM's forget gate, a GRU's
    update gate (PyTorch's z keeps).
    """
    place.set_bias(_KEEPS[place.kind], math.log(max(timesteps, math.e)))


def chrono(place: Place, timesteps: int) -> None:
    """b ~ ln U(1, T−1), one unit for each time scale up to T; an LSTM's input gate gets −b."""
    longest = max(timesteps - 1, 2)
    _open_and_shut(place, torch.empty(place.hidden_size).uniform_(1, longest).log())


def uniform_gates(place: Place, timesteps: int) -> None:
    """b = σ⁻¹(u), u ~ U(1/d, 1−1/d): gates spread evenly; an LSTM's input gate gets −b."""
    margin = min(1 / place.hidden_size, 0.25)
    _open_and_shut(place, torch.empty(place.hidden_size).uniform_(margin, 1 - margin).logit())


def orthogonal(place: Place, timesteps: int) -> None:
    """Each gate's recurrent weights orthogonal: they turn the gradient and keep its norm."""
    for gate in GATES[place.kind]:
        rows = place.gate(place.w_hh, gate)
        rows.copy_(nn.init.orthogonal_(torch.empty(rows.shape, dtype=torch.float64)))


def identity(place: Place, timesteps: int) -> None:
    """W_hh = 1 and biases 0: a ReLU unit repeats itself."""
    nn.init.eye_(place.w_hh)
    for bias in (place.b_ih, place.b_hh):
        if bias is not None:
            bias.zero_()


_KEEPS = {"LSTM": "f", "GRU": "z"}
"""Kind → the gate that lets the old state through."""

_GATED = tuple(_KEEPS)

STARTS = {
    start.name: start
    for start in (
        Start("pytorch", tuple(GATES), "PyTorch's reset_parameters", pytorch),
        Start("gate_bias", _GATED, "Gers et al. 2000; Jozefowicz et al. 2015", gate_bias, biased=True),
        Start("chrono", _GATED, "Tallec and Ollivier 2018, arXiv 1804.11188", chrono, biased=True),
        Start("uniform_gates", _GATED, "Gu et al. 2020, arXiv 1910.09890 (UGI)", uniform_gates, biased=True),
        Start("orthogonal", tuple(GATES), "Saxe et al. 2014, arXiv 1312.6120; Henaff et al. 2016", orthogonal),
        Start("identity", ("RNN",), "Le et al. 2015, arXiv 1504.00941 (IRNN)", identity, relu=True),
    )
}
"""Name → initialisation."""


def keeping_bias(place: Place) -> Tensor | None:
    """The bias of the gate that lets the old state through ``(hidden,)``; None where there is
    none.
    """
    name = _KEEPS.get(place.kind)
    return None if name is None else place.bias(name)


def _open_and_shut(place: Place, bias: Tensor) -> None:
    place.set_bias(_KEEPS[place.kind], bias)
    if place.kind == "LSTM":
        place.set_bias("i", -bias)
