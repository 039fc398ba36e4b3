"""torchrl's recurrent modules, trained in a loop as its users train them, with episodes that end within a batch."""

from __future__ import annotations

import multiprocessing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import EventKind, load_run, watch
from tests.asserts import assert_identical

BATCH, TIME, WIDTH, HIDDEN = 4, 9, 3, 5
RESETS = {"none": [], "some": [(0, 4), (2, 7), (3, 2), (3, 5)], "all at once": [(b, 3) for b in range(BATCH)]}


def package(name: str) -> Any:
    """A package of torchrl's. It would have every process of the tests begin as torchrl's do."""
    method = multiprocessing.get_start_method(allow_none=True)
    try:
        return pytest.importorskip(name, exc_type=ImportError)
    finally:
        multiprocessing.set_start_method(method, force=True)


def policy(kind: str, layers: int, **options: Any) -> nn.Module:
    """Embedding, memory and head, in double precision."""
    modules, tensordict = package("torchrl.modules"), package("tensordict.nn")
    memory = getattr(modules, f"{kind}Module")(
        input_size=WIDTH,
        hidden_size=HIDDEN,
        num_layers=layers,
        in_key="embedded",
        out_key="remembered",
        default_recurrent_mode=True,
        **options,
    )
    return tensordict.TensorDictSequential(
        tensordict.TensorDictModule(nn.Linear(2, WIDTH), ["observation"], ["embedded"]),
        memory,
        tensordict.TensorDictModule(nn.Linear(HIDDEN, 1), ["remembered"], ["value"]),
    ).double()


def rollout(resets: str) -> Any:
    """A batch whose episodes begin anew at these sequences and timesteps."""
    begins = torch.zeros(BATCH, TIME, 1, dtype=torch.bool)
    begins[:, 0] = True
    for sequence, timestep in RESETS[resets]:
        begins[sequence, timestep] = True
    seen = torch.randn(BATCH, TIME, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return package("tensordict").TensorDict({"observation": seen, "is_init": begins}, batch_size=[BATCH, TIME])


def loss_of(model: nn.Module, resets: str) -> Tensor:
    """Of every timestep."""
    return model(rollout(resets))["value"].pow(2).sum()


def train(model: nn.Module, resets: str) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model, resets).backward()
        optimizer.step()


