"""A bundle repeats its step: to the bit, with the same event, in another process, down to the operation."""

# Over 300 lines: one way from a bundle to its repetition, on the same alarm.
from __future__ import annotations

import math
import random
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from benchmarks.campaigns.replays import campaign
from lightning_gradwatch import EventKind, GradWatch
from lightning_gradwatch.callbacks.fit.fit_watch import FitWatch
from lightning_gradwatch.cli import main
from lightning_gradwatch.engine.observation import Observation
from lightning_gradwatch.replay.rerun import rerun
from lightning_gradwatch.runlog.bundles import BUNDLE_KEY, read_bundle
from tests.asserts import assert_identical
from tests.integration.anomalies import AT, Drawn, Nested, OwnCell, Scheduled, Stateful, nested_batches, train
from tests.integration.processes import run, succeed
from tests.integration.ways import Adversarial, Fused, Manual, scaled
from tests.models import TinyLanguageModel
from tests.versions import AS_DATA, cpu_scaler


class AlarmingFit(FitWatch):
    epoch = 0

    def look(self) -> None:
        moment = self.passes.moment
        if (moment.epoch, moment.batch_idx) == (self.epoch, AT) and not self._recorder.events:
            event = moment.event(EventKind.NONFINITE_LOSS, value=math.nan)
            self._act_on(self._take(Observation(events=(event,))))
        super().look()


class Alarm(GradWatch):
    """Holds a step for anomalous in which every number is finite, so that they can be compared."""

    def __init__(self, *, epoch: int = 0, **options: Any) -> None:
        super().__init__(summary=False, **options)
        self.fit_watch = type("Fit", (AlarmingFit,), {"epoch": epoch})


