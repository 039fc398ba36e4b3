"""Where an episode ends within a batch, lags are counted within the episodes, sequence by sequence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_gradwatch import watch
from tests.integration.exact.records import records

BATCH, TIME, WIDTH, HIDDEN = 4, 8, 3, 5

Reset = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From a state ``(batch, hidden)``, which sequences begin anew ``(batch, 1)``, and the state that an episode begins with."""

RESETS: dict[str, Reset] = {
    "multiplied": lambda h, anew, first: h * (~anew).to(h.dtype),
    "where": lambda h, anew, first: torch.where(anew, torch.zeros_like(h), h),
    "masked_fill": lambda h, anew, first: h.masked_fill(anew, 0.0),
    "learned": lambda h, anew, first: torch.where(anew, first, h),
    "only where needed": lambda h, anew, first: h * (~anew).to(h.dtype) if bool(anew.any()) else h,
}


class Agent(nn.Module):
    """A recurrence that is called once a timestep, with resets in between.

    Args:
        kind: a cell or a fused module of PyTorch's.
    """

    def __init__(self, kind: str, reset: Reset) -> None:
        super().__init__()
        self.rnn, self.fused = getattr(nn, kind)(WIDTH, HIDDEN), not kind.endswith("Cell")
        self.several, self.reset = "LSTM" in kind, reset
        self.first = nn.Parameter(torch.randn(HIDDEN))
        self.states: list[tuple[Tensor, ...]] = []

    def forward(self, x: Tensor, anew: Tensor) -> Tensor:
        begin = self.first.expand(BATCH, HIDDEN) if self.reset is RESETS["learned"] else x.new_zeros(BATCH, HIDDEN)
        states: tuple[Tensor, ...] = (begin,) * (1 + self.several)
        self.states = []
        for t in range(TIME):
            if t:
                states = tuple(self.reset(state, anew[:, t, None], begin) for state in states)
            states = self.step(x[:, t], states)
            self.states.append(states)
        return torch.stack([state[0] for state in self.states], 1)

    def step(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given: Any = tuple(state[None] for state in states) if self.fused else states
        made: Any = self.rnn(x[None] if self.fused else x, given if self.several else given[0])
        made = made[1] if self.fused else made
        made = made if self.several else (made,)
        return tuple(state[0] for state in made) if self.fused else made


def true_lags(agent: Agent, x: Tensor, anew: Tensor) -> list[float]:
    """By autograd alone, of PyTorch's cell: r_k of the last timestep's loss for each sequence, as far as its episode goes back; the
    median of those.
    """
    kind = type(agent.rnn).__name__
    twin = Agent(kind if kind.endswith("Cell") else f"{kind}Cell", agent.reset).double()
    twin.load_state_dict({name.removesuffix("_l0"): weight for name, weight in agent.state_dict().items()})
    if kind.startswith("RNN"):
        twin.rnn.nonlinearity = agent.rnn.nonlinearity
    agent, output = twin, twin(x, anew)
    flat = [state for states in agent.states for state in states]
    found = torch.autograd.grad(output[:, -1].pow(2).sum(), flat, allow_unused=True)
    width = 1 + agent.several
    curves = np.full((BATCH, TIME), np.nan)
    for j in range(BATCH):
        begins = max([0, *(t for t in range(1, TIME) if anew[j, t])])
        for k in range(TIME - begins):
            own = [g[j] for g in found[(TIME - 1 - k) * width :][:width] if g is not None]
            curves[j, k] = float(torch.cat(own).norm()) if own else 0.0
    curves /= curves[:, :1]
    longest = int(np.isfinite(curves).any(0).sum())
    return [float(v) for v in np.nanmedian(curves[:, :longest], axis=0)]


def measured(agent: Agent, x: Tensor, anew: Tensor, folder: Path, everywhere: bool = False) -> dict[str, Any]:
    optimizer = torch.optim.SGD(agent.parameters(), 0.0)
    with watch(agent, optimizer, dirpath=folder, max_sequences=None, summary=False) as w:
        output = agent(x, anew)
        (output if everywhere else output[:, -1]).pow(2).sum().backward()
        optimizer.step()
    return next(record for record in records(w.run_dir) if record["primary"])


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell", "RNNCell", "GRU", "LSTM"])
def test_lags_end_where_the_episode_begins(kind: str, reset: str, everywhere: bool, tmp_path: Path) -> None:
    """As autograd has them within each sequence's own episode, to 1e-10, however the state is reset and wherever there is a loss."""
    agent = Agent(kind, RESETS[reset]).double()
    anew = torch.zeros(BATCH, TIME, dtype=torch.bool)
    anew[0, 3] = anew[1, 6] = anew[2, 2] = anew[2, 5] = True
    x = torch.randn(BATCH, TIME, WIDTH, dtype=torch.float64)
    record = measured(agent, x, anew, tmp_path / "run", everywhere)
    assert record["exact"], record["inexact_reason"]
    assert record["lagged"] == pytest.approx(true_lags(agent, x, anew), rel=1e-10)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, BATCH - 1), st.integers(1, TIME - 1)), max_size=8),
    st.sampled_from(["GRUCell", "LSTM"]),
)
def test_wherever_the_episodes_end(tmp_path_factory: Any, ends: list[tuple[int, int]], kind: str) -> None:
    """In any sequences, at any timesteps, the last one and all at once among them."""
    agent = Agent(kind, RESETS["multiplied"]).double()
    anew = torch.zeros(BATCH, TIME, dtype=torch.bool)
    for sequence, t in ends:
        anew[sequence, t] = True
    x = torch.randn(BATCH, TIME, WIDTH, dtype=torch.float64)
    record = measured(agent, x, anew, tmp_path_factory.mktemp("run"))
    assert record["lagged"] == pytest.approx(true_lags(agent, x, anew), rel=1e-10)