def watched(model: nn.Module, resets: str, folder: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    with watch(
        model, every_n_steps=1, max_sequences=None, keep_sequences=True, anchors=1, dirpath=folder, summary=False
    ) as w:
        train(model, resets)
    assert w.run_dir is not None
    return load_run(w.run_dir).profile_records, w.events


def episodes(begins: Tensor) -> list[tuple[int, int, int]]:
    """Sequence, first timestep and the one after the last, in torchrl's own order."""
    found: list[tuple[int, int, int]] = []
    for sequence in range(BATCH):
        starts = [*torch.nonzero(begins[sequence, :, 0]).flatten().tolist(), TIME]
        found += [(sequence, start, stop) for start, stop in pairwise(starts)]
    return found


def truth(model: nn.Module, kind: str, layers: int, resets: str) -> tuple[list[list[list[float]]], np.ndarray]:
    """By autograd, of PyTorch's own cells run over each episode by itself.

    Returns:
        Of each layer the norms of ∂loss/∂h, by episode and timestep; and of the top layer the lagged curve of each episode's last
        timestep, nan past its beginning.
    """
    embed, memory, head = model.module
    weights = dict(getattr(memory, kind.lower()).named_parameters())
    cells = [getattr(nn, f"{kind}Cell")(HIDDEN if layer else WIDTH, HIDDEN).double() for layer in range(layers)]
    for layer, cell in enumerate(cells):
        cell.load_state_dict({name: weights[f"{name}_l{layer}"] for name, _ in cell.named_parameters()})
    data = rollout(resets)
    of_episodes = episodes(data["is_init"])
    totals: list[list[list[float]]] = [[] for _ in cells]
    lagged = np.full((len(of_episodes), TIME), np.nan)
    for row, (sequence, start, stop) in enumerate(of_episodes):
        states: list[list[tuple[Tensor, ...]]] = [[] for _ in cells]
        loss, last = torch.zeros((), dtype=torch.float64), torch.zeros(())
        for x in embed.module(data["observation"][sequence, start:stop]):
            below = x[None]
            for layer, cell in enumerate(cells):
                before = states[layer][-1] if states[layer] else (below.new_zeros(1, HIDDEN),) * (1 + (kind == "LSTM"))
                made = cell(below, before if kind == "LSTM" else before[0])
                states[layer].append(made if kind == "LSTM" else (made,))
                below = states[layer][-1][0]
            last = head.module(below).pow(2).sum()
            loss = loss + last
        for layer in range(layers):
            gradients = torch.autograd.grad(loss, [state[0] for state in states[layer]], retain_graph=True)
            totals[layer].append([float(gradient.norm()) for gradient in gradients])
        flat = [state for made in states[-1] for state in made]
        back = torch.autograd.grad(last, flat, allow_unused=True)
        width = len(states[-1][0])
        joint = [
            float(torch.cat([g for g in back[at : at + width] if g is not None]).norm())
            for at in range(0, len(back), width)
        ]
        lagged[row, : stop - start] = np.array(joint[::-1]) / joint[-1]
    return totals, lagged


@pytest.mark.parametrize("python_based", [False, True], ids=["PyTorch's", "in Python"])
@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_episodes_are_measured_as_autograd_has_them(
    kind: str, layers: int, resets: str, python_based: bool, tmp_path: Path
) -> None:
    """To 1e-10, each episode a sequence of its own, its lags counted within it: by PyTorch's operator and by torchrl's loop."""
    model = policy(kind, layers, python_based=python_based)
    totals, lagged = truth(model, kind, layers, resets)
    records, events = watched(model, resets, tmp_path)
    assert not [event for event in events if event.kind == EventKind.NOT_OBSERVED]
    of_h = [record for record in records if record["step"] == 0 and record["state"] == "h"]
    assert [record["layer"] for record in of_h] == list(range(layers))
    for record in of_h:
        assert record["exact"], record["inexact_reason"]
        for found, true in zip(record["total_by_sequence"], totals[record["layer"]], strict=True):
            assert found == pytest.approx(true, rel=1e-10)
    longest = of_h[-1]["timesteps"]
    assert of_h[-1]["lagged"] == pytest.approx(np.nanmedian(lagged[:, :longest], axis=0), rel=1e-10)


@pytest.mark.parametrize("python_based", [False, True], ids=["PyTorch's", "in Python"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_training_is_the_same_to_the_bit(kind: str, python_based: bool, tmp_path: Path) -> None:
    """Watched and bare."""
    trained = []
    for watching in (False, True):
        torch.manual_seed(0)
        model = policy(kind, 2, python_based=python_based)
        if watching:
            watched(model, "some", tmp_path)
        else:
            train(model, "some")
        trained.append((model.state_dict(), torch.get_rng_state()))
    assert_identical(*trained)


@pytest.mark.slow
def test_a_scan_is_told_with_what_helps(tmp_path: Path) -> None:
    """It computes with the weights of a module that nobody calls; with the backend that the note names it is measured."""
    package("hoptorch")
    _, events = watched(policy("LSTM", 1, recurrent_backend="scan"), "some", tmp_path / "scan")
    (told,) = [event for event in events if event.kind == EventKind.NOT_OBSERVED]
    assert told.module == "module.1.lstm"
    assert "other code computed with them" in told.message
    assert 'recurrent_backend="pad"' in told.remedy
    records, events = watched(policy("LSTM", 1, recurrent_backend="pad"), "some", tmp_path / "pad")
    assert {record["module"] for record in records} == {"module.1.lstm"}
    assert not [event for event in events if event.kind == EventKind.NOT_OBSERVED]


def test_a_loss_past_an_episode_s_end_is_told(tmp_path: Path) -> None:
    """There the output is that of the last timestep again: what it is sent belongs to that one, and is left out."""
    package("torchrl.modules")
    rnn_module = package("torchrl.modules.tensordict_module.rnn")
    rnn = rnn_module.LSTM(WIDTH, HIDDEN, batch_first=True).double()
    mask = torch.arange(TIME) < torch.tensor([[TIME], [4]])
    x, zeros = torch.randn(2, TIME, WIDTH, dtype=torch.float64), torch.zeros(1, 2, HIDDEN, dtype=torch.float64)
    optimizer = torch.optim.SGD(rnn.parameters(), 0.0)
    exact = []
    for name, weight in (("within", mask.double()), ("beyond", torch.ones(2, TIME).double())):
        with watch(nn.ModuleDict({"rnn": rnn}), optimizer, dirpath=tmp_path / name, summary=False) as w:
            output, _ = rnn(x, (zeros, zeros), mask=mask)
            (output.pow(2).sum(-1) * weight).sum().backward()
            optimizer.step()
        assert w.run_dir is not None
        exact += [(record["exact"], record["inexact_reason"]) for record in load_run(w.run_dir).profile_records[:1]]
    assert exact[0] == (True, None)
    assert exact[1][0] is False
    assert "past the end of a sequence" in exact[1][1]
