"""AdaptiveClip(clip_through_time=…, omega=…) in real Trainers."""

from __future__ import annotations

import copy
import csv
import pickle
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_gradwatch import AdaptiveClip, GradWatch, load_run
from tests.models import TinyLanguageModel, sentences, trainer
from tests.versions import cpu_scaler

BOUND = 1e-3
NEVER = 1e9


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def trained(tmp_path: Any, callbacks: list[Any], cell: str = "LSTM", data: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    model = TinyLanguageModel(cell, layers=2, dropout=0.2, optimizer="SGD", lr=0.5)
    trainer(tmp_path, callbacks, **options).fit(model, data or sentences())
    return model


def clip(**arguments: Any) -> AdaptiveClip:
    return AdaptiveClip(policy="norm", **arguments)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_a_bound_that_nothing_reaches_changes_nothing(tmp_path, cell) -> None:
    """The weights after training are those without it, to rounding; a bound that is reached gives others."""
    bare, held, clipped = (
        weights(trained(tmp_path, [clip(clip_through_time=bound)], cell)) for bound in (None, NEVER, BOUND)
    )
    for a, b in zip(bare, held, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert not all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(bare, clipped, strict=True))


@pytest.mark.parametrize("first", [True, False])
def test_gradwatch_beside_it_measures_what_flows(tmp_path, first) -> None:
    """Profiles stay exact, no total exceeds the bound, whichever callback comes first; and training is the same without it."""
    watch, ours = GradWatch(every_n_steps=1, max_sequences=None, keep_sequences=True), clip(clip_through_time=BOUND)
    model = trained(tmp_path, [watch, ours] if first else [ours, watch])
    alone = trained(tmp_path, [clip(clip_through_time=BOUND)])
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(alone), strict=True))
    assert watch.run_dir is not None
    records = load_run(watch.run_dir).profile_records
    assert {r["state"] for r in records} == {"h", "c"}
    assert all(r["exact"] for r in records)
    largest = max(max(r["total_max"]) for r in records)
    assert 0.99 * BOUND < largest <= 1.001 * BOUND


def test_a_cell_in_a_loop_is_held_beside_gradwatch(tmp_path) -> None:
    """The same holds for hidden states in the graph."""

    class Loop(TinyLanguageModel):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTMCell(6, 8)

        def loss(self, words, batch_idx):
            state, made = None, []
            for x in self.embedding(words[:, :-1]).unbind(1):
                state = self.rnn(x, state)
                made.append(self.head(state[0]))
            return nn.functional.cross_entropy(torch.stack(made, 1).flatten(0, 1), words[:, 1:].flatten())

    watch = GradWatch(every_n_steps=1, max_sequences=None)
    trainer(tmp_path, [clip(clip_through_time=BOUND), watch]).fit(Loop(), sentences())
    assert watch.run_dir is not None
    largest = max(max(r["total_max"]) for r in load_run(watch.run_dir).profile_records)
    assert 0.99 * BOUND < largest <= 1.001 * BOUND