@pytest.mark.parametrize("kind", ["GRUCell", "GRU"])
def test_the_horizon_is_not_cut_short_by_other_episodes(kind: str, tmp_path: Path) -> None:
    """A recurrence that keeps its gradient keeps it, though half of the batch begins anew just before the end."""
    agent = Agent(kind, RESETS["multiplied"]).double()
    with torch.no_grad():
        for name, weight in agent.rnn.named_parameters():
            if "bias_hh" in name:
                weight[HIDDEN : 2 * HIDDEN] = 8.0  # the update gate: the state is kept
    anew = torch.zeros(BATCH, TIME, dtype=torch.bool)
    anew[:3, TIME - 2] = True
    record = measured(agent, torch.randn(BATCH, TIME, WIDTH, dtype=torch.float64), anew, tmp_path / "run")
    assert (record["horizon"], record["horizon_censored"]) == (TIME - 1, True)


def test_a_state_that_vanishes_is_no_reset(tmp_path: Path) -> None:
    """Dead units send nothing back either, and their lags are 0: the state after them is not that of a beginning."""
    agent = Agent("RNNCell", RESETS["multiplied"]).double()
    agent.rnn.nonlinearity = "relu"
    with torch.no_grad():
        agent.rnn.weight_hh.copy_(torch.eye(HIDDEN))
        agent.rnn.weight_ih.fill_(1.0)
    x, anew = torch.ones(BATCH, TIME, WIDTH, dtype=torch.float64), torch.zeros(BATCH, TIME, dtype=torch.bool)
    x[:, 3] = -100.0  # no unit is left alive
    record = measured(agent, x, anew, tmp_path / "run")
    assert len(record["lagged"]) == TIME
    assert record["lagged"] == pytest.approx(true_lags(agent, x, anew))
    assert 0.0 in record["lagged"]


@pytest.mark.parametrize("kind", ["GRUCell", "GRU"])
def test_a_relu_between_the_timesteps_is_no_reset(kind: str, tmp_path: Path) -> None:
    """It may make a state of zeros, and cuts the gradient: that is the network's own doing, and counts."""
    agent = Agent(kind, lambda h, anew, first: torch.relu(h - 10.0 * anew)).double()
    anew = torch.zeros(BATCH, TIME, dtype=torch.bool)
    anew[:3, TIME - 2] = True
    record = measured(agent, torch.randn(BATCH, TIME, WIDTH, dtype=torch.float64), anew, tmp_path / "run")
    assert record["horizon"] == 2
    assert record["lagged"][2:] == [0.0] * (TIME - 2)
