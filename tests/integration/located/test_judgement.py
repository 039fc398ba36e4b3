"""What GradWatch makes of a training that goes wrong, or only seems to: episodes, the closer look, weights, scales, segments."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_gradwatch import EventKind, GradWatch, load_run
from lightning_gradwatch.engine.sampling import closer_steps
from tests.asserts import assert_identical
from tests.models import TinyLanguageModel, sentences, trainer
from tests.versions import cpu_scaler, needs_torch


class At(Callback):
    """Does something before the forward of one step, or of several."""

    def __init__(self, steps, do) -> None:
        self.steps, self.do = steps, do

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step in self.steps:
            self.do(pl_module)


def fit(tmp_path, model, *callbacks, steps, watch=None, **options):
    watch = watch or GradWatch(every_n_steps=50, max_sequences=2, dirpath=tmp_path / "run")
    # One batch, again and again: of two that differ, the norms alternate, and what is ordinary scatters as widely as they.
    trainer(tmp_path, [*callbacks, watch], max_steps=steps, **options).fit(model, sentences(8))
    return watch


class Louder(TinyLanguageModel):
    """Its loss is ``by`` times as large in the steps named."""

    def __init__(self, steps, by: float = 1e4, **options) -> None:
        super().__init__(**options)
        self.steps, self.by = steps, by

    def loss(self, words, batch_idx):
        loud = self.trainer.global_step in self.steps
        return super().loss(words, batch_idx) * (self.by if loud else 1.0)


def test_a_jump_is_one_event_and_one_record_of_its_end(tmp_path) -> None:
    """Three loud steps in a row are one EXPLODING_GRADIENT at the first; eight quiet ones later its end is noted, in the log too."""
    watch = fit(tmp_path, Louder({30, 31, 32}, optimizer="SGD", lr=1e-6), steps=60)
    found = [(e.kind, e.step, e.action, e.severity) for e in watch.events if e.kind == EventKind.EXPLODING_GRADIENT]
    assert found == [
        (EventKind.EXPLODING_GRADIENT, 30, None, "warning"),
        (EventKind.EXPLODING_GRADIENT, 40, "ended", "info"),
    ]
    assert [
        event["action"] for event in load_run(watch.run_dir).event_records if event["kind"] == "EXPLODING_GRADIENT"
    ] == [
        None,
        "ended",
    ]


def test_an_anomaly_is_looked_at_closer(tmp_path) -> None:
    """The step of a jump is swept in full; the four after it are sampled too, then every 2nd, 4th …; in the end all is as before."""
    watch = fit(tmp_path, Louder({60}, optimizer="SGD", lr=1e-6), steps=160)
    records = [r for r in load_run(watch.run_dir).profile_records if r["state"] == "h"]
    assert [(r["step"], r["sequences"]) for r in records] == [
        (0, 2), (50, 2), (60, 8), (61, 2), (62, 2), (63, 2), (64, 2), (66, 2), (70, 2), (78, 2), (94, 2), (100, 2), (126, 2), (150, 2),
    ]  # fmt: skip


def test_what_lasts_is_not_looked_at_closer_for_ever(tmp_path) -> None:
    """A gradient that always grows 1,000-fold and more is one event, swept in full where it begins; afterwards all is as before."""
    torch.manual_seed(0)
    model = TinyLanguageModel("RNN_RELU", hidden=32, optimizer="SGD", lr=1e-9)
    torch.nn.init.orthogonal_(model.rnn.weight_hh_l0, gain=3.0)
    watch = GradWatch(every_n_steps=10, max_sequences=2, dirpath=tmp_path / "run")
    trainer(tmp_path, [watch], max_steps=60).fit(model, sentences(16, length=25))
    begun, closed = [event for event in watch.events if event.kind == EventKind.EXPLODING_HIDDEN_GRADIENT]
    assert (begun.step, begun.action, closed.action) == (0, None, "ongoing")
    assert begun.timestep is not None
    records = [(r["step"], r["sequences"]) for r in load_run(watch.run_dir).profile_records]
    assert records == [(0, 8), *((step, 2) for step in (1, 2, 3, 4, 6, 10, 18, 20, 30, 40, 50))]


@pytest.mark.parametrize("every", [1, 2, 3, 5, 50, 1000])
def test_a_closer_look_is_bounded(every: int) -> None:
    """It costs at most 4 + log₂ n samples, all of them after the anomaly and ever further apart."""
    steps = closer_steps(100, every)
    assert len(steps) <= 4 + math.log2(every) if every > 1 else not steps
    gaps = [after - before for before, after in zip([100, *steps], steps, strict=False)]
    assert gaps == sorted(gaps)


def test_a_run_that_never_comes_to_rest_is_not_sampled_at_every_step(tmp_path) -> None:
    """Of a jump every 12 steps over 300 steps three are told, and fewer than a quarter of the steps are measured."""
    watch = fit(tmp_path, Louder(set(range(30, 300, 12)), optimizer="SGD", lr=1e-6), steps=300)
    sampled = {record["step"] for record in load_run(watch.run_dir).profile_records}
    assert [event.step for event in watch.events if event.action is None] == [30, 42, 54]
    assert len(sampled) < 75


def test_a_closer_look_changes_no_bit(tmp_path) -> None:
    """Weights and random stream of a training with an anomaly are those of the unwatched one."""
    states = []
    for callbacks in ([], [GradWatch(every_n_steps=50, dirpath=tmp_path / "run")]):
        torch.manual_seed(3)
        model = Louder({30}, dropout=0.3, layers=2)
        trainer(tmp_path, callbacks, max_steps=60).fit(model, sentences(16))
        states.append({**model.state_dict(), "rng": torch.get_rng_state()})
    assert [event.kind for event in callbacks[0].events if event.action is None] == [EventKind.EXPLODING_GRADIENT]
    assert_identical(*states)


class TestWeightsAfterTheStep:
    """A weight that an optimizer step spoils though all gradients are finite."""

    @pytest.mark.parametrize("cell", ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize(
        "name", ["rnn.weight_hh_l0", "rnn.weight_ih_l0", "rnn.bias_hh_l0", "head.weight", "embedding.weight"]
    )
    def test_it_is_named_on_the_next_step(self, cell: str, value: float, name: str, tmp_path) -> None:
        """A whole tensor spoilt by step 2 is named by the event of step 3, whatever tensor it is."""

        class Spoil(Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
                if trainer.global_step == 3:
                    with torch.no_grad():
                        pl_module.get_parameter(name).fill_(value)

        watch = fit(tmp_path, TinyLanguageModel(cell), Spoil(), steps=4)
        (event,) = [event for event in watch.events if event.kind.startswith("NONFINITE")]
        assert (event.step, event.parameter) == (3, name)

    def test_an_infinite_learning_rate_is_seen_through(self, tmp_path) -> None:
        """It makes weights infinite at once; the event of the next step names the first of them."""

        def to_infinity(model):
            model.optimizers().param_groups[0]["lr"] = math.inf

        watch = fit(tmp_path, TinyLanguageModel(optimizer="SGD"), At({2}, to_infinity), steps=4)
        (event,) = [event for event in watch.events if event.kind.startswith("NONFINITE")]
        assert event.step == 3
        assert event.parameter is not None

    def test_what_the_last_step_spoils_is_told_at_the_end(self, tmp_path) -> None:
        """There is no next step that would show it, but there will be a checkpoint."""

        def to_infinity(model):
            model.optimizers().param_groups[0]["lr"] = math.inf

        watch = fit(tmp_path, TinyLanguageModel(optimizer="SGD"), At({3}, to_infinity), steps=4)
        (event,) = [event for event in watch.events if event.kind.startswith("NONFINITE")]
        assert event.parameter.startswith("rnn.")
        assert event.message.startswith("After the last step the weight rnn.")

    def test_a_saturated_one_is_found_on_the_next_sampled_step(self, tmp_path) -> None:
        """An infinite bias closes its gate: everything stays finite. The next sampled step looks at the weights themselves."""

        def close(model):
            with torch.no_grad():
                model.rnn.bias_ih_l0[1] = -math.inf

        watch = GradWatch(every_n_steps=5, dirpath=tmp_path / "run")
        fit(tmp_path, TinyLanguageModel("LSTM"), At({6}, close), steps=20, watch=watch)
        (event,) = [event for event in watch.events if event.kind.startswith("NONFINITE")]
        assert (event.kind, event.step, event.parameter) == (EventKind.NONFINITE_STATE, 10, "rnn.bias_ih_l0")
        assert "rnn.bias_ih_l0[1] is -inf" in event.message


class Overflows(TinyLanguageModel):
    """A loss so large in float32 that its gradient overflows float16's range whatever the scale."""

    def __init__(self, until: int) -> None:
        super().__init__(optimizer="SGD", lr=1e-9)
        self.until, self.count = until, 0

    def loss(self, words, batch_idx):
        self.count += 1
        return super().loss(words, batch_idx) * (1e30 if self.count <= self.until else 1.0)


