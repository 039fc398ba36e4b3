"""What GradWatch does about an anomaly where it was asked to: warn, skip, stop, raise, roll back."""

# Over 300 lines: one argument with five values, tried on the same spoilt training.
from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torchmetrics import MeanMetric

from lightning_gradwatch import AdaptiveClip, AnomalyError, AutoClip, EventKind, GradWatch
from lightning_gradwatch.callbacks.anomaly.responses import RESPONSES
from lightning_gradwatch.clip import StepReading
from tests.asserts import assert_identical
from tests.integration.neutral.test_invariance import Configuration, train
from tests.integration.ways import Adversarial, Fused, Manual, SkipsBatches, scaled
from tests.models import TinyLanguageModel, sentences, trainer

PLACE = (2, 3, 1)  # sequence, timestep, unit


def poison(*batches: int):
    """Plants a NaN into the recurrent layer's input at these batches."""

    def plant(x: Tensor, batch_idx: int) -> Tensor:
        if batch_idx in batches:
            x = x.clone()
            x[PLACE] = math.nan
        return x

    return plant


class Scheduled(TinyLanguageModel):
    """With a learning rate that falls at every step."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(tmp_path: Path, model: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """One epoch of ten batches, from fixed weights."""
    torch.manual_seed(7)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.3, 0.3)
    run = trainer(tmp_path, callbacks, **{"max_epochs": 1, "max_steps": -1, **options})
    run.fit(model, sentences(80))
    return run


def end(run: pl.Trainer) -> dict[str, Any]:
    """Weights and optimizer state."""
    return {
        "weights": run.lightning_module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
    }


def watching(tmp_path: Path, response: str, **options: Any) -> GradWatch:
    return GradWatch(dirpath=tmp_path / "run", on_anomaly=response, summary=False, **options)


def actions(watch: GradWatch) -> list[tuple[int, str | None]]:
    """Step and action of the responses."""
    return [(event.step, event.action) for event in watch.events if event.kind == EventKind.STEP_SKIPPED]


@pytest.mark.parametrize("spoilt", [(3,), (3, 4, 5)])
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_skip_is_as_if_the_batch_had_no_loss(tmp_path, spoilt, optimizer) -> None:
    """Every spoilt step is passed over, also those of one episode after its first, and nothing else changes."""
    watch = watching(tmp_path, "skip")
    acted = fit(tmp_path, TinyLanguageModel(before_rnn=poison(*spoilt), optimizer=optimizer), watch)
    without = fit(tmp_path, SkipsBatches(without_loss=spoilt, optimizer=optimizer))
    assert_identical(end(acted), end(without))
    assert actions(watch) == [(step, "skipped") for step in spoilt]
    assert [event.kind for event in watch.events if event.severity == "critical"] == [EventKind.NONFINITE_INPUT]
    assert "NONFINITE_INPUT at rnn, timestep 3, sequence 2" in watch.events[1].message


@pytest.mark.parametrize("clip_first", [True, False])
def test_with_adaptive_clip_it_is_said_once(tmp_path, clip_first) -> None:
    """Whichever comes first skips; the weights are the same either way, and one of them writes the event."""
    watch, clip = watching(tmp_path, "skip"), AdaptiveClip("norm", dirpath=tmp_path / "run")
    callbacks = [clip, watch] if clip_first else [watch, clip]
    acted = fit(tmp_path, TinyLanguageModel(before_rnn=poison(3, 4)), *callbacks)
    assert_identical(end(acted), end(fit(tmp_path, SkipsBatches(without_loss=(3, 4)), AdaptiveClip("norm"))))
    skips = [event.step for event in (*watch.events, *clip.events) if event.kind == EventKind.STEP_SKIPPED]
    assert sorted(skips) == [3, 4]


def test_a_gradient_outside_the_recurrent_modules_is_skipped_too(tmp_path) -> None:
    """A NaN that only the head's gradient shows is named and skipped."""

    class Head(TinyLanguageModel):
        def on_after_backward(self) -> None:
            if self.trainer.global_step == 4:
                self.head.bias.grad[1] = math.nan

    watch = watching(tmp_path, "skip")
    run = fit(tmp_path, Head(), watch)
    assert actions(watch) == [(4, "skipped")]
    assert "NONFINITE_GRADIENT at parameter head.bias" in watch.events[-1].message
    assert all(weight.isfinite().all() for weight in end(run)["weights"].values())


