"""What Lightning and torch do that one would not expect: nothing of it disturbs the training or the watching."""

# Over 300 lines: a list of traps, each a small model and what it must not disturb.
from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_gradwatch import AdaptiveClip, EventKind, GradWatch, load_run, tap, tap_scan
from tests.asserts import assert_identical
from tests.models import TinyLanguageModel, sentences, trainer
from tests.versions import AS_DATA, needs_lightning, needs_torch


class ConfiguredLate(TinyLanguageModel):
    """Its recurrent layer does not exist before ``configure_model``."""

    def __init__(self) -> None:
        super().__init__()
        del self.rnn
        self.example_input_array = torch.zeros(2, 5, dtype=torch.long)

    def configure_model(self) -> None:
        if not hasattr(self, "rnn"):
            self.rnn = nn.LSTM(6, 8, batch_first=True)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(words))[0])


class Silent(TinyLanguageModel):
    """Logs nothing: torch.compile cannot trace ``self.log`` here."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch[0], batch_idx)


class TwoNames(TinyLanguageModel):
    """One recurrent module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = self.rnn


class TwoBackwards(TinyLanguageModel):
    """Goes back twice through one graph."""

    def __init__(self) -> None:
        super().__init__(optimizer="SGD")
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.loss(batch[0], batch_idx)
        self.manual_backward(loss, retain_graph=True)
        self.manual_backward(loss)
        optimizer.step()


class Penalised(TinyLanguageModel):
    """Its loss holds a gradient of its own (a gradient penalty), so that autograd runs inside the forward."""

    def loss(self, words: Tensor, batch_idx: int) -> Tensor:
        x = self.embedding(words[:, :-1])
        with torch.backends.mkldnn.flags(enabled=False):
            output, _ = self.rnn(x)
            (slope,) = torch.autograd.grad(output.square().mean(), x, retain_graph=True)
        return nn.functional.cross_entropy(self.head(output).flatten(0, 1), words[:, 1:].flatten()) + slope.sum() * 0


class Corner(TinyLanguageModel):
    """A loss of one's own on the batch's words."""

    def __init__(self, of: Any, **options: Any) -> None:
        super().__init__(**options)
        self.of = of

    def loss(self, words: Tensor, batch_idx: int) -> Tensor:
        return self.of(self, words, batch_idx)


def whole(model: Corner, words: Tensor, batch_idx: int = 0) -> Tensor:
    return TinyLanguageModel.loss(model, words, batch_idx)


def fit(model: Any, tmp_path: Path, *callbacks: Callback, **options: Any) -> tuple[GradWatch, Any]:
    watch = GradWatch(every_n_steps=2, max_sequences=None, keep_sequences=True, dirpath=tmp_path / "run")
    run = trainer(tmp_path, [watch, *callbacks], **options)
    run.fit(model, sentences())
    return watch, run


def records(tmp_path: Path) -> list[dict[str, Any]]:
    return [r for r in load_run(tmp_path / "run").profile_records if r["state"] == "h"]