class InFloat32(TinyLanguageModel):
    """Computes in float32 under autocast, so that a scale can rise until the squares of the gradients overflow."""

    def __init__(self, outlier: float = 1.0) -> None:
        super().__init__(optimizer="SGD", lr=1e-9)
        self.outlier = outlier

    def loss(self, words, batch_idx):
        with torch.autocast("cpu", enabled=False):
            return super().loss(words, batch_idx) * (self.outlier if self.trainer.global_step == 25 else 1.0)


class TestLargeScale:
    """A loss scale under which every entry is finite, and no norm is in float32."""

    @pytest.fixture
    def scaled(self):
        needs_torch(2, 3, "has no gradient scaler on the CPU")
        enabled = torch.backends.mkldnn.enabled
        torch.backends.mkldnn.enabled = False
        yield lambda scale: MixedPrecision(
            "16-mixed", "cpu", scaler=cpu_scaler(init_scale=scale, growth_interval=10**6)
        )
        torch.backends.mkldnn.enabled = enabled

    @pytest.mark.parametrize("power", [66, 90, 110, 117])
    def test_it_is_no_explosion(self, scaled, power: int, tmp_path) -> None:
        """Nothing is told, and the norms are those without the scale."""
        watch = fit(tmp_path, InFloat32(), steps=30, plugins=[scaled(2.0**power)])
        assert watch.events == []
        said = " ".join(watch._found.summary())
        assert "No optimizer step could be looked at" not in said
        assert "The gradient norm" in said

    @pytest.mark.parametrize("power", [66, 90])
    def test_an_explosion_under_it_is_told(self, scaled, power: int, tmp_path) -> None:
        """With the norm that it has without the scale."""
        watch = fit(tmp_path, InFloat32(1e6), steps=30, plugins=[scaled(2.0**power)])
        first = watch.events[0]
        assert (first.kind, first.step) == (EventKind.EXPLODING_GRADIENT, 25)
        assert 1e4 < first.value < 1e8