class Ends(pl.Callback):
    """Ends a fit in its fourth batch."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 3:
            raise self.error("planted")


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_hooks_come_off_on_every_way_out(tmp_path, error) -> None:
    """After the end, an exception and an interrupt the model has no hook of ours, and trains as any other."""
    torch.manual_seed(0)
    model = TinyLanguageModel("RNN", layers=2, dropout=0.1)
    callback = clip(clip_through_time=BOUND, omega=1.0)
    fit = trainer(tmp_path, [callback, *([Ends(error)] if error else [])])
    try:
        fit.fit(model, sentences())
    except (RuntimeError, SystemExit):
        assert error is not None
    assert not model.rnn._forward_hooks
    assert not model.rnn._forward_pre_hooks
    assert callback._through_time._hooks is None


def test_copies_and_pickles_in_the_middle_of_a_fit(tmp_path) -> None:
    """Model and callback can be copied and pickled while hooks are on; the callback holds no module then."""
    sizes = []

    class Copies(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_: Any) -> None:
            copy.deepcopy(pl_module.rnn)
            sizes.append(len(pickle.dumps(copy.deepcopy(callback))))

    callback = clip(clip_through_time=BOUND)
    trained(tmp_path, [callback, Copies()])
    assert max(sizes) < 20_000


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path) -> None:
    """A checkpoint in the middle changes nothing, to the bit."""

    def fit(epochs: int, ckpt_path: Any = None) -> tuple[nn.Module, pl.Trainer]:
        torch.manual_seed(0)
        model = TinyLanguageModel("RNN", layers=2, optimizer="SGD", lr=0.5)
        made = trainer(tmp_path, [AdaptiveClip(clip_through_time=BOUND, omega=0.5)], max_steps=-1, max_epochs=epochs)
        made.fit(model, sentences(), ckpt_path=ckpt_path)
        return model, made

    whole, _ = fit(2)
    _, half = fit(1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, later = fit(2, tmp_path / "half.ckpt")
    assert later.global_step == 8
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_accumulation_does_not_change_the_bound(tmp_path) -> None:
    """One batch of 8 and one accumulated from 4 of 2 are clipped alike: the loss's division is undone."""
    found = []
    for batch, windows in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        model = TinyLanguageModel("GRU", optimizer="SGD", lr=0.5)
        # A mean over the batch: a sequence's own gradient grows as its batch shrinks, and so must the bound.
        callback = clip(clip_through_time=4e-3 / batch)
        data = sentences(count=8, batch=batch)
        trainer(tmp_path, [callback], max_steps=1, accumulate_grad_batches=windows).fit(model, data)
        found.append(weights(model))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_loss_scale_does_not_change_the_bound(tmp_path) -> None:
    """Under a gradient scaler as many hidden states are clipped as without."""
    shares = []
    for options in ({}, {"init_scale": 1024.0}):
        torch.backends.mkldnn.enabled = not options
        try:
            plugins = [MixedPrecision("16-mixed", "cpu", scaler=cpu_scaler(**options))] if options else []
            logger = CSVLogger(tmp_path, name=f"scale{len(options)}", version=0)
            torch.manual_seed(0)
            model = TinyLanguageModel("GRU", optimizer="SGD", lr=0.5)
            fit = trainer(
                tmp_path,
                [clip(clip_through_time=8 * BOUND)],
                max_steps=3,
                plugins=plugins,
                logger=logger,
                log_every_n_steps=1,
            )
            fit.fit(model, sentences())
        finally:
            torch.backends.mkldnn.enabled = True
        with open(f"{logger.log_dir}/metrics.csv") as file:
            shares.append(
                [
                    float(row["gradwatch/through_time"])
                    for row in csv.DictReader(file)
                    if row.get("gradwatch/through_time")
                ]
            )
    assert len(shares[0]) == 3
    assert 0.05 < shares[0][0] < 1
    assert shares[1] == pytest.approx(shares[0], abs=0.05)


def test_nothing_to_hold_is_said(tmp_path) -> None:
    """A model without a recurrence is told so after its first batch."""

    class Flat(TinyLanguageModel):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.Identity()
            self.head = nn.Linear(6, 12)

        def loss(self, words, batch_idx):
            return self.head(self.embedding(words)).square().mean()

    with pytest.warns(UserWarning, match="found no hidden state"):
        trainer(tmp_path, [clip(clip_through_time=BOUND)]).fit(Flat(), sentences())


@pytest.mark.parametrize(
    "arguments", [{"clip_through_time": 0.0}, {"clip_through_time": float("nan")}, {"omega": -1.0}]
)
def test_bad_arguments_are_one_clear_error(arguments) -> None:
    """Each names the argument, the rule and what was found."""
    (name,) = arguments
    with pytest.raises(ValueError, match=rf"`{name}` must be finite and > 0; found"):
        AdaptiveClip(**arguments)


def test_omega_keeps_an_rnns_gradient_from_vanishing(tmp_path) -> None:
    """With it the recurrent weight's spectral radius rises towards where norms are kept."""
    norms = []
    for omega in (None, 2.0):
        model = trained(tmp_path, [clip(omega=omega)], "RNN", max_steps=60, max_epochs=-1)
        norms.append(float(torch.linalg.matrix_norm(model.rnn.weight_hh_l0.detach())))
    assert norms[1] > 1.1 * norms[0]
