"""The fault campaign, a sample of it; at full size it is benchmarks/campaigns/faults.py."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from benchmarks.campaigns.fault_models import PLACES
from benchmarks.campaigns.faults import campaign, table
from lightning_gradwatch import EventKind, GradWatch
from tests.models import TinyLanguageModel, sentences, trainer

INJECTIONS = 150


@pytest.fixture(scope="module")
def outcomes():
    torch.set_num_threads(1)
    return campaign(INJECTIONS, seed=1)


def test_every_fault_that_spoils_the_recurrent_part_is_found(outcomes) -> None:
    """Where a gradient of the recurrent part is not finite, there is an event; at least a third of the faults are of that kind."""
    due = [outcome for outcome in outcomes if outcome.due]
    assert len(due) > INJECTIONS / 3
    assert {outcome.fault.place for outcome in due} == set(PLACES)
    assert [outcome for outcome in due if not outcome.found] == []


def test_every_fault_is_located_as_the_unrolled_model_has_it(outcomes) -> None:
    """Kind, module, layer, direction, state, timestep, sequence and parameter are those of the oracle, and silence where it is due."""
    wrong = [(outcome.fault, outcome.truth, outcome.said) for outcome in outcomes if not outcome.exact]
    assert wrong == []


def test_healthy_steps_raise_no_alarm(outcomes) -> None:
    """Before the fault no event of any kind is reported."""
    assert sum(outcome.false_alarms for outcome in outcomes) == 0


def test_the_table_counts_every_fault(outcomes) -> None:
    """Each line's due, hidden and finite faults add up to its faults."""
    lines = table(outcomes).splitlines()[1:-2]
    figures = [[int(figure) for figure in line[32:].split()] for line in lines]
    assert figures[0][0] == INJECTIONS
    assert all(faults == due + hidden + finite for faults, due, _, _, hidden, finite, _ in figures)


CELLS = ("RNN_TANH", "RNN_RELU", "LSTM", "GRU")


class PlantGradient(Callback):
    """Has the model's own hook on the recurrent output plant a value in one step."""

    def __init__(self, step: int, at: tuple[int, int, int], value: float) -> None:
        self.step, self.at, self.value = step, at, value

    def on_train_start(self, trainer, pl_module) -> None:
        def hook(module, inputs, outputs):
            if trainer.global_step == self.step:
                outputs[0].register_hook(self._plant)

        pl_module.rnn.register_forward_hook(hook)

    def _plant(self, gradient):
        gradient = gradient.clone()
        gradient[self.at] = self.value
        return gradient


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_fault_on_the_way_back_is_located_in_a_real_training(cell, bidirectional, value, tmp_path) -> None:
    """What a hook of the model's own plants in the output's gradient is located in its layer, direction, timestep and sequence."""
    torch.manual_seed(0)
    model = TinyLanguageModel(cell, layers=2, bidirectional=bidirectional)
    if cell == "RNN_RELU":  # an inactive unit would absorb it
        with torch.no_grad():
            [parameter.abs_() for name, parameter in model.rnn.named_parameters() if "l1" in name]
            [parameter.add_(1) for name, parameter in model.rnn.named_parameters() if "bias" in name]
    unit = 9 if bidirectional else 1
    watch = GradWatch(every_n_steps=100, dirpath=tmp_path / "run")
    trainer(tmp_path, [watch, PlantGradient(2, (5, 3, unit), value)], max_steps=3).fit(model, sentences())
    (event,) = [event for event in watch.events if event.kind.startswith("NONFINITE")]
    assert event.kind == EventKind.NONFINITE_HIDDEN_GRADIENT
    assert (event.step, event.module, event.layer, event.direction) == (
        2,
        "rnn",
        1,
        "reverse" if bidirectional else "forward",
    )
    assert (event.timestep, event.sequence) == (3, 5)


def test_an_infinite_input_that_saturates_every_gate_is_found_on_its_own_step(tmp_path) -> None:
    """An infinite input that leaves states and recurrent gradients finite is located on its step, before the weights are spoilt."""

    def plant(x, batch_idx):
        if batch_idx == 2:
            x = x.clone()
            x[5, 3, 1] = math.inf
        return x

    torch.manual_seed(0)
    watch = GradWatch(every_n_steps=100, dirpath=tmp_path / "run")
    model = TinyLanguageModel("GRU", before_rnn=plant)
    trainer(tmp_path, [watch], max_steps=4).fit(model, sentences())
    (event,) = [event for event in watch.events if event.kind.startswith("NONFINITE")]
    assert (event.kind, event.step, event.timestep, event.sequence) == (EventKind.NONFINITE_INPUT, 2, 3, 5)


def test_a_weight_of_another_module_is_named_as_the_cause(tmp_path) -> None:
    """A NaN in the embedding's weight is found as the input that it spoils, with the weight named."""

    class Spoil(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if trainer.global_step == 1:
                with torch.no_grad():
                    pl_module.embedding.weight[batch[0][4, 0], 2] = math.nan

    watch = GradWatch(every_n_steps=100, dirpath=tmp_path / "run")
    trainer(tmp_path, [watch, Spoil()], max_steps=2).fit(TinyLanguageModel(), sentences())
    (event,) = [event for event in watch.events if event.kind.startswith("NONFINITE")]
    assert (event.kind, event.parameter) == (EventKind.NONFINITE_INPUT, "embedding.weight")
    assert "The cause is embedding.weight[" in event.message
