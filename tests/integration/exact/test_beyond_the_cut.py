"""What truncated backpropagation through time throws away, against autograd on the windows without the cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, load_run, watch
from tests.asserts import assert_identical
from tests.models import trainer

BATCH, STEPS, SIZE, HIDDEN = 4, 6, 3, 5
State = Any


def as_pair(state: State) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def detached(state: State) -> State:
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


def step_of(kind: str, x: Tensor, state: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, ...]:
    """PyTorch's own cell."""
    if kind == "LSTM":
        return torch._VF.lstm_cell(x, list(state), *weights)
    return ({"RNN": torch._VF.rnn_tanh_cell, "GRU": torch._VF.gru_cell}[kind](x, state[0], *weights),)


def uncut(
    module: nn.RNNBase, before: dict[str, Any], now: dict[str, Any], rows: list[int] | None = None
) -> list[float]:
    """By autograd, over both windows with the later one's weights: each layer's share of the gradient in the first.

    The state between them has the value that the later window truly began with, and its graph.
    """
    kind, layers = module.mode.partition("_")[0], module.num_layers
    weights = [
        [now["weights"][f"{n}_l{i}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")] for i in range(layers)
    ]
    states = [tuple(part[i].clone().requires_grad_() for part in as_pair(before["state"])) for i in range(layers)]
    made: list[list[Tensor]] = [[] for _ in range(layers)]
    output = []
    for t, x in enumerate(torch.cat([before["x"], now["x"]], 1).unbind(1)):
        for i in range(layers):
            if t == STEPS:
                own = (part[i] for part in as_pair(now["state"]))
                states[i] = tuple(part + (value - part).detach() for part, value in zip(states[i], own, strict=True))
            states[i] = step_of(kind, x, states[i], weights[i])
            made[i] += states[i]
            x = states[i][0]
        output.append(x)
    loss = torch.stack(output[STEPS:]).pow(2).mean()
    shares = []
    for own in made:
        gradients = torch.autograd.grad(loss, own, retain_graph=True)
        width = len(own) // (2 * STEPS)
        norms = torch.stack(
            [torch.cat(gradients[t * width : (t + 1) * width], -1).norm(dim=-1) for t in range(2 * STEPS)]
        )
        norms = norms if rows is None else norms[:, rows]
        share = (norms[:STEPS].sum(0) / norms.sum(0)).sort().values
        shares.append(float((share[(len(share) - 1) // 2] + share[len(share) // 2]) / 2))
    return shares


def trained(module: nn.RNNBase, folder: Path | None, lr: float = 0.5, every: int = 4, between: Any = detached):
    """What each of ten windows began with, and the watch."""
    optimizer, state, seen = torch.optim.SGD(module.parameters(), lr), None, []
    watching = watch(module, optimizer, every_n_steps=every, dirpath=folder, summary=False, max_sequences=None)
    with watching if folder is not None else torch.enable_grad() as w:
        for _ in range(10):
            x = torch.randn(BATCH, STEPS, SIZE, dtype=torch.float64)
            weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
            seen.append({"x": x, "weights": weights, "state": state})
            optimizer.zero_grad()
            output, state = module(x, state)
            output.pow(2).mean().backward()
            optimizer.step()
            state = between(state)
    return seen, w


def shares_of(run_dir: Any) -> dict[int, list[float | None]]:
    """By step, of each layer."""
    found: dict[int, list[float | None]] = {}
    for record in load_run(run_dir).profile_records:
        if record["primary"]:
            found.setdefault(record["step"], []).append(record["cut_share"])
    return found


def module_of(kind: str, layers: int = 1, **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    return getattr(nn, kind)(SIZE, HIDDEN, layers, batch_first=True, **options).double()


@pytest.mark.parametrize("lr", [0.0, 0.5])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_the_share_is_that_of_the_windows_without_the_cut(tmp_path, kind: str, layers: int, lr: float) -> None:
    """With the same weights in both windows, and with an optimizer step in between, to 1e-10."""
    module = module_of(kind, layers)
    seen, w = trained(module, tmp_path / "run", lr)
    shares = shares_of(w.run_dir)
    assert set(shares) == {0, 4, 8}
    assert shares[0] == [None] * layers
    for step in (4, 8):
        assert shares[step] == pytest.approx(uncut(module, seen[step - 1], seen[step]), rel=1e-10)


def test_sequences_that_begin_anew_are_left_out(tmp_path) -> None:
    """Where the state of some is set back to zero, the share is that of the others."""

    def between(state: Tensor) -> Tensor:
        return state.detach() * torch.tensor([1.0, 0.0, 1.0, 1.0]).double()[None, :, None]

    module = module_of("GRU")
    seen, w = trained(module, tmp_path / "run", between=between)
    assert shares_of(w.run_dir)[4] == pytest.approx(uncut(module, seen[3], seen[4], [0, 2, 3]), rel=1e-10)


@pytest.mark.parametrize(
    ("options", "between", "why"),
    [
        ({}, lambda state: torch.randn_like(state), None),
        ({}, lambda state: 0.5 * state.detach(), None),
        ({"bidirectional": True}, detached, "it goes in both directions"),
        ({"num_layers": 2, "dropout": 0.5}, detached, "it has dropout between its layers"),
    ],
)
def test_nothing_is_claimed_where_it_cannot_be_measured(
    tmp_path, options: dict[str, Any], between: Any, why: str | None
) -> None:
    """A state of somebody else's, one that was changed on the way, two directions, masks that nobody has."""
    layers = options.get("num_layers", 1)
    rest = {name: value for name, value in options.items() if name != "num_layers"}
    _, w = trained(module_of("GRU", layers, **rest), tmp_path / "run", between=between)
    assert {share for shares in shares_of(w.run_dir).values() for share in shares} == {None}
    assert "would lie there" not in w.verdicts[0].sentence
    carried = [record for record in load_run(w.run_dir).profile_records if record["step"]]
    assert {record["cut_unknown"] for record in carried} == {why}
    told = f"How much that cuts off cannot be measured: {why}." in w.verdicts[0].sentence
    assert told == (why is not None)


class Packs(nn.Module):
    """Sequences that end at different timesteps."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(SIZE, HIDDEN, batch_first=True)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([STEPS, STEPS, 3, 2])
        packed, state = self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True), state)
        return packed.data, state


class Halves(nn.Module):
    """Half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(SIZE, HIDDEN, batch_first=True)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            output, (h, _) = self.rnn(x, (state.bfloat16(), state.bfloat16()))
        return output.float(), h.float()


class Steps(nn.Module):
    """A cell, called once a timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRUCell(SIZE, HIDDEN)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        (h,), made = state, []
        for step in x.unbind(1):
            h = self.rnn(step, h)
            made.append(h)
        return torch.stack(made, 1), h[None]


class Pieces(nn.Module):
    """A fused module that is called twice a step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(SIZE, HIDDEN, batch_first=True)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        first, state = self.rnn(x[:, :3], state)
        second, state = self.rnn(x[:, 3:], state)
        return torch.cat([first, second], 1), state


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Packs, "its sequences end at different timesteps"),
        (Halves, "it is computed in half precision"),
        (Steps, "it is a cell in a loop"),
        (Pieces, "it is called several times a step"),
    ],
)
def test_why_it_cannot_be_measured_is_said(tmp_path, make: Any, why: str) -> None:
    """In the verdict and in the log, of a state that is carried over and detached."""
    model = make()
    optimizer, state = torch.optim.SGD(model.parameters(), 0.1), torch.zeros(1, BATCH, HIDDEN)
    with watch(model, optimizer, every_n_steps=2, dirpath=tmp_path / "run", summary=False) as w:
        for _ in range(6):
            optimizer.zero_grad()
            output, state = model(torch.randn(BATCH, STEPS, SIZE), state.detach())
            output.pow(2).mean().backward()
            optimizer.step()
    records = [record for record in load_run(w.run_dir).profile_records if record["step"]]
    assert {(record["cut_share"], record["cut_unknown"]) for record in records} == {(None, why)}
    assert f"How much that cuts off cannot be measured: {why}." in w.verdicts[0].sentence


@pytest.mark.parametrize("every", [1, 4])
def test_looking_further_back_changes_no_bit(tmp_path, every: int) -> None:
    """Weights and random stream are those of the bare loop."""
    ends = []
    for folder in (None, tmp_path / "run"):
        module = module_of("LSTM", 2)
        trained(module, folder, every=every)
        ends.append((dict(module.state_dict()), torch.get_rng_state()))
    assert_identical(*ends)


class Carries(pl.LightningModule):
    """Carries its state from batch to batch, in automatic or manual optimization."""

    def __init__(self, automatic: bool) -> None:
        super().__init__()
        self.rnn, self.state, self.automatic_optimization = module_of("LSTM"), None, automatic
        self.kept: list[dict[str, Any]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        weights = {name: value.detach().clone() for name, value in self.rnn.state_dict().items()}
        self.kept.append({"x": batch, "weights": weights, "state": self.state})
        output, state = self.rnn(batch, self.state)
        self.state, loss = detached(state), output.pow(2).mean()
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.5)


@pytest.mark.parametrize("automatic", [True, False])
def test_a_trainer_tells_it_in_the_verdict_and_the_log(tmp_path, automatic: bool) -> None:
    """The sentence names the share, the record has it, and it is autograd's."""
    model, watching = Carries(automatic), GradWatch(every_n_steps=4, dirpath=tmp_path / "run", max_sequences=None)
    data = torch.utils.data.DataLoader(torch.randn(40, STEPS, SIZE, dtype=torch.float64), BATCH)
    trainer(tmp_path, callbacks=[watching], max_steps=10).fit(model, data)
    shares = shares_of(watching.run_dir)
    assert shares[8] == pytest.approx(uncut(model.rnn, model.kept[7], model.kept[8]), rel=1e-10)
    (verdict,) = watching.verdicts
    assert verdict.cut_share is not None
    assert f"{100 * verdict.cut_share:.2g} % of the gradient over both would lie there" in verdict.sentence
    assert load_run(watching.run_dir).meta["truncation"] == [verdict.truncation()]
    assert ("Longer segments would keep more of it." in verdict.sentence) == (verdict.cut_share >= 0.1)
