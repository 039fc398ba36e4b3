"""Chains of uses are counted as the graph has them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_gradwatch.recurrent.graph.rounds import uses_in_a_row, uses_that_join
from lightning_gradwatch.recurrent.graph.topology import Topology
from lightning_gradwatch.recurrent.graph.uses import uses_of_parameters, uses_of_slices


def graph_of(loss: Tensor) -> Topology:
    graph = Topology.of(loss, 100_000)
    assert graph is not None
    return graph


@given(timesteps=st.integers(2, 40), twice=st.booleans(), normed=st.booleans())
def test_a_weight_is_used_once_a_timestep(timesteps: int, twice: bool, normed: bool) -> None:
    """Of a recurrence written in products, the recurrent weight lies on one way as often as it is applied, the input's weight once."""
    w, u = nn.Parameter(torch.eye(3)), nn.Parameter(torch.eye(3))
    h = torch.zeros(2, 3)
    for _ in range(timesteps):
        h = torch.tanh(torch.ones(2, 3) @ w.t() + h @ u)
        h = torch.relu(h @ u) if twice else h
        h = h / h.norm(dim=1, keepdim=True) if normed else h
    graph = graph_of(h.sum())
    found = {id(uses.leaf): len(uses_in_a_row(graph, uses.ranks, ())) for uses in uses_of_parameters(graph)}
    assert found == {id(w): 1, id(u): timesteps * (1 + twice)}


@given(
    timesteps=st.integers(1, 30),
    by=st.sampled_from(["select", "select of a slice", "unbind", "slice", "split"]),
    share=st.floats(0.1, 0.9),
)
def test_slices_join_one_by_one(timesteps: int, by: str, share: float) -> None:
    """Of an average that moves over the slices of a tensor, every slice joins, however the tensor is taken apart."""
    z = nn.Parameter(torch.randn(2, timesteps, 3)).exp() * torch.ones(1)
    longer = torch.cat([z[:, :1], z], 1)
    parts = {
        "select": lambda: [z[:, t] for t in range(timesteps)],
        "select of a slice": lambda: [longer[:, 1:][:, t] for t in range(timesteps)],
        "unbind": lambda: z.unbind(1),
        "slice": lambda: [z[:, t : t + 1].squeeze(1) for t in range(timesteps)],
        "split": lambda: [part.squeeze(1) for part in z.split(1, 1)],
    }
    h = torch.zeros(2, 3)
    for part in parts[by]():
        h = share * h + (1 - share) * part
    graph = graph_of(h.sum())
    lengths = [len(uses_that_join(graph, uses.ranks, ())) for uses in uses_of_slices(graph)]
    assert max(lengths, default=1) == timesteps or timesteps == 1


@given(parts=st.integers(3, 20), kind=st.sampled_from(["sum", "cat", "buffer", "largest"]))
def test_gathering_is_no_chain(parts: int, kind: str) -> None:
    """What is summed, listed or written into a buffer one by one does not hang on what was there before."""
    layer, total = nn.Linear(3, 3), torch.zeros(2, 3)
    out = torch.zeros(2, parts, 3)
    for i in range(parts):
        made = layer(torch.randn(2, 3))
        if kind == "buffer":
            out[:, i] = made
        else:
            total = {"sum": torch.add, "cat": lambda a, b: torch.cat([a, b]), "largest": torch.maximum}[kind](
                total, made
            )
    graph = graph_of(out.sum() if kind == "buffer" else total.sum())
    for uses in uses_of_parameters(graph):
        assert len(uses_in_a_row(graph, uses.ranks, ())) == 1
        assert len(uses_that_join(graph, uses.ranks, ())) <= 2


def test_a_barrier_ends_a_way() -> None:
    """Ways that lead through a state that is measured are left out."""
    u, h, states = nn.Parameter(torch.eye(3)), torch.ones(2, 3), []
    for _ in range(9):
        h = torch.tanh(h @ u)
        states.append(h.grad_fn)
    graph = graph_of(h.sum())
    (uses,) = uses_of_parameters(graph)
    assert len(uses_in_a_row(graph, uses.ranks, graph.places(states, ()))) == 1
    assert len(uses_in_a_row(graph, uses.ranks, graph.places(states[3:4], ()))) == 5
    assert len(uses_in_a_row(graph, uses.ranks, graph.places((), [states[6]._sequence_nr()]))) == 7


def test_a_large_graph_is_not_walked_to_its_end() -> None:
    """More nodes than asked for are none at all."""
    h = nn.Parameter(torch.ones(3))
    for _ in range(50):
        h = h * 2
    assert Topology.of(h.sum(), 40) is None