def test_skipping_ends_after_so_many_in_succession(tmp_path) -> None:
    """At `max_responses` the training stops and says why; steps that are not in succession don't add up."""
    watch = watching(tmp_path, "skip", max_responses=3)
    with pytest.warns(UserWarning, match="acted 3 times in succession") as caught:
        run = fit(tmp_path, TinyLanguageModel(before_rnn=poison(1, 2, 4, 5, 6, 7, 8)), watch)
    assert sum("in succession" in str(w.message) for w in caught) == 1
    assert run.global_step == 7
    assert actions(watch) == [(1, "skipped"), (2, "skipped"), (4, "skipped"), (5, "skipped"), (6, "stopped")]
    assert watch.events[-1].severity == "critical"


def test_stop_ends_the_training_with_sound_weights(tmp_path) -> None:
    """The spoilt step is the last and is not taken."""
    watch = watching(tmp_path, "stop")
    acted = fit(tmp_path, TinyLanguageModel(before_rnn=poison(3)), watch)
    assert acted.global_step == 4
    assert actions(watch) == [(3, "stopped")]
    assert_identical(end(acted), end(fit(tmp_path, TinyLanguageModel(), max_epochs=-1, max_steps=3)))


def test_raise_carries_the_event(tmp_path) -> None:
    """The error says what happened and where, holds the event, and survives pickling as between processes."""
    watch = watching(tmp_path, "raise")
    with pytest.raises(
        AnomalyError, match=r"NONFINITE_INPUT at optimizer step 3 \(epoch 0, batch 3, rank 0\)"
    ) as caught:
        fit(tmp_path, TinyLanguageModel(before_rnn=poison(3)), watch)
    assert caught.value.event is watch.events[0]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.event.place, str(again)) == (caught.value.event.place, str(caught.value))


def test_warn_says_it_once_an_episode_and_does_nothing(tmp_path) -> None:
    """The weights are spoilt as they would be without GradWatch."""
    watch = watching(tmp_path, "warn")
    with pytest.warns(UserWarning, match="GradWatch: NONFINITE_INPUT at optimizer step 3") as caught:
        acted = fit(tmp_path, TinyLanguageModel(before_rnn=poison(3)), watch)
    assert sum(str(w.message).startswith("GradWatch: ") for w in caught) == 1
    assert_identical(end(acted), end(fit(tmp_path, TinyLanguageModel(before_rnn=poison(3)))))


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_rollback_undoes_what_led_there(tmp_path, optimizer) -> None:
    """Weights and optimizer are those of the last good state, and training goes on from it with the next batches.

    Copies are due after every second step; the one after step 4 has not proved good at step 5, so it goes back to step 2.
    """
    watch = watching(tmp_path, "rollback", snapshot_every_n_steps=2)
    acted = fit(tmp_path, TinyLanguageModel(before_rnn=poison(5), optimizer=optimizer), watch)
    without = fit(tmp_path, SkipsBatches(without_loss=(2, 3, 4, 5), optimizer=optimizer))
    assert actions(watch) == [(5, "rolled back")]
    assert "those after step 2" in watch.events[1].message
    assert "is undone" in watch.events[1].remedy
    assert "as they were" not in watch.events[1].remedy
    assert acted.global_step == 10
    assert_identical(end(acted), end(without))


def test_rollback_takes_buffers_schedule_and_policies_along(tmp_path) -> None:
    """Running statistics, the learning rate's schedule and AdaptiveClip's history go back; its counts of steps go on."""

    class Normed(Scheduled):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.norm = torch.nn.BatchNorm1d(6)
            self.register_buffer("seen", torch.zeros(()), persistent=False)

        def loss(self, words: Tensor, batch_idx: int) -> Tensor:
            self.seen += 1
            self.norm(self.embedding(words).flatten(0, 1))
            return super().loss(words, batch_idx)

    class History(pl.Callback):
        def __init__(self, clip: AdaptiveClip) -> None:
            self.clip, self.states = clip, list[Any]()

        def on_train_batch_start(self, *_: Any) -> None:
            self.states.append(copy.deepcopy([p.state_dict() for own in self.clip.policies_in_use() for p in own]))

    watch, clip = watching(tmp_path, "rollback", snapshot_every_n_steps=2), AdaptiveClip()
    history = History(clip)
    run = fit(tmp_path, Normed(before_rnn=poison(5)), history, watch, clip)
    model = run.lightning_module
    assert actions(watch) == [(5, "rolled back")]
    assert float(model.seen) == float(model.norm.num_batches_tracked) == 2 + 4
    schedule = run.lr_scheduler_configs[0].scheduler
    assert schedule.last_epoch == 2 + 4
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 * 0.9**6)
    assert history.states[2] != history.states[5]
    assert_identical(history.states[6], history.states[2])
    assert clip.state_dict()["optimizers"][0]["steps"] == 9


