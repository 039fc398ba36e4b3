"""Hooks of the user's own that change what a recurrent module returns: gradients are those of what the operator made, or told inexact."""

# Over 300 lines: one table of hooks, tried on every kind of module.
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import AdaptiveClip, GradWatch, load_run
from tests.models import trainer
from tests.oracles import Unrolled, gradients, unroll
from tests.versions import needs_torch

LENGTHS = (4, 6, 3)
NO_KEYWORDS = "shows global hooks no keyword arguments, so that GradWatch has none of its own before them"
KINDS = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}
Hooked = Callable[[nn.Module], Any]


class StandIn(nn.Module):
    """A fused module run by PyTorch's own cells, each sequence by itself. ``made`` holds their states in the graph."""

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self._module = [module]  # hidden from named_parameters
        self.made: list[Unrolled] = []

    def forward(self, source: Any, hx: Any = None) -> tuple[Any, Any]:
        module = self._module[0]
        packed = isinstance(source, PackedSequence)
        x, lengths = pad_packed_sequence(source, True) if packed else (source, [source.shape[1]] * len(source))
        h0, c0 = hx if isinstance(hx, tuple) else (hx, None)
        outputs = []
        for j, steps in enumerate(map(int, lengths)):
            one = unroll(module, x[j, :steps], *(None if s is None else s[:, j] for s in (h0, c0)))
            self.made.append(one)
            rows = torch.cat(one.output)
            outputs.append(torch.cat([rows, rows.new_zeros(x.shape[1] - steps, rows.shape[1])]))
        output: Any = torch.stack(outputs)
        if packed:
            output = pack_padded_sequence(output, lengths, batch_first=True, enforce_sorted=False)
        h_n = torch.stack([torch.cat(one.h_n) for one in self.made], 1)
        c_n = torch.stack([torch.cat(one.c_n) for one in self.made], 1) if module.mode == "LSTM" else None
        return output, h_n if c_n is None else (h_n, c_n)


