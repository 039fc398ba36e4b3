"""Where a number ceased to be finite: in an input, a weight, a gate or the loss, named once."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_gradwatch import AdaptiveClip, EventKind, GradWatch, load_run
from tests.integration.watched import Plant, fit
from tests.models import TinyLanguageModel, sentences
from tests.oracles import unroll


@pytest.mark.parametrize("cell", ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"])
@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "between samples"])
def test_a_nan_in_one_input_is_located_once(cell: str, sampled: bool, tmp_path) -> None:
    """A NaN in one sequence at one timestep is one event with exactly that place; AdaptiveClip keeps the weights finite."""

    def plant(x, batch_idx):
        if batch_idx == 2:
            x = x.clone()
            x[5, 3, 1] = math.nan
        return x

    model = TinyLanguageModel(cell, layers=2, before_rnn=plant)
    watch = GradWatch(every_n_steps=2 if sampled else 100, max_sequences=2, dirpath=tmp_path / "run")
    clip = AdaptiveClip(dirpath=tmp_path / "run")
    fit(tmp_path, model, [watch, clip], max_steps=4)
    events = [event for event in watch.events if event.kind.startswith("NONFINITE")]
    assert [(e.kind, e.module, e.timestep, e.sequence, e.step, e.batch_idx) for e in events] == [
        (EventKind.NONFINITE_INPUT, "rnn", 3, 5, 2, 2)
    ]
    assert math.isnan(events[0].value)
    assert not [event for event in watch.events if event.kind.startswith("EXPLODING")]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert [event.kind for event in clip.events if event.kind == EventKind.STEP_SKIPPED] == [EventKind.STEP_SKIPPED]
    in_log = [record for record in load_run(tmp_path / "run").event_records if record["kind"] == "NONFINITE_INPUT"]
    assert [(record["timestep"], record["sequence"]) for record in in_log] == [(3, 5)]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("cell", ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"])
def test_an_inf_in_a_recurrent_weight_is_named_with_what_it_spoils_first(cell: str, layer: int, tmp_path) -> None:
    """An inf in one entry of W_hh gives an event that names it and the first timestep it spoils, as the unrolled model has it."""
    torch.manual_seed(3)
    model = TinyLanguageModel(cell, layers=2)
    name = f"rnn.weight_hh_l{layer}"
    watch = GradWatch(every_n_steps=100, dirpath=tmp_path / "run")
    seen: list[torch.Tensor] = []
    model.before_rnn = lambda x, batch_idx: seen.append(x.detach().clone()) or x
    states = []

    class Unroll(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            if trainer.global_step == 2:
                states.extend(unroll(pl_module.rnn, x).h for x in seen[-1])

    fit(tmp_path, model, [watch, Plant(name, (1, 0), math.inf, 2), Unroll()], max_steps=3)
    first = min(
        (t, depth)
        for sequence in states
        for depth, (forward,) in enumerate(sequence)
        for t, state in enumerate(forward)
        if not state.isfinite().all()
    )
    (event,) = [event for event in watch.events if event.kind.startswith("NONFINITE")]
    assert event.kind == EventKind.NONFINITE_STATE
    assert (event.parameter, event.step, event.module) == (name, 2, "rnn")
    assert (event.timestep, event.layer) == first


def test_a_saturated_inf_shows_in_the_gate(tmp_path) -> None:
    """Where tanh hides an infinite weight from the states, the event names it and the pre-activation that it spoils first."""
    model = TinyLanguageModel("RNN_TANH")
    model.rnn.register_forward_pre_hook(lambda module, args: (args[0], torch.full((1, len(args[0]), 8), 0.5)))
    watch = GradWatch(every_n_steps=100, dirpath=tmp_path / "run")
    fit(tmp_path, model, [watch, Plant("rnn.weight_hh_l0", (1, 0), math.inf, 1)], max_steps=2)
    (event,) = [event for event in watch.events if event.kind.startswith("NONFINITE")]
    assert (event.kind, event.parameter) == (EventKind.NONFINITE_STATE, "rnn.weight_hh_l0")
    assert (event.state, event.timestep, event.sequence) == ("gate", 0, 0)
    assert "The pre-activation of rnn, layer 0, gate, timestep 0" in event.message


def test_an_episode_is_one_event(tmp_path) -> None:
    """Without AdaptiveClip a NaN stays in the weights; it is reported once, not at every step that follows."""
    model = TinyLanguageModel(before_rnn=lambda x, i: x * math.nan if i == 1 else x)
    watch, model, _ = fit(tmp_path, model, max_steps=12)
    assert len([event for event in watch.events if event.kind.startswith("NONFINITE")]) == 1
    assert not model.rnn.weight_hh_l0.isfinite().all()


def test_a_nonfinite_loss_behind_finite_states_is_the_loss(tmp_path) -> None:
    """A NaN that begins behind the recurrent output is NONFINITE_LOSS."""

    class BadHead(TinyLanguageModel):
        def loss(self, words, batch_idx):
            return super().loss(words, batch_idx) * (math.nan if batch_idx == 1 else 1)

    watch, _, _ = fit(tmp_path, BadHead(), max_steps=2)
    assert [event.kind for event in watch.events] == [EventKind.NONFINITE_LOSS]


def test_a_nonfinite_loss_with_finite_gradients_is_a_warning(tmp_path) -> None:
    """A loss that is NaN while its gradient is finite (NaN as a constant added to it) is told once, on a sampled step, as a warning."""

    class Added(TinyLanguageModel):
        def loss(self, words, batch_idx):
            return super().loss(words, batch_idx) + (math.nan if batch_idx in (2, 3, 4) else 0.0)

    watch = GradWatch(every_n_steps=2, dirpath=tmp_path / "run")
    fit(tmp_path, Added(), [watch], sentences(64), max_steps=8)
    (event,) = watch.events
    assert (event.kind, event.severity, event.step) == (EventKind.NONFINITE_LOSS, "warning", 2)
    assert "spoils no weight" in event.message