def test_rollback_takes_policies_of_other_callbacks_along(tmp_path) -> None:
    """Whatever callback says which policies it has in use gets their state put back, AdaptiveClip or not."""

    class OwnClip(pl.Callback):
        def __init__(self) -> None:
            self.policy, self.states = AutoClip(), list[Any]()

        def policies_in_use(self) -> list[list[Any]]:
            return [[self.policy]]

        def on_train_batch_start(self, *_: Any) -> None:
            self.states.append(copy.deepcopy(self.policy.state_dict()))
            self.policy.decide(StepReading(1.0 + len(self.states)))

    own, watch = OwnClip(), watching(tmp_path, "rollback", snapshot_every_n_steps=2)
    fit(tmp_path, TinyLanguageModel(before_rnn=poison(5)), own, watch)
    assert actions(watch) == [(5, "rolled back")]
    assert len(own.states[6]["history"]) < len(own.states[5]["history"])


class Carrying(TinyLanguageModel):
    """Carries its hidden state, and other things, in plain attributes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.hidden: tuple[Tensor, Tensor] | None = None
        self.memory: dict[str, list[Tensor]] = {}
        self.trained, self.accuracy = torch.zeros((), requires_grad=True), MeanMetric()
        self.losses: list[float] = []

    def loss(self, words: Tensor, batch_idx: int) -> Tensor:
        x = self.embedding(words[:, :-1])
        x = x if self.before_rnn is None else self.before_rnn(x, batch_idx)
        output, state = self.rnn(x, self.hidden)
        self.hidden = (state[0].detach(), state[1].detach())
        self.memory["c"] = [self.hidden[1]]
        loss = torch.nn.functional.cross_entropy(self.head(output).flatten(0, 1), words[:, 1:].flatten())
        self.losses.append(float(loss.detach()))
        self.accuracy.update(1.0)
        return loss + self.trained

    def on_train_batch_end(self, *_: Any) -> None:
        assert self.hidden is not None  # what the step left is there for the module's own hooks

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([*self.parameters(), self.trained], lr=self.lr)


@pytest.mark.parametrize(("at", "good"), [(1, 0), (5, 2)])
def test_rollback_takes_a_carried_state_along(tmp_path, at, good) -> None:
    """A hidden state in a plain attribute goes back with the weights, also to the None that it began with."""

    class States(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_train_batch_start(self, run: pl.Trainer, module: Any, *_: Any) -> None:
            self.seen.append(copy.deepcopy((module.hidden, module.memory)))

    watch, states = watching(tmp_path, "rollback", snapshot_every_n_steps=2), States()
    model = Carrying(before_rnn=poison(at))
    trained = model.trained
    run = fit(tmp_path, model, watch, states)
    assert actions(watch) == [(at, "rolled back")]
    assert_identical(states.seen[at + 1], states.seen[good])
    assert [math.isfinite(loss) for loss in model.losses] == [batch != at for batch in range(10)]
    assert run.global_step == 10
    assert model.trained is trained
    assert float(model.accuracy.weight) == 10


@pytest.mark.parametrize("at", [0, 4])
def test_a_state_that_cannot_be_copied(tmp_path, at) -> None:
    """Whether at once or later: one warning, the training goes on, and an anomaly stops it instead."""

    class Uncopyable(TinyLanguageModel):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = super().configure_optimizers()

            def fail(_: Any) -> None:
                if self.trainer.global_step >= at:
                    raise RuntimeError("not now")

            optimizer.register_state_dict_pre_hook(fail)
            return optimizer

    watch = watching(tmp_path, "rollback", snapshot_every_n_steps=2)
    with pytest.warns(UserWarning, match="cannot keep copies of the state") as caught:
        run = fit(tmp_path, Uncopyable(before_rnn=poison(7)), watch)
    assert sum("cannot keep copies" in str(w.message) for w in caught) == 1
    assert actions(watch) == [(7, "stopped")]
    assert run.global_step == 8
    assert all(weight.isfinite().all() for weight in run.lightning_module.state_dict().values())


def test_rollback_gives_up_after_so_many(tmp_path) -> None:
    """Where it cannot get past an anomaly, it stops with the last good weights and says so."""
    watch = watching(tmp_path, "rollback", snapshot_every_n_steps=1, max_responses=2)
    with pytest.warns(UserWarning, match="acted 2 times in succession"):
        run = fit(tmp_path, TinyLanguageModel(before_rnn=poison(4, 5, 6)), watch)
    assert actions(watch) == [(4, "rolled back"), (5, "stopped")]
    assert all("is undone" in event.remedy for event in watch.events if event.action in ("rolled back", "stopped"))
    assert_identical(end(run), end(fit(tmp_path, TinyLanguageModel(), max_epochs=-1, max_steps=3)))


def test_rollback_saves_a_training_whose_weights_were_spoilt(tmp_path) -> None:
    """A weight that becomes NaN after a step is undone, where skipping could only go on skipping."""

    class Spoils(pl.Callback):
        def on_train_batch_end(self, run: pl.Trainer, module: Any, *_: Any) -> None:
            if run.global_step == 5:
                with torch.no_grad():
                    module.rnn.weight_hh_l0[0, 0] = math.nan

    for response, sound in (("rollback", True), ("skip", False)):
        watch = watching(tmp_path, response, snapshot_every_n_steps=2)
        run = fit(tmp_path, TinyLanguageModel(), Spoils(), watch)
        assert all(weight.isfinite().all() for weight in end(run)["weights"].values()) == sound
        assert len(actions(watch)) == (1 if sound else 5)


@pytest.mark.parametrize("response", ["skip", "rollback"])
def test_an_accumulated_step_is_judged_as_a_whole(tmp_path, response) -> None:
    """One spoilt micro-batch of two is one anomalous optimizer step."""
    watch = watching(tmp_path, response, snapshot_every_n_steps=1)
    run = fit(tmp_path, TinyLanguageModel(before_rnn=poison(4)), watch, accumulate_grad_batches=2)
    assert [step for step, _ in actions(watch)] == [2]
    if response == "rollback":
        assert_identical(run.lightning_module.state_dict().keys(), TinyLanguageModel().state_dict().keys())
    assert all(weight.isfinite().all() for weight in end(run)["weights"].values())


@pytest.mark.parametrize("response", ["skip", "rollback"])
def test_under_a_gradient_scaler(tmp_path, response) -> None:
    """The scaler's search for its scale is no anomaly; a NaN in the input is one, and neither confuses the scaler."""
    watch = watching(tmp_path, response, snapshot_every_n_steps=1)
    with torch.backends.mkldnn.flags(enabled=False):
        run = fit(tmp_path, TinyLanguageModel(before_rnn=poison(6)), watch, plugins=scaled(2.0**24))
    assert [step for step, _ in actions(watch)] == [6]
    assert EventKind.AMP_OVERFLOW in {event.kind for event in watch.events}
    assert all(weight.isfinite().all() for weight in end(run)["weights"].values())
    assert run.precision_plugin.scaler.get_scale() > 0