class TestModels:
    """Modules that come late, twice, or wrapped."""

    def test_a_layer_made_in_configure_model_while_the_graph_is_logged(self, tmp_path: Path) -> None:
        """A layer that exists from configure_model on is measured; forwards of the summary and the graph logger are not."""
        logger = TensorBoardLogger(tmp_path, log_graph=True)
        watch, _ = fit(ConfiguredLate(), tmp_path, logger=logger, enable_model_summary=True)
        assert [(r["step"], r["call"], r["module"], r["exact"]) for r in records(tmp_path)] == [
            (step, 0, "rnn", True) for step in (0, 2, 4)
        ]
        assert not watch.events

    def test_a_layer_made_in_configure_model_when_resumed(self, tmp_path: Path) -> None:
        """Resumed at step 3, the run samples step 3, where it begins, then goes on with its own grid and its own log."""
        needs_lightning(2, 2, "restores a checkpoint before configure_model has made the layer")
        checkpoint = ModelCheckpoint(str(tmp_path), every_n_train_steps=3, save_top_k=-1, filename="{step}")
        fit(ConfiguredLate(), tmp_path, checkpoint, enable_checkpointing=True, max_steps=3)
        watch = GradWatch(every_n_steps=2, dirpath=tmp_path / "run")
        run = trainer(tmp_path, [watch], max_steps=7)
        run.fit(ConfiguredLate(), sentences(), ckpt_path=tmp_path / "step=3.ckpt", **AS_DATA)
        assert watch.run_dir == tmp_path / "run"
        # The grid is that of the steps as Lightning's monitors count them; up to 2.5 a run resumed within an epoch counts one less.
        behind = run.global_step - run.fit_loop.epoch_loop._batches_that_stepped
        assert behind in (0, 1)
        then = [step for step in range(3, 7) if step == 3 or (step - behind) % 2 == 0]
        assert [record["step"] for record in records(tmp_path)] == [0, 2, *then]

    def test_a_shared_module_is_one(self, tmp_path: Path) -> None:
        """A module with two names is measured once, under the first of them."""
        fit(TwoNames(), tmp_path)
        assert {record["module"] for record in records(tmp_path)} == {"rnn"}

    def test_the_whole_lightning_module_compiled(self, tmp_path: Path) -> None:
        """trainer.fit(torch.compile(model)) is measured exactly, under plain names, and trains to the same bits."""

        def train(path: Path, *callbacks: Callback) -> dict[str, Tensor]:
            torch.manual_seed(0)
            torch._dynamo.reset()
            model = Silent()
            trainer(path, callbacks).fit(torch.compile(model, backend="eager"), sentences())
            return model.state_dict()

        watch = GradWatch(every_n_steps=2, dirpath=tmp_path / "run")
        assert_identical(train(tmp_path / "bare"), train(tmp_path / "watched", watch))
        assert [(r["module"], r["step"], r["exact"]) for r in records(tmp_path)] == [
            ("rnn", step, True) for step in (0, 2, 4)
        ]

    def test_a_cell_compiled_before_is_said(self, tmp_path: Path) -> None:
        """Where a cell was compiled and run before the fit, it is measured or named as not observed; never silently left out."""
        torch._dynamo.reset()
        cell = torch.compile(nn.GRUCell(6, 8), backend="eager")
        cell(torch.zeros(8, 6), torch.zeros(8, 8))

        class OverCell(TinyLanguageModel):
            def __init__(self) -> None:
                super().__init__()
                self.rnn = cell

            def loss(self, words: Tensor, batch_idx: int) -> Tensor:
                h, outputs = torch.zeros(len(words), 8), []
                for x in self.embedding(words[:, :-1]).unbind(1):
                    h = self.rnn(x, h)
                    outputs.append(h)
                return nn.functional.cross_entropy(
                    self.head(torch.stack(outputs, 1)).flatten(0, 1), words[:, 1:].flatten()
                )

        watch, _ = fit(OverCell(), tmp_path)
        reported = [event.module for event in watch.events if event.kind == EventKind.NOT_OBSERVED]
        assert bool(records(tmp_path)) != (reported == ["rnn"])


class TestBackward:
    """Graphs that are gone through in unusual ways."""

    def test_going_back_twice_is_measured_once(self, tmp_path: Path) -> None:
        """With retain_graph the first backward pass is the record; the second neither adds to it nor makes another."""
        torch.manual_seed(0)
        fit(TwoBackwards(), tmp_path)
        torch.manual_seed(0)
        fit(Corner(whole, optimizer="SGD"), tmp_path / "once")
        found, alone = records(tmp_path), records(tmp_path / "once")
        assert [record["step"] for record in found if record["step"] == 0] == [0]
        assert np.allclose(found[0]["total"], alone[0]["total"], rtol=1e-5)

    def test_a_gradient_taken_inside_the_forward_is_told_apart(self, tmp_path: Path) -> None:
        """What autograd.grad sends through the layer during the forward is no part of what is measured."""
        torch.manual_seed(0)
        fit(Penalised(), tmp_path)
        torch.manual_seed(0)
        fit(Corner(whole), tmp_path / "plain")
        (found, *_), (plain, *_) = records(tmp_path), records(tmp_path / "plain")
        assert np.allclose(found["total"], plain["total"], rtol=1e-4)
        assert found["exact"]