class Witness(pl.Callback):
    """Notes what a step computes."""

    def __init__(self, epoch: int = 0) -> None:
        self.epoch, self.seen = epoch, dict[str, Any]()

    def _at(self, trainer: pl.Trainer) -> bool:
        return trainer.current_epoch == self.epoch and trainer.fit_loop.epoch_loop.batch_idx == AT

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        if self._at(trainer):
            self.seen.setdefault("losses", []).append(loss.detach().clone())

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._at(trainer):
            named = pl_module.named_parameters()
            self.seen.setdefault("gradients", []).append({n: p.grad.clone() for n, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self._at(trainer):
            self.seen["weights"] = {name: value.clone() for name, value in pl_module.state_dict().items()}
            self.seen["optimizers"] = [_copy(optimizer.state_dict()) for optimizer in trainer.optimizers]
            self.seen["drawn"] = (torch.rand(()), random.random(), np.random.rand())
            self.seen["counts"] = (trainer.global_step, trainer.current_epoch)


def _copy(value: Any) -> Any:
    import copy

    return copy.deepcopy(value)


WAYS: dict[str, tuple[Callable[[], pl.LightningModule], dict[str, Any]]] = {
    "dropout": (lambda: TinyLanguageModel(layers=3, dropout=0.4), {}),
    "GRU": (lambda: TinyLanguageModel("GRU", bidirectional=True), {}),
    "second epoch": (lambda: TinyLanguageModel(dropout=0.2), {"max_epochs": 2, "epoch": 1}),
    "first micro-batch": (TinyLanguageModel, {"accumulate_grad_batches": 2}),
    "third micro-batch": (lambda: TinyLanguageModel(dropout=0.2), {"accumulate_grad_batches": 4}),
    "last of the epoch": (TinyLanguageModel, {"accumulate_grad_batches": 2, "limit_train_batches": 3}),
    "state in attributes and buffers": (Stateful, {}),
    "schedule and counters": (Scheduled, {"max_epochs": 2, "epoch": 1}),
    "16-mixed": (TinyLanguageModel, {"plugins": scaled, "onednn": False}),
    "16-mixed, fused": (Fused, {"plugins": scaled, "onednn": False}),
    "bf16-mixed": (TinyLanguageModel, {"precision": "bf16-mixed", "onednn": False}),
    "bf16-true": (TinyLanguageModel, {"precision": "bf16-true", "onednn": False}),
    "64-true": (TinyLanguageModel, {"precision": "64-true"}),
    "LBFGS": (lambda: TinyLanguageModel(optimizer="LBFGS", lr=0.1), {}),
    "by hand": (Manual, {}),
    "two optimizers": (Adversarial, {}),
    "nested batches": (Nested, {"data": nested_batches}),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_step_is_repeated_to_the_bit(tmp_path, way: str) -> None:
    """Loss, gradients, weights, optimizer state and random streams of the repeated step are those of the run's."""
    make, options = WAYS[way]
    options = {name: value() if callable(value) else value for name, value in options.items()}
    epoch, onednn = options.pop("epoch", 0), options.pop("onednn", True)
    torch.manual_seed(5)
    witness, alarm = Witness(epoch), Alarm(epoch=epoch, dirpath=tmp_path / "run", bundles=1)
    with torch.backends.mkldnn.flags(enabled=onednn):
        train(tmp_path, make(), alarm, witness, **options)
    (path,) = (tmp_path / "run" / "bundles").iterdir()
    bundle = read_bundle(path)
    torch.manual_seed(99)
    again = Witness(epoch)
    rerun(make(), bundle, [again])
    assert witness.seen["weights"]
    assert_identical(again.seen, witness.seen)


@pytest.mark.parametrize(
    ("options", "fit"),
    [
        ({"layers": 2, "dropout": 0.3}, {}),
        ({"cell": "GRU", "bidirectional": True}, {}),
        ({"cell": "RNN"}, {"accumulate_grad_batches": 3}),
        ({}, {"plugins": scaled}),
    ],
)
def test_the_event_is_the_same(tmp_path, capsys, options, fit) -> None:
    """From the arguments that the run saved, the command makes the model and finds the very place, drawn as it was."""
    made = {name: value() if callable(value) else value for name, value in fit.items()}
    watch = GradWatch(dirpath=tmp_path / "run", bundles=1, summary=False)
    with torch.backends.mkldnn.flags(enabled=not made):
        train(tmp_path, Drawn(**options), watch, **made)
    assert watch.events[0].kind == EventKind.NONFINITE_INPUT
    (path,) = (tmp_path / "run" / "bundles").iterdir()
    assert main(["replay", str(path), "--module", "tests.integration.anomalies:Drawn"]) == 0
    out = capsys.readouterr().out
    assert watch.events[0].message in out
    assert "Replayed: the same event." in out
    assert "anomalies.py" in out.partition("It began here: ")[2]
    assert "x[place] = math.nan" in out


def test_a_cell_of_ones_own_is_found_again(tmp_path, capsys) -> None:
    """What GradWatch learned of the model in its first step, it knows in the replay too."""
    watch = GradWatch(dirpath=tmp_path / "run", bundles=1, summary=False)
    train(tmp_path, OwnCell(), watch)
    event = watch.events[0]
    assert (event.module, event.severity) == ("cell", "critical")
    (path,) = (tmp_path / "run" / "bundles").iterdir()
    assert main(["replay", str(path), "--module", "tests.integration.anomalies:OwnCell"]) == 0
    out = capsys.readouterr().out
    assert "the same event" in out
    assert "aten.div.Tensor made" in out
    assert "h = h / torch.zeros(())" in out


@pytest.mark.slow
@pytest.mark.parametrize("namespace", ["lightning.pytorch", "pytorch_lightning"])
def test_in_another_process(tmp_path, namespace: str) -> None:
    """A script trains and stops; the command, in a process of its own, shows the same event; a changed model does not."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("lightning.pytorch", namespace))
    succeed(script, tmp_path)
    (path,) = (tmp_path / "run" / "bundles").iterdir()
    done = succeed("-m", "lightning_gradwatch", "replay", path, "--module", f"{script}:Model", "--args", '{"bad": 3}')
    assert "train.py:Model" in done.stdout
    assert "Replayed: the same event." in done.stdout
    assert "aten.log.default made -inf from finite numbers, in the forward pass" in done.stdout
    assert ":20 in training_step: return torch.log(" in done.stdout
    other = run("-m", "lightning_gradwatch", "replay", path, "--module", f"{script}:Model", "--args", '{"bad": 4}')
    assert other.returncode == 1
    assert "Replayed: no event." in other.stdout
    replay = ("-m", "lightning_gradwatch", "replay", path, "--module", f"{script}:Model")
    lacking = run(*replay, PYTHONWARNINGS="ignore")  # old releases of what is imported warn of their own
    assert lacking.returncode == 2
    assert "missing 1 required positional argument: 'bad'" in lacking.stderr
    assert lacking.stderr.strip().count("\n") == 0


SCRIPT = """\
import sys
import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from lightning_gradwatch import GradWatch


class Model(pl.LightningModule):
    def __init__(self, bad):
        super().__init__()
        self.bad = bad
        self.rnn = nn.LSTM(4, 8, 2, dropout=0.3, batch_first=True)

    def training_step(self, batch, batch_idx):
        output, _ = self.rnn(batch[0])
        if batch_idx != self.bad:
            return output.pow(2).mean()
        output = output - output.detach()[0, 0, 0]
        return torch.log(output.abs()).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


if __name__ == "__main__":
    watch = GradWatch(dirpath=sys.argv[1] + "/run", bundles=3, on_anomaly="stop")
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[watch])
    trainer.fit(Model(3), DataLoader(TensorDataset(torch.randn(48, 7, 4)), batch_size=8))
"""


def write_bundle_of(tmp_path: Path, model: pl.LightningModule, **options: Any) -> list[Path]:
    """Train, and return the bundles."""
    train(tmp_path, model, GradWatch(dirpath=tmp_path / "run", summary=False, **{"bundles": 1, **options}))
    return sorted((tmp_path / "run").glob("bundles/*"))


def test_a_bundle_is_a_checkpoint_of_the_weights(tmp_path) -> None:
    """It loads under weights_only, names its event, and Lightning itself makes the model of it."""
    (path,) = write_bundle_of(tmp_path, Drawn(layers=2))
    content = torch.load(path, weights_only=True)
    assert content[BUNDLE_KEY]["event"]["kind"] == "NONFINITE_INPUT"
    assert content["hyper_parameters"] == {"layers": 2}
    model = Drawn.load_from_checkpoint(path, **AS_DATA)
    assert model.rnn.num_layers == 2
    assert_identical(dict(model.state_dict()), dict(content["state_dict"]))
    assert path.name == f"step{AT:06d}-batch{AT}-rank0.pt"


class AlwaysSpoilt(TinyLanguageModel):
    """Anomalous at every second batch, so that each is an episode of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(before_rnn=lambda x, i: x * math.nan if i % 2 else x, **options)


def test_the_commands_lead_to_the_replay(tmp_path, capsys) -> None:
    """`events` prints the whole command for each bundle, and running what it prints replays the step."""
    (path,) = write_bundle_of(tmp_path, Drawn())
    assert main(["events", str(tmp_path / "run")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "gradwatch replay" in line]
    assert shlex.split(line)[-3:] == [str(path), "--module", "tests.integration.anomalies:Drawn"]
    assert main(shlex.split(line.partition("gradwatch ")[2])) == 0
    assert main(["check", str(tmp_path / "run")]) == 1
    if not torch.cuda.is_available():
        assert main([*shlex.split(line.partition("gradwatch ")[2]), "--device", "cuda"]) == 2
        assert "`--device cuda` needs a GPU; found none" in capsys.readouterr().err


def test_the_first_ones_are_kept(tmp_path) -> None:
    """No more than `bundles`, also when a later run goes on in the folder; without the argument there are none."""
    assert [p.name[:10] for p in write_bundle_of(tmp_path / "a", AlwaysSpoilt(), bundles=1, on_anomaly="skip")] == [
        "step000001"
    ]
    assert len(write_bundle_of(tmp_path / "b", AlwaysSpoilt(), bundles=9, on_anomaly="skip")) == 2
    assert write_bundle_of(tmp_path / "c", AlwaysSpoilt(), bundles=0, on_anomaly="skip") == []


def test_one_that_is_too_large_is_not_written(tmp_path) -> None:
    """The warning names its size and the argument; training goes on."""
    with pytest.warns(UserWarning, match=r"No bundle was written: it would take \d+ MiB, over the 1 of `bundle_mib`"):
        assert write_bundle_of(tmp_path, AlwaysSpoilt(hidden=256), bundle_mib=1, on_anomaly="skip") == []


def test_a_disk_that_fails_is_said_once(tmp_path, monkeypatch) -> None:
    """Nothing half-written stays, and training goes on."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.warns(UserWarning, match="No bundle was written: No space left on device") as caught:
        assert write_bundle_of(tmp_path, AlwaysSpoilt(), bundles=5, on_anomaly="skip") == []
    assert sum("No bundle" in str(w.message) for w in caught) == 1


def test_what_a_bundle_cannot_hold_is_named(tmp_path, capsys) -> None:
    """An object of the user's own in the batch: one warning at the training, one line at the replay."""

    class Odd:
        pass

    class Model(TinyLanguageModel):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [*batch, Odd()]

    with pytest.warns(UserWarning, match=r"cannot be replayed in full: it lacks batch\[1\] \(.*Odd\)"):
        (path,) = write_bundle_of(tmp_path, Model(before_rnn=lambda x, i: x * math.nan))
    assert main(["replay", str(path), "--module", "tests.models:TinyLanguageModel"]) == 2
    assert "This bundle lacks batch[1]" in capsys.readouterr().err


def test_another_event_says_how_it_differs(tmp_path, capsys) -> None:
    """Exit code 1, and in words what was and what is now."""
    (path,) = write_bundle_of(tmp_path, Drawn())
    content = torch.load(path, weights_only=True)
    content[BUNDLE_KEY]["event"]["timestep"] += 100
    torch.save(content, path)
    assert main(["replay", str(path), "--module", "tests.integration.anomalies:Drawn"]) == 1
    assert "Replayed: another event, NONFINITE_INPUT" in (out := capsys.readouterr().out)
    assert "timestep was 10" in out


def test_a_sample_of_the_campaign() -> None:
    """Whatever network and fault is drawn, the replay shows the same event and names the line; in full: benchmarks/campaigns/replays.py."""
    cpu_scaler()
    results = campaign(12, seed=4)
    written = [one for one in results if one["outcome"] != "no critical event"]
    assert len(written) >= 10
    assert [one for one in written if one["outcome"] != "same" or not one["right origin"]] == []


class Unsaved(AlwaysSpoilt):
    """Takes arguments, and saves no hyperparameters."""

    def __init__(self, hidden: int = 8, layers: int = 1) -> None:
        super().__init__(hidden=hidden, layers=layers)


def test_arguments_that_the_run_did_not_save_are_asked_for(tmp_path, capsys, caplog) -> None:
    """The fit's own command names them, and so does the error of a replay without them, after the tensors that don't fit."""
    with caplog.at_level("INFO"):
        train(tmp_path, Unsaved(12), GradWatch(dirpath=tmp_path / "run", bundles=1))
    named = """--args '{"hidden": …, "layers": …}'"""
    (line,) = [line for line in caplog.text.splitlines() if "gradwatch replay" in line]
    assert line.endswith(named)
    command = [
        "replay",
        str(next((tmp_path / "run").rglob("*.pt"))),
        "--module",
        "tests.integration.acting.test_replay:Unsaved",
    ]
    for arguments, misfit in (
        (
            "{}",
            "rnn.weight_ih_l0: 48×6 in the bundle, 32×6 in the model; rnn.weight_hh_l0: 48×12 in the bundle, 32×8 in the",
        ),
        (
            '{"hidden": 12, "layers": 2}',
            "rnn.weight_ih_l1 in the model only; rnn.weight_hh_l1 in the model only; and 2 more",
        ),
    ):
        assert main([*command, "--args", arguments]) == 2
        said = capsys.readouterr().err
        assert misfit in said
        assert said.endswith(f"Give the arguments that the run used: {named}.\n")
    assert main([*command, "--args", '{"hidden": 12}']) == 0


class Saved(Unsaved):
    """Saves them."""

    def __init__(self, hidden: int = 8, layers: int = 1) -> None:
        super().__init__(hidden, layers)
        self.save_hyperparameters()


def test_a_saved_argument_is_not_asked_for(tmp_path, caplog) -> None:
    """The command is whole without it."""
    with caplog.at_level("INFO"):
        train(tmp_path, Saved(12), GradWatch(dirpath=tmp_path / "run", bundles=1))
    assert "gradwatch replay" in caplog.text
    assert "--args" not in caplog.text