@pytest.mark.parametrize("backward", ["lightning", "raw"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_optimization_by_hand(tmp_path, backward, wrapped) -> None:
    """A wrapped optimizer's step is skipped; after raw ones, which call no hook, the batch is undone by going back."""

    class Poisoned(Manual):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            if batch_idx == 4:
                handle = self.embedding.register_forward_hook(lambda *given: given[2] * math.nan)
            super().training_step(batch, batch_idx)
            if batch_idx == 4:
                handle.remove()

    response = "skip" if wrapped else "rollback"
    watch = watching(tmp_path, response, snapshot_every_n_steps=1)
    run = fit(tmp_path, Poisoned(backward=backward, wrapped=wrapped), watch)
    assert {action for _, action in actions(watch)} == {"skipped" if wrapped else "rolled back"}
    assert all(weight.isfinite().all() for weight in end(run)["weights"].values())


def test_the_state_is_no_part_of_a_copy(tmp_path) -> None:
    """Pickled or deep-copied in mid-fit, the callback holds no model and no copies of its state."""

    class Copies(pl.Callback):
        def on_train_batch_end(self, run: pl.Trainer, watched: Any, *_: Any) -> None:
            assert watch._fit.handling._responder is not None
            assert watch._fit.handling._responder._states is not None
            assert watch._fit.handling._bundles is not None
            assert watch._fit.handling._bundles._start is None
            assert len(pickle.dumps(watch)) < watched.rnn.weight_hh_l0.nbytes
            again = copy.deepcopy(watch)
            assert (again._fit, again.on_anomaly) == (None, "rollback")

    watch = watching(tmp_path, "rollback", bundles=1, every_n_steps=100)
    fit(tmp_path, TinyLanguageModel(hidden=128), watch, Copies(), limit_train_batches=2)
    assert watch._fit is None


def test_every_argument_is_built_from_yaml() -> None:
    """The types are those that LightningCLI builds from; a response that there is not is refused."""
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=GradWatch)
    given = {"on_anomaly": "rollback", "max_responses": 4, "snapshot_every_n_steps": 7, "bundles": 2, "bundle_mib": 64}

    def build(arguments: dict[str, Any]) -> GradWatch:
        config = {"callback": {"class_path": "lightning_gradwatch.GradWatch", "init_args": arguments}}
        return parser.instantiate(parser.parse_object(config)).callback

    built = build(given)
    assert {name: getattr(built, name) for name in given} == given
    assert build({}).on_anomaly is None
    with pytest.raises(jsonargparse.ArgumentError, match="explode"):
        build({"on_anomaly": "explode"})


def test_where_nothing_can_be_done_it_is_said(tmp_path) -> None:
    """Under a strategy that keeps the weights to itself, one warning; the training goes on."""
    strategy = type("DeepSpeedStrategy", (SingleDeviceStrategy,), {})(device=torch.device("cpu"))
    with pytest.warns(
        UserWarning, match=r'GradWatch\(on_anomaly="skip"\) does nothing in this fit: DeepSpeed'
    ) as caught:
        run = fit(tmp_path, TinyLanguageModel(), watching(tmp_path, "skip"), strategy=strategy)
    assert sum("does nothing" in str(w.message) for w in caught) == 1
    assert run.global_step == 10


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("on_anomaly", "explode"),
        ("max_responses", 0),
        ("snapshot_every_n_steps", 0),
        ("bundles", -1),
        ("bundle_mib", 0),
    ],
)
def test_a_wrong_argument_is_named(argument, value) -> None:
    """The error names argument, rule, value and remedy."""
    with pytest.raises(ValueError, match=rf"^`{argument}` must be .*; found {value!r}\. "):
        GradWatch(**{argument: value})


