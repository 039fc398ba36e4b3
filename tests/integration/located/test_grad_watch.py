"""GradWatch in a real Trainer."""

from __future__ import annotations

import contextlib
import copy
import csv
import gc
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch import AdaptiveClip, EventKind, GradWatch, load_run
from lightning_gradwatch.callbacks.output.watch_recorder import WatchRecorder
from lightning_gradwatch.events import Event, Severity
from lightning_gradwatch.recurrent import Capture
from lightning_gradwatch.runlog import summarise
from tests.integration.exact.real_calls import model_of
from tests.lightning_versions import INTERRUPT_EXITS
from tests.models import TinyLanguageModel, sentences, trainer
from tests.oracles import gradients, norms, unroll


def fit(tmp_path, model=None, callbacks=None, data=None, **options):
    watch = GradWatch(every_n_steps=100, dirpath=tmp_path / "run") if callbacks is None else callbacks[0]
    model = TinyLanguageModel() if model is None else model
    run = trainer(tmp_path, callbacks or [watch], **options)
    run.fit(model, data or sentences())
    return watch, model, run


class Plant(Callback):
    """Puts a value into one entry of a parameter before one step's forward."""

    def __init__(self, parameter: str, index: tuple[int, ...], value: float, step: int) -> None:
        self.parameter, self.index, self.value, self.step = parameter, index, value, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.get_parameter(self.parameter)[self.index] = self.value


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


def test_the_profile_in_the_run_log_is_that_of_the_training_step(tmp_path) -> None:
    """total_by_sequence of every micro-batch sampled equals autograd on the unrolled model, accumulation undone."""
    torch.manual_seed(5)
    model = TinyLanguageModel("GRU").double()
    before = copy.deepcopy(model)
    watch = GradWatch(dirpath=tmp_path / "run", keep_sequences=True, max_sequences=None)
    data = sentences()
    fit(tmp_path, model, [watch], data, accumulate_grad_batches=4, max_steps=1)
    (record,) = load_run(tmp_path / "run").profile_records
    (words,) = next(iter(data))
    unrolled = [unroll(before.rnn, x) for x in before.embedding(words[:, :-1]).detach()]
    output = torch.stack([torch.cat(model.output) for model in unrolled])
    loss = torch.nn.functional.cross_entropy(before.head(output).flatten(0, 1), words[:, 1:].flatten())
    for found, model in zip(record["total_by_sequence"], unrolled, strict=True):
        expected = norms(gradients(loss, model.h[0][0])).numpy()
        assert np.abs(np.array(found) - expected).max() <= 1e-10 * expected.max()


def test_the_end_of_fit_names_the_gravest_event_and_what_can_be_typed(tmp_path, caplog):
    """One bad batch: its event with step and place, the commands as they are to be typed, what AdaptiveClip did; of a quiet run less."""

    def said(folder, spoil) -> str:
        watch = GradWatch(dirpath=folder)
        caplog.clear()
        with caplog.at_level("INFO"):
            fit(tmp_path, TinyLanguageModel(before_rnn=spoil), [watch, AdaptiveClip(dirpath=folder)], max_steps=3)
        return caplog.text

    def spoil(x, batch_idx):
        return x.index_put((torch.tensor(3), torch.tensor(5)), torch.tensor(math.nan)) if batch_idx == 1 else x

    folder = tmp_path / "a run"
    bad, good = said(folder, spoil), said(tmp_path / "run", None)
    event = "\n  1 critical event, the first at step 1: NONFINITE_INPUT, the input of rnn, timestep 5, sequence 3 holds nan.\n"
    assert event + f"  gradwatch report '{folder}'\n  gradwatch events '{folder}'\n" in bad
    assert f"AdaptiveClip: 0 of 3 steps clipped, 1 skipped. Run log: {folder}" in bad
    assert f"\n  No events.\n  gradwatch report {tmp_path / 'run'}\n" in good
    assert "AdaptiveClip" not in good


def test_the_last_lines_count_events_by_severity():
    """What is only a note alarms nobody; the end of an episode is none."""
    found = WatchRecorder()
    note = Event(EventKind.VANISHING_HIDDEN_GRADIENT, 9, module="rnn", value=3.0, threshold=5.0, severity=Severity.INFO)
    found.events.extend([note, note, replace(note, action="ended", detail="")])
    assert found.summary()[-1] == "  2 notes."
    found.events.extend([Event(EventKind.EXPLODING_GRADIENT, 7, value=9.0, threshold=1.0, detail="It is large.")])
    assert found.summary()[-1] == (
        "  1 warning, the first at step 7: EXPLODING_GRADIENT, the gradient norm of the model jumped to 9; "
        "an ordinary step stays under 1. Besides 2 notes."
    )