class Model(pl.LightningModule):
    """The loss is made of the output, and of the final states."""

    def __init__(self, rnn: nn.Module, packed: bool = False, late: Hooked | None = None) -> None:
        super().__init__()
        self.rnn, self.packed, self.late = rnn, packed, late

    def on_train_start(self) -> None:
        if self.late is not None:  # callbacks have put their hooks on by now
            self.late(self.rnn)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        source: Any = batch[0]
        if self.packed:
            source = pack_padded_sequence(source, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
        output, state = self.rnn(source)
        output = output.data if isinstance(output, PackedSequence) else output
        states = state if isinstance(state, tuple) else (state,)
        return output.square().sum() + sum((k + 2.0) * s.pow(2).sum() for k, s in enumerate(states))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


def changed(outputs: Any, output: Callable[[Tensor], Tensor], state: Callable[[Tensor], Tensor]) -> Any:
    """The same with output and final states put through functions."""
    made, states = outputs
    made = made._replace(data=output(made.data)) if isinstance(made, PackedSequence) else output(made)
    return made, tuple(map(state, states)) if isinstance(states, tuple) else state(states)


def same(tensor: Tensor) -> Tensor:
    return tensor


class Reversed(torch.autograd.Function):
    """The same value, and another gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -0.3 * gradients[0]


def reverse(tensor: Tensor) -> Tensor:
    return Reversed.apply(tensor)


def damp(tensor: Tensor) -> Tensor:
    tensor.register_hook(lambda gradient: 0.1 * gradient)
    return tensor


def shift(inputs: tuple[Any, ...]) -> Any:
    """Other inputs than those of the call."""
    source = inputs[0]
    return source._replace(data=source.data + 1) if isinstance(source, PackedSequence) else source + 1


def forward_wrapped(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda *args: changed(forward(*args), torch.sin, lambda s: 3 * s)  # type: ignore[method-assign]


def every(module: nn.Module, hook: Callable[..., Any]) -> Any:
    """A global hook that does something at the one module only."""
    needs_torch(2, 6, NO_KEYWORDS)
    return register_module_forward_hook(lambda m, i, o: hook(m, i, o) if m is module else None)


def give_state(module: nn.Module, args: Any, kwargs: Any) -> Any:
    rnn = module._module[0] if isinstance(module, StandIn) else module
    size = (rnn.num_layers * (2 if rnn.bidirectional else 1), len(LENGTHS), rnn.hidden_size)
    h0 = torch.linspace(-1, 1, size[0] * size[1] * size[2]).double().reshape(size)
    return args, {**kwargs, "hx": (h0, h0.sin()) if rnn.mode == "LSTM" else h0}


def triple(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    return changed(outputs, same, lambda s: 3 * s)


HOOKS: dict[str, Hooked] = {
    "three times the final states": lambda m: m.register_forward_hook(triple),
    "prepended": lambda m: m.register_forward_hook(triple, prepend=True),
    "always called": lambda m: m.register_forward_hook(triple, always_call=True),
    "of all modules": lambda m: every(m, triple),
    "another output": lambda m: m.register_forward_hook(lambda m, i, o: changed(o, torch.sin, same)),
    "another gradient": lambda m: m.register_forward_hook(lambda m, i, o: changed(o, reverse, reverse)),
    "gradients damped by tensor hooks": lambda m: m.register_forward_hook(lambda m, i, o: changed(o, damp, damp)),
    "final states doubled in place": lambda m: m.register_forward_hook(
        lambda m, i, o: changed(o, same, lambda s: s.mul_(2))
    ),
    "another input": lambda m: m.register_forward_pre_hook(lambda m, inputs: (shift(inputs), *inputs[1:])),
    "another input, of all modules": lambda m: register_module_forward_pre_hook(
        lambda other, inputs: (shift(inputs), *inputs[1:]) if other is m else None
    ),
    "an initial state": lambda m: m.register_forward_pre_hook(give_state, with_kwargs=True),
    "a wrapped forward": forward_wrapped,
}


def run(model: Model, x: Tensor, folder: Any, callbacks: list[Any], steps: int = 1, **options: Any) -> list[Any]:
    """The profile records of a fit of one batch a step."""
    watch = GradWatch(
        max_sequences=None, keep_sequences=True, dirpath=folder / "run", summary=False, every_n_steps=1, **options
    )
    trainer(folder, [watch, *callbacks], max_steps=steps).fit(model.double(), DataLoader(TensorDataset(x), len(x)))
    return load_run(folder / "run").profile_records


def assert_total(records: list[Any], stand_in: StandIn, loss: Tensor) -> None:
    for record in records:
        for found, one in zip(record["total_by_sequence"], stand_in.made, strict=True):
            states = (one.c if record["state"] == "c" else one.h)[record["layer"]][record["direction"] == "reverse"]
            expected = np.array([float(g.norm()) for g in gradients(loss, states)])
            assert np.abs(np.array(found) - expected).max() <= 1e-10 * expected.max(), record["layer"]


def assert_lags(record: Any, stand_in: StandIn, loss: Tensor) -> None:
    """Of the last timestep's loss, in a single layer: there direct and total are the same thing."""
    curves = []
    for one in stand_in.made:
        h, c = one.h[0][0], one.c[0][0]
        sent = [(s[-1] * g).sum() for s in (h, *([c] if c else [])) for g in gradients(loss, s[-1:])]
        if c:  # c's own part alone: what comes by h is h's
            (through_h,) = torch.autograd.grad(sent[0], c[-1:], retain_graph=True)
            sent[1] = (c[-1] * (gradients(loss, c[-1:])[0] - through_h)).sum()
        by_lag = [torch.stack([g.norm() for g in gradients(sum(sent), s)]) for s in (h, *([c] if c else []))]
        curve = torch.stack(by_lag).norm(dim=0).flip(0)
        curves.append((curve / curve[0]).tolist())
    longest = max(map(len, curves))
    expected = [np.median([curve[k] for curve in curves if len(curve) > k]) for k in range(longest)]
    np.testing.assert_allclose(record["lagged"], expected, rtol=1e-10)


def seeded(kind: str, layers: int = 1, bidirectional: bool = False) -> nn.RNNBase:
    torch.manual_seed(1)
    return KINDS[kind](3, 5, layers, batch_first=True, bidirectional=bidirectional).double()


def truth(model: Model, hooked: Hooked, x: Tensor) -> tuple[StandIn, Tensor, Any]:
    """The same model by single cells, its loss, and what takes the hook off."""
    stand_in = StandIn(model.rnn)  # type: ignore[arg-type]
    handle = hooked(stand_in)
    return stand_in, Model(stand_in, model.packed).training_step([x], 0), handle


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", HOOKS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_what_the_operator_made(kind: str, how: str, when: str, tmp_path) -> None:
    """Totals and lags agree to 1e-10 with autograd wherever a hook changes inputs, results or gradients, whenever it was registered."""
    x, hooked = torch.randn(3, 6, 3, dtype=torch.float64), HOOKS[how]
    rnn, handles = seeded(kind), []
    model = Model(rnn, late=(lambda m: handles.append(hooked(m))) if when == "after" else None)
    if when == "before":
        handles.append(hooked(rnn))
    records = run(model, x, tmp_path, [], anchors=1)
    for handle in [h for h in handles if h is not None]:
        handle.remove()
    rnn = seeded(kind)
    stand_in, loss, handle = truth(Model(rnn), hooked, x)
    if handle is not None:
        handle.remove()
    if how == "a wrapped forward" and when == "after":
        assert {r["inexact_reason"] for r in records} == {"its forward was replaced after training began"}
        return
    assert {r["inexact_reason"] for r in records} == {None}
    assert_total(records, stand_in, loss)
    assert_lags(records[0], stand_in, loss)


@pytest.mark.parametrize("how", ["three times the final states", "of all modules", "another gradient", "another input"])
@pytest.mark.parametrize(("layers", "bidirectional", "packed"), [(2, False, True), (2, True, False), (1, True, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_so_in_stacks_both_directions_and_packed(
    kind: str, layers: int, bidirectional: bool, packed: bool, how: str, tmp_path
) -> None:
    """Every layer and direction has autograd's totals though a hook changes what the module returns."""
    x, hooked = torch.randn(3, 6, 3, dtype=torch.float64), HOOKS[how]
    rnn = seeded(kind, layers, bidirectional)
    handle = hooked(rnn)
    records = run(Model(rnn, packed), x, tmp_path, [])
    handle.remove()
    stand_in, loss, handle = truth(Model(seeded(kind, layers, bidirectional), packed), hooked, x)
    handle.remove()
    assert {r["inexact_reason"] for r in records} == {None}
    assert_total(records, stand_in, loss)


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_changed_in_place_is_told(kind: str, tmp_path) -> None:
    """Where a hook changes the output in place, the states as they were are gone, and the profile says so."""
    rnn = seeded(kind)
    rnn.register_forward_hook(lambda m, i, o: changed(o, lambda t: t.mul_(2), same))
    records = run(Model(rnn), torch.randn(3, 6, 3, dtype=torch.float64), tmp_path, [])
    assert records
    assert {r["inexact_reason"] for r in records} == {"the output was changed in place after the forward"}


def test_a_hook_that_comes_first_in_the_midst_of_a_step_is_told(tmp_path) -> None:
    """A hook put before GradWatch's within the training step may have changed anything, and the profile says so."""

    class Late(Model):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            handle = self.rnn.register_forward_hook(lambda m, i, o: changed(o, reverse, reverse), prepend=True)
            loss = super().training_step(batch, batch_idx)
            handle.remove()
            return loss

    records = run(Late(seeded("GRU")), torch.randn(3, 6, 3, dtype=torch.float64), tmp_path, [])
    assert {"another forward hook ran before GradWatch's" in r["inexact_reason"] for r in records} == {True}


def test_values_changed_past_autograd_are_told(tmp_path) -> None:
    """A final state that something changed without autograd's knowledge differs from what is recomputed."""
    rnn = seeded("LSTM")

    def spoil(module: nn.Module, inputs: Any, outputs: Any) -> None:
        outputs[1][1].data.mul_(3)

    rnn.register_forward_hook(spoil)
    records = run(Model(rnn), torch.randn(3, 6, 3, dtype=torch.float64), tmp_path, [])
    assert {"recomputed final states differ" in r["inexact_reason"] for r in records} == {True}


@pytest.mark.parametrize("how", ["three times the final states", "another gradient", "another input", "always called"])
def test_a_held_gradient_stays_the_one_measured(how: str, tmp_path) -> None:
    """With AdaptiveClip's bound through time the hooks' order stays its own first, then GradWatch's; both in either order in the list."""
    found = []
    for number, first in enumerate((True, False)):
        rnn = seeded("LSTM")
        HOOKS[how](rnn)
        clip = AdaptiveClip(policy="norm", clip_through_time=1e9, dirpath=tmp_path / f"clip{number}")
        watch = GradWatch(max_sequences=None, keep_sequences=True, dirpath=tmp_path / f"run{number}", summary=False)
        callbacks = [watch, clip] if first else [clip, watch]
        x = torch.linspace(-1, 1, 54, dtype=torch.float64).reshape(3, 6, 3)
        trainer(tmp_path, callbacks, max_steps=1).fit(Model(rnn).double(), DataLoader(TensorDataset(x), 3))
        records = load_run(tmp_path / f"run{number}").profile_records
        assert {r["inexact_reason"] for r in records} == {None}
        stand_in, loss, handle = truth(Model(seeded("LSTM")), HOOKS[how], x)
        handle.remove()
        assert_total(records, stand_in, loss)
        found.append([r["total"] for r in records])
    assert found[0] == found[1]


class CellModel(pl.LightningModule):
    """A cell in a loop; the loss is made of every state. ``made`` are those that the cell itself returned, in the graph."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.cell = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN": nn.RNNCell}[kind](3, 5).double()
        self.made: list[Tensor] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        state, loss = None, torch.zeros((), dtype=torch.float64)
        for t in range(batch[0].shape[1]):
            state = self.cell(batch[0][:, t], state)
            h = state[0] if isinstance(state, tuple) else state
            loss = loss + (t + 1) * h.square().sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


def change_cell(outputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return (change(outputs[0]), outputs[1]) if isinstance(outputs, tuple) else change(outputs)


CELL_HOOKS: dict[str, Hooked] = {
    "three times h": lambda m: m.register_forward_hook(lambda m, i, o: change_cell(o, lambda h: 3 * h)),
    "prepended": lambda m: m.register_forward_hook(lambda m, i, o: change_cell(o, torch.sin), prepend=True),
    "of all modules": lambda m: every(m, lambda m, i, o: change_cell(o, lambda h: 3 * h)),
    "another gradient": lambda m: m.register_forward_hook(lambda m, i, o: change_cell(o, reverse)),
    "doubled in place": lambda m: m.register_forward_hook(lambda m, i, o: change_cell(o, lambda h: h.mul_(2))),
}


@pytest.mark.parametrize("how", CELL_HOOKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cells_states_are_those_that_it_returned(kind: str, how: str, tmp_path) -> None:
    """Totals and lags of a cell in a loop are those of its own results, whatever a hook makes of them."""
    if kind == "RNN" and how == "doubled in place":
        pytest.skip("PyTorch itself refuses to change a tanh's result in place")
    if how == "doubled in place":
        needs_torch(2, 5, "begins no second pass at a state that was changed in place")
    x, hooked = torch.randn(3, 6, 3, dtype=torch.float64), CELL_HOOKS[how]
    model = CellModel(kind)
    handle = hooked(model.cell)
    records = run(model, x, tmp_path, [])  # type: ignore[arg-type]
    handle.remove()
    oracle = CellModel(kind)
    forward, made = oracle.cell.forward, []

    def noted(*args: Any) -> Any:
        outputs = forward(*args)
        kept = outputs[0] if isinstance(outputs, tuple) else outputs
        made.append(kept)
        again = kept * 1  # what the hook changes in place is a copy
        return (again, outputs[1]) if isinstance(outputs, tuple) else again

    oracle.cell.forward = noted  # type: ignore[method-assign]
    handle = hooked(oracle.cell)
    loss = oracle.training_step([x], 0)
    handle.remove()
    total = [g.norm(dim=1).numpy() for g in gradients(loss, made)]
    records = [r for r in records if r["state"] == "h"]
    assert len(records) == 1
    reason = "the backward of Reversed in it would run twice; no lags were measured"
    assert records[0]["inexact_reason"] == (reason if how == "another gradient" else None)
    np.testing.assert_allclose(np.array(records[0]["total_by_sequence"]).T, np.array(total), rtol=1e-10)
    if kind != "LSTM" and how != "another gradient":
        sent = (made[-1] * gradients(loss, made[-1:])[0]).sum()
        curve = torch.stack([g.norm(dim=1) for g in gradients(sent, made)]).flip(0)
        np.testing.assert_allclose(records[0]["lagged"], np.median((curve / curve[:1]).numpy(), 1), rtol=1e-10)


def test_nothing_global_is_left(tmp_path) -> None:
    """While others have global hooks GradWatch has one too, and one more in the first step, which looks for cells; it takes them off with
    everything that PyTorch noted about them.
    """
    needs_torch(2, 6, NO_KEYWORDS)
    handle = register_module_forward_hook(lambda m, i, o: None)
    seen: list[int] = []

    class Counting(Model):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            seen.append(len(torch.nn.modules.module._global_forward_hooks))
            if batch_idx == 1:
                handle.remove()
            return super().training_step(batch, batch_idx)

    model = Counting(seeded("RNN")).double()
    data = DataLoader(TensorDataset(torch.randn(12, 6, 3, dtype=torch.float64)), 3)
    trainer(tmp_path, [GradWatch(dirpath=tmp_path / "run", summary=False)], max_steps=4).fit(model, data)
    assert seen == [3, 2, 0, 0]
    module = torch.nn.modules.module
    assert not [
        name for name in vars(module) if name.startswith("_global_") and name.endswith("hooks") and vars(module)[name]
    ]