class TestCorners:
    """What the smallest and emptiest inputs give, as the documentation says."""

    def test_one_timestep(self, tmp_path: Path) -> None:
        """T = 1: total equals direct, the only lag is 0, the horizon is censored at 0 and there is no growth rate."""
        watch, _ = fit(Corner(lambda model, words, i: whole(model, words[:, :2])), tmp_path)
        record = records(tmp_path)[0]
        assert (record["timesteps"], record["lagged"], record["exact"]) == (1, [1.0], True)
        assert (record["horizon"], record["horizon_censored"], record["growth_rate"]) == (0, True, None)
        assert record["total"] == record["direct"]
        assert not watch.events

    def test_an_empty_batch(self, tmp_path: Path) -> None:
        """B = 0: no record of that call, no event; the next batch that holds a sequence is sampled in its place."""

        def first_empty(model: Corner, words: Tensor, batch_idx: int) -> Tensor:
            if batch_idx:
                return whole(model, words)
            return model.head(model.rnn(model.embedding(words[:0, :-1]))[0]).sum()

        watch, _ = fit(Corner(first_empty), tmp_path)
        assert [record["step"] for record in records(tmp_path)] == [1, 2, 5]
        assert not watch.events

    def test_only_empty_batches(self, tmp_path: Path) -> None:
        """A module that saw nothing but empty batches is not observed, with that reason."""
        nothing = Corner(lambda model, words, i: model.head(model.rnn(model.embedding(words[:0, :-1]))[0]).sum())
        watch, run = fit(nothing, tmp_path)
        (event,) = watch.events
        assert (event.kind, event.module) == (EventKind.NOT_OBSERVED, "rnn")
        assert "Its batch was empty." in event.message
        assert run.global_step == 6

    def test_gradients_of_zero(self, tmp_path: Path) -> None:
        """A loss of gradient 0 gives totals of 0, no lagged curve, and no horizon; neither alarm nor warning."""
        watch, _ = fit(Corner(lambda model, words, i: whole(model, words) * 0), tmp_path)
        record = records(tmp_path)[0]
        assert set(record["total"]) == {0.0}
        assert (record["lagged"], record["horizon"], record["growth_rate"]) == ([], None, None)
        assert not watch.events

    def test_only_the_final_state(self, tmp_path: Path) -> None:
        """A loss on h_n alone is a direct gradient at the last timestep, and 0 before it."""
        fit(Corner(lambda m, words, i: m.head(m.rnn(m.embedding(words[:, :-1]))[1][0]).square().mean()), tmp_path)
        record = records(tmp_path)[0]
        assert record["direct"][:-1] == [0.0] * 7
        assert record["direct"][-1] == record["total"][-1] > 0
        assert record["exact"]

    def test_sequences_of_one_step_in_a_packed_batch(self, tmp_path: Path) -> None:
        """They have one total, and their only lag is 0; the longer ones tell the horizon."""
        lengths = torch.tensor([1, 8, 1, 5, 1, 1, 3, 1])

        def packed(model: Corner, words: Tensor, batch_idx: int) -> Tensor:
            x = nn.utils.rnn.pack_padded_sequence(model.embedding(words[:, :-1]), lengths, True, enforce_sorted=False)
            return model.head(model.rnn(x)[0].data).square().mean()

        fit(Corner(packed), tmp_path)
        record = records(tmp_path)[0]
        assert [len(row) for row in record["total_by_sequence"]] == lengths.tolist()
        assert len(record["lagged"]) == 8
        assert record["exact"]


class TestLeavings:
    """Nothing of ours is left in what the user keeps."""

    def test_a_module_can_be_saved_whole_in_mid_fit(self, tmp_path: Path) -> None:
        """torch.save of the recurrent module in the middle of a watched step, its hooks on, can be loaded and run."""
        saved: list[bytes] = []

        class Save(Callback):
            def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
                buffer = io.BytesIO()
                torch.save(pl_module.rnn, buffer)
                saved.append(buffer.getvalue())

        fit(TinyLanguageModel(), tmp_path, Save())
        rnn = torch.load(io.BytesIO(saved[2]), weights_only=False)
        output, _ = rnn(torch.zeros(2, 3, 6))
        assert output.shape == (2, 3, 8)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*")
    def test_a_module_can_be_scripted_after_the_fit(self, tmp_path: Path) -> None:
        """No hook is left that TorchScript would refuse."""
        model = TinyLanguageModel()
        fit(model, tmp_path, AdaptiveClip())
        torch.jit.script(model.rnn)

    def test_the_callback_after_a_fit_is_small(self, tmp_path: Path) -> None:
        """After a fit with logging both callbacks are pickled without the model, and copied without a module."""
        import pickle

        clip = AdaptiveClip(dirpath=tmp_path / "run")
        watch, _ = fit(TinyLanguageModel(hidden=128), tmp_path, clip, logger=TensorBoardLogger(tmp_path))
        for callback in (watch, clip):
            assert len(pickle.dumps(callback)) < 100_000
            assert not any(isinstance(value, nn.Module) for value in vars(copy.deepcopy(callback)).values())