@pytest.mark.parametrize("spoilt", [None, 3])
def test_the_end_of_fit_and_the_run_log_come_to_the_same_verdict(tmp_path, spoilt, caplog):
    """What is kept for the last lines, which is not all of a run, is enough for the verdict; also where the run is lost."""
    watch = GradWatch(every_n_steps=1, dirpath=tmp_path / "run")
    with caplog.at_level("INFO"):
        fit(tmp_path, callbacks=[watch, Plant("rnn.weight_hh_l0", (0, 0), math.nan, spoilt or -1)], max_steps=40)
    run = load_run(tmp_path / "run")
    (found,) = summarise(run.profile_records, run.event_records)
    assert found.samples == 40
    assert found.line in caplog.text
    assert (found.verdict == "not finite") == (spoilt is not None)
    if spoilt:
        assert found.since == 3


class Counter(TorchDispatchMode):
    """Counts the operations of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


class CountedStep(Callback):
    """Counts all operations of one training step."""

    def __init__(self, step: int) -> None:
        self.step, self.mode = step, Counter()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            self.mode.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step + 1:
            self.mode.__exit__(None, None, None)


@pytest.mark.parametrize("layers", [1, 2])
def test_an_ordinary_step_adds_one_small_reduction(layers: int, tmp_path) -> None:
    """Between samples GradWatch adds the norms of the gradients, read once together with the loss, and no other operation."""
    counts = []
    for watched in (False, True):
        torch.manual_seed(0)
        counter = CountedStep(2)
        watch = [GradWatch(every_n_steps=100, dirpath=tmp_path / "run")] if watched else []
        trainer(tmp_path, [counter, *watch], max_steps=4).fit(TinyLanguageModel(layers=layers), sentences())
        counts.append(counter.mode.counts)
    bare, watched = counts
    added = {name: n - bare.get(name, 0) for name, n in watched.items() if n != bare.get(name, 0)}
    expected = {
        "aten::_foreach_norm": 1,
        "aten::stack": 1,
        "aten::detach": 1,
    }
    assert added == expected


@pytest.mark.parametrize(
    "way",
    [
        "a fused module",
        "nn.LSTMCell in a loop",
        "a fused module fed one timestep at a time",
        "a subclass that packs in its own forward",
        "states marked with tap",
    ],
)
def test_memory_is_flat_without_the_garbage_collector(way: str, tmp_path, monkeypatch) -> None:
    """Over 200 watched steps no call outlives its step, though the garbage collector is off."""
    references: list[weakref.ref] = []
    take = Capture.take

    def noted(self):
        taken = take(self)
        references.extend(weakref.ref(call) for call in taken)
        return taken

    monkeypatch.setattr(Capture, "take", noted)
    alive: list[int] = []
    tensors: list[int] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            alive.append(sum(reference() is not None for reference in references))
            if trainer.global_step % 50 == 10:
                tensors.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))

    gc.collect()
    gc.disable()
    try:
        watch = GradWatch(every_n_steps=5, dirpath=tmp_path / "run")
        fit(tmp_path, model_of(way), [Look(), watch], max_steps=200)
    finally:
        gc.enable()
    assert len(references) >= 200
    assert max(alive) == 0
    assert max(tensors) - min(tensors) == 0


@pytest.mark.parametrize("way", ["end", "exception", "interrupt", "exception in an earlier callback"])
def test_hooks_come_off_on_every_way_out(way: str, tmp_path) -> None:
    """However a fit ends, no hook stays on the module."""

    class Leave(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            assert len(pl_module.rnn._forward_hooks) == 1
            if way == "exception":
                raise RuntimeError("the user's own")
            if way == "interrupt":
                raise KeyboardInterrupt

        def on_exception(self, trainer, pl_module, exception) -> None:
            if way.endswith("callback"):
                raise ValueError("the user's other one")

        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            if way.endswith("callback"):
                raise RuntimeError("the user's own")

    model = TinyLanguageModel()
    watch = GradWatch(dirpath=tmp_path / "run")
    run = trainer(tmp_path, [Leave(), watch], max_steps=2)
    returns = way == "end" or (way == "interrupt" and not INTERRUPT_EXITS)
    leaving = contextlib.nullcontext() if returns else pytest.raises((RuntimeError, ValueError, SystemExit))
    with leaving:
        run.fit(model, sentences())
    if way.endswith("callback"):
        watch.on_train_start(run, model)  # where not even on_exception fires, the next start cleans up
        watch.teardown(run, model, "fit")
    assert not model.rnn._forward_hooks
    assert not model.rnn._forward_pre_hooks


def test_a_copy_holds_no_model(tmp_path) -> None:
    """deepcopy and pickle work at any moment of a fit and drag neither model nor trainer along."""
    sizes: list[int] = []

    class Copy(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            watch = trainer.callbacks[0]
            copied = copy.deepcopy(watch)
            assert copied._fit is None
            assert copied._found.trainer is None
            sizes.append(len(pickle.dumps(watch)))
            assert not any(isinstance(v, torch.nn.Module) and not hasattr(v, "compute") for v in vars(copied).values())
            inert = copy.deepcopy(pl_module)
            inert.loss(batch[0], 0)
            pickle.loads(pickle.dumps(pl_module.rnn))

    watch = GradWatch(every_n_steps=1, dirpath=tmp_path / "run")
    fit(tmp_path, TinyLanguageModel(hidden=64), [watch, Copy()])
    assert max(sizes) < 200_000


def test_one_instance_serves_two_fits_afresh(tmp_path) -> None:
    """Reused for another model, an instance begins anew, in a folder of its own."""
    watch = GradWatch(dirpath=tmp_path / "run")
    fit(tmp_path, TinyLanguageModel("GRU"), [watch])
    first = watch.run_dir
    fit(tmp_path, TinyLanguageModel("LSTM"), [watch])
    assert first == tmp_path / "run"
    assert watch.run_dir == tmp_path / "run-1"
    assert {record["kind"] for record in load_run(watch.run_dir).profile_records} == {"LSTM"}


def test_the_first_step_and_every_nth_are_sampled(tmp_path) -> None:
    """Steps 0, 3 and 6 are in the run log, each once, with accumulation as well."""
    watch = GradWatch(every_n_steps=3, dirpath=tmp_path / "run")
    fit(tmp_path, None, [watch], sentences(128), accumulate_grad_batches=2, max_steps=8)
    records = load_run(watch.run_dir).profile_records
    assert [(r["step"], r["micro_batch"]) for r in records if r["state"] == "h"] == [(0, 0), (3, 0), (6, 0)]


def test_logged_keys_are_those_of_the_docstring(tmp_path) -> None:
    """The table in GradWatch's docstring names exactly what is logged, and a value logged equals the run log's."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    watch = GradWatch(every_n_steps=2)
    fit(tmp_path, TinyLanguageModel("GRU", bidirectional=True), [watch], logger=logger)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("gradwatch/rnn/l0/horizon")]
    documented = re.findall(r"^    ``(\w+)`` ", GradWatch.__doc__, re.M)
    expected = {f"gradwatch/rnn/{layer}/{key}" for layer in ("l0", "l0r") for key in documented}
    assert {key for key in rows[0] if key.startswith("gradwatch/")} == expected
    assert watch.run_dir == Path(logger.log_dir) / "gradwatch"
    records = [r for r in load_run(watch.run_dir).profile_records if r["direction"] == "reverse"]
    assert [float(row["gradwatch/rnn/l0r/growth_rate"]) for row in rows] == [r["growth_rate"] for r in records]