def _ready(response: str):
    """Makes a GradWatch that would act, and keeps what a bundle needs."""
    return lambda path: [
        GradWatch(every_n_steps=3, dirpath=path, on_anomaly=response, snapshot_every_n_steps=2, bundles=2)
    ]


TWO_LAYERS = {"layers": 2, "dropout": 0.2}
HEALTHY = [
    *(Configuration(response, TWO_LAYERS, watches=_ready(response)) for response in RESPONSES),
    *(
        Configuration(f"rollback, {name}", watches=_ready("rollback"), **options)
        for name, options in {
            "accumulation": {"model": TWO_LAYERS, "fit": {"accumulate_grad_batches": 3}},
            "validation and resumption": {"model": TWO_LAYERS, "validate": True, "resume": True},
            "16-mixed": {"fit": {"plugins": scaled}, "onednn": False, "exact": False},
            "16-mixed, overflowing": {"fit": {"plugins": lambda: scaled(2.0**24)}, "onednn": False, "exact": False},
            "16-mixed, fused": {"kind": Fused, "fit": {"plugins": scaled}, "onednn": False, "exact": False},
            "by hand": {"kind": Manual},
            "two optimizers": {"kind": Adversarial},
            "LBFGS": {"model": {"optimizer": "LBFGS", "lr": 0.1}, "fit": {"max_steps": 3}},
            "no loss at times": {"model": {"without_loss": (0, 2)}, "kind": SkipsBatches, "first_batch": 1},
        }.items()
    ),
]


@pytest.mark.parametrize("configuration", HEALTHY, ids=lambda c: c.name)
def test_a_healthy_run_stays_identical_to_the_bit(configuration: Configuration, tmp_path) -> None:
    """As long as nothing goes wrong, no response and no bundle changes a weight, a random stream or a metric."""
    bare = train(configuration, tmp_path / "bare", watched=False)
    assert_identical(bare, train(configuration, tmp_path / "watched", watched=True))
    assert not list((tmp_path / "watched").rglob("*.pt"))