class TestScaleSearch:
    """GradScaler on a CPU."""

    @pytest.fixture
    def amp(self):
        enabled = torch.backends.mkldnn.enabled
        torch.backends.mkldnn.enabled = False  # oneDNN has no half-precision LSTM backward on a CPU
        yield MixedPrecision("16-mixed", "cpu", scaler=cpu_scaler())
        torch.backends.mkldnn.enabled = enabled

    def test_one_that_ends_is_a_note(self, amp, tmp_path) -> None:
        """Five overflows, then finite steps: one AMP_OVERFLOW of severity info, and nothing else."""
        watch = fit(tmp_path, Overflows(5), steps=12, plugins=[amp])
        assert [(event.kind, event.severity) for event in watch.events] == [(EventKind.AMP_OVERFLOW, "info")]

    def test_one_that_does_not_end_is_an_alarm(self, amp, tmp_path) -> None:
        """When the scale has come down under 1 and gradients still overflow, it is a warning that names the place."""
        watch = fit(tmp_path, Overflows(1000), steps=30, plugins=[amp])
        note, alarm = [event for event in watch.events if event.kind == EventKind.AMP_OVERFLOW]
        assert (note.severity, note.step, note.value) == ("info", 0, 65536.0)
        assert (alarm.severity, alarm.module) == ("warning", "rnn")
        assert alarm.value <= 1


class Segments(TinyLanguageModel):
    """Truncated backpropagation: the state of one batch goes, detached, into the next."""

    state = None

    def loss(self, words, batch_idx):
        output, state = self.rnn(self.embedding(words[:, :-1]), self.state)
        self.state = tuple(part.detach() for part in state)
        return torch.nn.functional.cross_entropy(self.head(output[:, -1]), words[:, -1])


def test_under_truncated_backpropagation_the_event_names_the_limit(tmp_path) -> None:
    """A horizon of a few timesteps in segments of 40 is said to be the limit, and not the segments."""
    torch.manual_seed(0)
    model = Segments(optimizer="SGD", lr=1e-6)
    watch = GradWatch(every_n_steps=2, dirpath=tmp_path / "run")
    trainer(tmp_path, [watch], max_steps=8).fit(model, sentences(16, length=41))
    (event,) = [
        event for event in watch.events if event.kind == EventKind.VANISHING_HIDDEN_GRADIENT and event.action is None
    ]
    assert event.severity == "warning"
    assert "the horizon is the limit" in event.message
    assert "forget-gate bias" in event.remedy