def test_a_killed_run_leaves_a_log_that_loads(tmp_path) -> None:
    """After kill -9 in the middle of training the run log is readable."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[3])!r})
        from pathlib import Path
        from lightning_gradwatch import GradWatch
        from tests.models import TinyLanguageModel, sentences, trainer
        run = trainer(Path({str(tmp_path)!r}), [GradWatch(every_n_steps=1, dirpath={str(tmp_path / "run")!r})], max_steps=-1)
        run.fit(TinyLanguageModel(), sentences())
        """)
    )
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen([sys.executable, str(script)], stdout=output, stderr=output)
    profiles = tmp_path / "run" / "profiles.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (profiles.exists() and profiles.stat().st_size > 20_000):
        assert process.poll() is None, (tmp_path / "output").read_text()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run = load_run(tmp_path / "run")
    assert len(run.profile_records) >= 10
    assert run.skipped_lines <= 1
    assert run.meta["modules"]["rnn"]["kind"] == "LSTM"


def test_a_module_the_loss_does_not_use_is_not_observed(tmp_path) -> None:
    """A recurrent module that no loss reaches is reported as not observed, never as zeros."""
    model = TinyLanguageModel()
    model.unused = torch.nn.GRU(6, 4)
    watch, _, _ = fit(tmp_path, model)
    (event,) = [event for event in watch.events if event.kind == EventKind.NOT_OBSERVED]
    assert event.module == "unused"
    modules = json.loads((watch.run_dir / "run.json").read_text())["modules"]
    assert {name: module["observed"] for name, module in modules.items()} == {"rnn": True, "unused": False}


def test_a_failing_on_event_harms_nothing(tmp_path) -> None:
    """An error in the user's callable is one warning; the events are kept."""

    def fail(event):
        raise RuntimeError("mine")

    model = TinyLanguageModel(before_rnn=lambda x, i: x * math.nan if i == 1 else x)
    watch = GradWatch(dirpath=tmp_path / "run", on_event=fail)
    with pytest.warns(UserWarning, match="`on_event` failed"):
        fit(tmp_path, model, [watch])
    assert len(watch.events) == 1


