"""Recurrent models, batches and losses that every exact measurement must get right."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

LOSSES = ("all", "last", "h_n", "c_n", "one", "everything")


@dataclass(frozen=True)
class Case:
    """One forward and loss of one fused module."""

    mode: str = "LSTM"
    input_size: int = 3
    hidden_size: int = 4
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    proj_size: int = 0
    dropout: float = 0.0
    layout: str = "time_major"
    lengths: tuple[int, ...] = (5, 5, 5)
    initial_state: bool = False
    loss: str = "all"
    dtype: torch.dtype = torch.float64
    seed: int = 0
    gain: float = 1.0

    def module(self) -> nn.RNNBase:
        torch.manual_seed(self.seed)
        options = {
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "bias": self.bias,
            "dropout": self.dropout,
            "batch_first": self.layout.startswith("batch_first"),
            "dtype": self.dtype,
        }
        if self.mode == "LSTM":
            module = nn.LSTM(self.input_size, self.hidden_size, proj_size=self.proj_size, **options)
        elif self.mode == "GRU":
            module = nn.GRU(self.input_size, self.hidden_size, **options)
        else:
            nonlinearity = self.mode.removeprefix("RNN_").lower()
            module = nn.RNN(self.input_size, self.hidden_size, nonlinearity=nonlinearity, **options)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "weight_hh" in name:
                    parameter.mul_(self.gain)
        return module

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def sequences(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return [torch.randn(t, self.input_size, generator=generator, dtype=self.dtype) for t in self.lengths]

    def states(self) -> tuple[Tensor | None, Tensor | None]:
        """h0 and c0, ``(layers·directions, batch, width)``."""
        if not self.initial_state:
            return None, None
        generator = torch.Generator().manual_seed(self.seed + 2)
        rows = self.num_layers * self.directions
        make = lambda width: torch.randn(rows, len(self.lengths), width, generator=generator, dtype=self.dtype)  # noqa: E731
        return make(self.proj_size or self.hidden_size), make(self.hidden_size) if self.mode == "LSTM" else None

    def inputs(self, sequences: list[Tensor] | None = None, states: tuple[Tensor | None, Tensor | None] | None = None):
        """What the module is called with; the case's own, or given ones."""
        sequences = self.sequences() if sequences is None else sequences
        h0, c0 = self.states() if states is None else states
        if self.layout == "packed_sorted":
            x = pack_sequence(sequences, enforce_sorted=True)
        elif self.layout == "packed":
            x = pack_sequence(sequences, enforce_sorted=False)
        elif self.layout.endswith("unbatched"):
            x = sequences[0]
            h0, c0 = (None if s is None else s[:, 0] for s in (h0, c0))
        else:
            x = torch.stack(sequences, 0 if self.layout == "batch_first" else 1)
        if h0 is None:
            return (x,)
        return x, (h0 if c0 is None else (h0, c0))

    def output_of(self, output, sequence: int) -> Tensor:
        """One sequence's part of the module's output, ``(time, width)``."""
        if isinstance(output, PackedSequence):
            padded, _ = nn.utils.rnn.pad_packed_sequence(output)
            return padded[: self.lengths[sequence], sequence]
        if self.layout.endswith("unbatched"):
            return output
        return output[sequence] if self.layout == "batch_first" else output[:, sequence]

    def state_of(self, state: Tensor | None, sequence: int) -> Tensor | None:
        """One sequence's part of h_n or c_n, ``(layers·directions, width)``."""
        return state if state is None or self.layout.endswith("unbatched") else state[:, sequence]

    def loss_of(self, output, h_n, c_n) -> Tensor:
        """The loss of one sequence.

        Args:
            output: timestep → ``(width,)``; h_n, c_n: ``[layer·direction] → (width,)``; c_n None without a cell state.
        """
        generator = torch.Generator().manual_seed(self.seed + 3)

        def weigh(value: Tensor) -> Tensor:
            weight = torch.randn(value.shape, generator=generator, dtype=self.dtype)
            return (value * weight).sum() + 0.5 * (value * value).sum()

        loss = torch.zeros((), dtype=self.dtype)
        if self.loss in ("all", "everything"):
            loss = loss + sum(weigh(value) for value in output)
        if self.loss == "last":
            loss = loss + weigh(output[len(output) - 1])
        if self.loss == "one":
            loss = loss + weigh(output[len(output) // 2])
        if self.loss in ("h_n", "everything"):
            loss = loss + sum(weigh(value) for value in h_n)
        if self.loss in ("c_n", "everything") and c_n is not None:
            loss = loss + sum(weigh(value) for value in c_n)
        return loss


@st.composite
def cases(draw, dtype: torch.dtype = torch.float64) -> Case:
    """Cases over everything that is claimed to be exact."""
    mode = draw(st.sampled_from(["RNN_TANH", "RNN_RELU", "LSTM", "GRU"]))
    layout = draw(
        st.sampled_from(["time_major", "batch_first", "unbatched", "batch_first_unbatched", "packed_sorted", "packed"])
    )
    batch = 1 if layout.endswith("unbatched") else draw(st.integers(1, 4))
    longest = draw(st.integers(1, 9))
    if layout.startswith("packed"):
        lengths = draw(st.lists(st.integers(1, longest), min_size=batch, max_size=batch))
        lengths = sorted(lengths, reverse=True) if layout == "packed_sorted" else lengths
    else:
        lengths = [longest] * batch
    layers = draw(st.integers(1, 3))
    hidden = draw(st.integers(2, 5))
    case = Case(
        mode=mode,
        input_size=draw(st.integers(1, 4)),
        hidden_size=hidden,
        num_layers=layers,
        bidirectional=draw(st.booleans()),
        bias=draw(st.booleans()),
        proj_size=draw(st.integers(0, hidden - 1)) if mode == "LSTM" else 0,
        dropout=draw(st.sampled_from([0.0, 0.4])) if layers > 1 else 0.0,
        layout=layout,
        lengths=tuple(lengths),
        initial_state=draw(st.booleans()),
        loss=draw(st.sampled_from(LOSSES)),
        dtype=dtype,
        seed=draw(st.integers(0, 2**20)),
        # Recurrent weights three times PyTorch's own make rounding grow from step to step, in autograd as in the sweep.
        gain=draw(st.sampled_from([0.3, 1.0, 3.0] if dtype == torch.float64 else [0.3, 1.0])),
    )
    return case if mode == "LSTM" or case.loss != "c_n" else replace(case, loss="h_n")