def test_one_event_is_one_row_of_the_logger(tmp_path: Path) -> None:
    """What is logged at a sampled step stands in one row and is not repeated at later ones."""
    import csv

    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    watch = GradWatch(every_n_steps=4, dirpath=tmp_path / "run")
    trainer(tmp_path, [watch], logger=logger, log_every_n_steps=1).fit(TinyLanguageModel(), sentences())
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [int(row["step"]) for row in csv.DictReader(file) if row.get("gradwatch/rnn/l0/total_max")]
    assert rows == [0, 4]


def test_a_fused_module_compiled_without_graph_breaks(tmp_path: Path) -> None:
    """torch.compile(fullgraph=True) of a fused module is refused by torch itself, watched or not, with the same error."""

    def refusal(path: Path, *callbacks: Callback) -> str:
        torch._dynamo.reset()
        model = Silent()
        model.rnn = torch.compile(model.rnn, backend="eager", fullgraph=True)
        with pytest.raises(Exception) as caught:  # noqa: PT011  # whichever torch raises
            trainer(path, callbacks).fit(model, sentences())
        return type(caught.value).__name__

    assert refusal(tmp_path) == refusal(tmp_path, GradWatch(dirpath=tmp_path / "run"))


@pytest.mark.parametrize("mark", ["tap", "tap_scan"])
def test_what_is_marked_in_a_graph_without_breaks_is_left_alone(mark: str, tmp_path: Path) -> None:
    """torch.compile(fullgraph=True) takes a model with taps, watched or not, to the same bits."""
    needs_torch(2, 4, "takes neither a tap of a scan nor a hook that is a bound method into a graph without breaks")

    class Marked(Silent):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.Linear(6, 8)
            self.loss = torch.compile(self.loss, backend="eager", fullgraph=True)

        def loss(self, words: Tensor, batch_idx: int) -> Tensor:
            h = self.rnn(self.embedding(words[:, :-1])).cumsum(1)
            h = tap(h, "mine") if mark == "tap" else tap_scan(h, 1.0, name="mine")
            return nn.functional.cross_entropy(self.head(h).flatten(0, 1), words[:, 1:].flatten())

    def train(path: Path, *callbacks: Callback) -> dict[str, Tensor]:
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = Marked()
        trainer(path, callbacks).fit(model, sentences())
        return model.state_dict()

    assert_identical(train(tmp_path), train(tmp_path, GradWatch(dirpath=tmp_path / "run")))


def test_a_loop_compiled_without_graph_breaks(tmp_path: Path) -> None:
    """torch.compile(fullgraph=True) of a loop over a cell takes the watched one too, to the same bits; it is not observed, and said."""
    needs_torch(2, 4, "cannot trace a hook that is a bound method, so that fullgraph=True refuses a watched module")

    class OverCell(Silent):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRUCell(6, 8)
            self.loss = torch.compile(self.loss, backend="eager", fullgraph=True)

        def loss(self, words: Tensor, batch_idx: int) -> Tensor:
            h, outputs = torch.zeros(len(words), 8), []
            for x in self.embedding(words[:, :-1]).unbind(1):
                h = self.rnn(x, h)
                outputs.append(h)
            return nn.functional.cross_entropy(self.head(torch.stack(outputs, 1)).flatten(0, 1), words[:, 1:].flatten())

    def train(path: Path, *callbacks: Callback) -> dict[str, Tensor]:
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = OverCell()
        trainer(path, callbacks).fit(model, sentences())
        return model.state_dict()

    watch = GradWatch(dirpath=tmp_path / "run")
    assert_identical(train(tmp_path / "bare"), train(tmp_path / "watched", watch))
    assert [event.module for event in watch.events if event.kind == EventKind.NOT_OBSERVED] == ["rnn"]