def test_an_error_of_our_own_ends_the_watching_only(tmp_path, monkeypatch) -> None:
    """If the measurement itself fails, there is one warning, the hooks come off and the training ends as it would."""
    monkeypatch.setattr(GradWatch, "raise_own_errors", False)
    monkeypatch.setattr("lightning_gradwatch.recurrent.measure.profiles.sweep", lambda *args, **kwargs: 1 / 0)
    model = TinyLanguageModel()
    with pytest.warns(UserWarning, match="GradWatch failed .*ZeroDivisionError"):
        _, _, run = fit(tmp_path, model)
    assert run.global_step == 6
    assert not model.rnn._forward_hooks


class TestBadInput:
    """One clear error or warning that names the argument, the rule, the value and the remedy."""

    @pytest.mark.parametrize("name", ["every_n_steps", "max_sequences", "anchors"])
    def test_counts(self, name: str) -> None:
        """A count under 1 is refused."""
        with pytest.raises(ValueError, match=f"`{name}` must be ≥ 1; found 0"):
            GradWatch(**{name: 0})

    @pytest.mark.parametrize("name", ["every_n_steps", "max_sequences", "anchors"])
    @pytest.mark.parametrize("value", [2.5, 50.0, "50", math.nan])
    def test_counts_are_whole(self, name: str, value: object) -> None:
        """What is no whole number is refused; NumPy's are some."""
        with pytest.raises(ValueError, match=re.escape(f"`{name}` must be a whole number ≥ 1; found {value!r}. ")):
            GradWatch(**{name: value})
        GradWatch(**{name: np.int64(3)})

    def test_an_empty_list_of_modules(self) -> None:
        """It would watch nothing in silence."""
        with pytest.raises(
            ValueError, match=r'`modules` must name at least one pattern; found \[\]\. Use modules="auto"'
        ):
            GradWatch(modules=[])

    def test_modules_must_be_a_list(self) -> None:
        """A bare pattern is refused with the list to write instead."""
        with pytest.raises(ValueError, match=re.escape("Use modules=['rnn']")):
            GradWatch(modules="rnn")

    def test_a_pattern_that_matches_nothing(self, tmp_path) -> None:
        """The error lists the modules there are."""
        with pytest.raises(ValueError, match=r"'encoder\.\*' matches none of those there are: rnn"):
            fit(tmp_path, None, [GradWatch(modules=["encoder.*"], dirpath=tmp_path / "run")])

    def test_no_recurrent_module(self, tmp_path) -> None:
        """One warning, and the training goes on."""
        model = TinyLanguageModel()
        model.rnn = type(
            "Sum", (torch.nn.Module,), {"forward": lambda self, x: (torch.cat([x, x[..., :2]], -1), None)}
        )()
        with pytest.warns(UserWarning, match="GradWatch found no recurrent module") as caught:
            _, _, run = fit(tmp_path, model, [GradWatch(dirpath=tmp_path / "run")])
        assert len([w for w in caught if "GradWatch" in str(w.message)]) == 1
        assert run.global_step == 6

    def test_a_folder_that_cannot_be_written(self, tmp_path) -> None:
        """A `dirpath` in the way of a file is refused before training begins."""
        (tmp_path / "file").write_text("not a folder")
        with pytest.raises(ValueError, match="`dirpath` must be a folder that can be written"):
            fit(tmp_path, None, [GradWatch(dirpath=tmp_path / "file" / "run")])

    def test_a_default_folder_that_cannot_be_written(self, tmp_path) -> None:
        """Where the folder was not asked for by name, it is a warning, and the watching goes on without a log."""
        (tmp_path / "gradwatch").write_text("not a folder")
        with pytest.warns(UserWarning, match="No run log is written"):
            watch, _, run = fit(tmp_path, None, [GradWatch()])
        assert watch.run_dir is None
        assert watch.lagged
        assert run.global_step == 6

    @pytest.mark.parametrize(
        "make",
        [
            lambda: [GradWatch(), AdaptiveClip()],
            lambda: [AdaptiveClip(), GradWatch()],
            lambda: [GradWatch(["rnn"]), GradWatch(["r*"])],
        ],
    )
    def test_callbacks_of_one_trainer_say_it_once(self, tmp_path, make) -> None:
        """Whichever comes first; each goes on without a log."""
        (tmp_path / "gradwatch").write_text("not a folder")
        callbacks = make()
        with pytest.warns(UserWarning, match="No run log is written") as said:
            fit(tmp_path, None, callbacks)
        assert sum("No run log is written" in str(one.message) for one in said) == 1
        assert [one.run_dir for one in callbacks] == [None, None]
