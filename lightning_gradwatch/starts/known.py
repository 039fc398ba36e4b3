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

from lightning_gradwatch.starts.layer_weights import GATES, LayerWeights


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
    apply: Callable[[LayerWeights, int], None]
    biased: bool = False
    relu: bool = False

    def misfit(self, layer: LayerWeights) -> str | None:
        """Why it is not for a layer; None where it is."""
        if layer.kind not in self.kinds:
            return f"it is for {' and '.join(self.kinds)}"
        if self.biased and layer.b_ih is None:
            return "it sets biases, and bias=False has none"
        if self.relu and not layer.relu:
            return 'it is for nonlinearity="relu"'
        return None


def pytorch(layer: LayerWeights, timesteps: int) -> None:
    """U(−1/√d, 1/√d), in recurrent weights and biases: what PyTorch begins with."""
    bound = 1 / math.sqrt(layer.hidden_size)
    for tensor in (layer.w_hh, layer.b_ih, layer.b_hh):
        if tensor is not None:
            tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound))


def gate_bias(layer: LayerWeights, timesteps: int) -> None:
    """b = ln T: σ(b)^T ≈ 1/e of the state outlasts the sequence. An LSTM's forget gate, a GRU's
    update gate (PyTorch's z keeps).
    """
    layer.set_bias(_KEEPS[layer.kind], math.log(max(timesteps, math.e)))


def chrono(layer: LayerWeights, timesteps: int) -> None:
    """b ~ ln U(1, T−1), one unit for each time scale up to T; an LSTM's input gate gets −b."""
    longest = max(timesteps - 1, 2)
    _open_and_shut(layer, torch.empty(layer.hidden_size).uniform_(1, longest).log())


def uniform_gates(layer: LayerWeights, timesteps: int) -> None:
    """b = σ⁻¹(u), u ~ U(1/d, 1−1/d): gates spread evenly; an LSTM's input gate gets −b."""
    margin = min(1 / layer.hidden_size, 0.25)
    _open_and_shut(layer, torch.empty(layer.hidden_size).uniform_(margin, 1 - margin).logit())


def orthogonal(layer: LayerWeights, timesteps: int) -> None:
    """Each gate's recurrent weights orthogonal: they turn the gradient and keep its norm."""
    for gate in GATES[layer.kind]:
        rows = layer.gate(layer.w_hh, gate)
        rows.copy_(nn.init.orthogonal_(torch.empty(rows.shape, dtype=torch.float64)))


def identity(layer: LayerWeights, timesteps: int) -> None:
    """W_hh = 1 and biases 0: a ReLU unit repeats itself."""
    nn.init.eye_(layer.w_hh)
    for bias in (layer.b_ih, layer.b_hh):
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


def keeping_bias(layer: LayerWeights) -> Tensor | None:
    """The bias of the gate that lets the old state through ``(hidden,)``; None where there is
    none.
    """
    name = _KEEPS.get(layer.kind)
    return None if name is None else layer.bias(name)


def _open_and_shut(layer: LayerWeights, bias: Tensor) -> None:
    layer.set_bias(_KEEPS[layer.kind], bias)
    if layer.kind == "LSTM":
        layer.set_bias("i", -bias)
