"""What is said of a scan: where its numbers stop being finite, that it vanishes or explodes, that it was not marked."""

# Over 300 lines: all that is said of one kind of recurrence, each beside the scan that provokes it.
from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import EventKind, GradWatch, load_run, tap_scan
from lightning_gradwatch.events import Event, Severity
from lightning_gradwatch.runlog.summary import summarise
from tests.models import trainer
from tests.scan_models import LRU, Backwards, Gated, HiddenLRU, Selective, parallel

TIME, WIDTH = 60, 6


class Fits(pl.LightningModule):
    """A head on what a network makes of a sequence.

    Args:
        net: ``(batch, time, width)`` → the same, with any width.
        read: what the head reads of it.
    """

    def __init__(self, net: nn.Module, read: Callable[[Tensor], Tensor] = lambda y: y[:, -1], lr: float = 1e-3) -> None:
        super().__init__()
        self.net, self.read, self.lr, self.head = net, read, lr, nn.LazyLinear(1)
        self.head(read(torch.zeros_like(net(torch.zeros(2, TIME, WIDTH)).detach()).float()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.head(self.read(self.net(x)).float()), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


def fit(
    path: Path, model: pl.LightningModule, steps: int = 12, spoil: Callable[[Tensor], None] | None = None
) -> GradWatch:
    x = torch.randn(64, TIME, WIDTH)
    if spoil is not None:
        spoil(x)
    watch = GradWatch(every_n_steps=2, dirpath=path / "run", max_sequences=None)
    trainer(path, [watch], max_steps=steps).fit(model, DataLoader(TensorDataset(x, torch.randn(64, 1)), 8))
    return watch


def only(watch: GradWatch, kind: EventKind) -> Event:
    (event,) = [event for event in watch.events if event.kind == kind and event.action is None]
    return event


def horizon(watch: GradWatch) -> int:
    return load_run(watch.run_dir).profile_records[-1]["horizon"]


VANISHING = {
    "a gate": (
        lambda: Gated(WIDTH, 8),
        lambda: Gated(WIDTH, 8, bias=math.log(TIME)),
        "a bias with which it stays open",
    ),
    "a ring": (lambda: LRU(WIDTH, 8, 0.3, 0.6), lambda: LRU(WIDTH, 8, 0.95, 0.999), "r_min and r_max"),
    "a hidden ring": (
        lambda: HiddenLRU(WIDTH, 8, 0.3, 0.6),
        lambda: HiddenLRU(WIDTH, 8, 0.95, 0.999),
        "r_min and r_max",
    ),
    "a step": (lambda: Selective(WIDTH), lambda: with_small_steps(Selective(WIDTH)), "a smaller Δ"),
}


def with_small_steps(net: Selective) -> Selective:
    nn.init.constant_(net.step.bias, -4.5)  # softplus(-4.5) = 0.011
    return net


@pytest.mark.parametrize("case", VANISHING)
def test_a_scan_that_forgets_is_told_and_its_remedy_helps(case: str, tmp_path: Path) -> None:
    """The remedy speaks of decays, not of forget gates, and with it the gradient reaches several times as far."""
    forgets, remembers, advice = VANISHING[case]
    watch = fit(tmp_path / "short", Fits(forgets()))
    event = only(watch, EventKind.VANISHING_HIDDEN_GRADIENT)
    assert advice in event.remedy
    assert "exp(−1/60) = 0.9835" in event.remedy
    assert not any(word in event.remedy for word in ("forget", "LSTM", "recurrent weight", "nan"))
    better = fit(tmp_path / "long", Fits(remembers()))
    assert not [event for event in better.events if event.kind == EventKind.VANISHING_HIDDEN_GRADIENT]
    assert horizon(better) > 3 * horizon(watch)


def test_a_decay_over_1_explodes_and_a_bound_on_it_ends_that(tmp_path: Path) -> None:
    """The remedy names |a|; made by a sigmoid, the gradient no longer grows."""

    class Free(nn.Module):
        def __init__(self, bound: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.a, self.bound = nn.Parameter(torch.full((WIDTH,), 1.2)), bound

        def forward(self, x: Tensor) -> Tensor:
            a = self.bound(self.a)
            return tap_scan(parallel(a, x), a, inputs=x, name="free")

    watch = fit(tmp_path / "free", Fits(Free(lambda a: a), lr=1e-6))
    event = only(watch, EventKind.EXPLODING_HIDDEN_GRADIENT)
    assert "|a| is over 1" in event.remedy
    assert not any(word in event.remedy for word in ("orthogonal", "Truncating", "gated cell"))
    bounded = fit(tmp_path / "bound", Fits(Free(torch.sigmoid), lr=1e-6))
    assert EventKind.EXPLODING_HIDDEN_GRADIENT not in {event.kind for event in bounded.events}


NETS = {"a gate": lambda: Gated(WIDTH, 8), "a ring": lambda: LRU(WIDTH, 8), "backwards": lambda: Backwards(WIDTH, 8)}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_input_is_named_where_it_enters_the_scan(bad: float, tmp_path: Path) -> None:
    """By sequence and timestep, at the decay that was made of it."""

    def spoil(x: Tensor) -> None:
        x[17, 3, 1] = bad

    torch.manual_seed(1)
    watch = fit(tmp_path, Fits(Gated(WIDTH, 8)), 4, spoil)
    event = only(watch, EventKind.NONFINITE_INPUT)
    assert (event.step, event.module, event.timestep, event.sequence) == (2, "gated", 3, 1)


def test_a_state_that_leaves_the_numbers_is_named(tmp_path: Path) -> None:
    """Its decay and inputs are finite, and the remedy speaks of the scan."""

    class Grows(nn.Module):
        def __init__(self, name_inputs: bool) -> None:
            super().__init__()
            self.scale, self.name_inputs = nn.Parameter(torch.ones(())), name_inputs

        def forward(self, x: Tensor) -> Tensor:
            a = 50.0 * self.scale.expand(8, TIME, WIDTH)
            b = x * self.scale
            return tap_scan(parallel(a, b), a, inputs=b if self.name_inputs else None, name="grows")

    for named in (True, False):
        model = Fits(nn.Identity())
        model.net = Grows(named)
        watch = fit(tmp_path / str(named), model, 1)
        event = only(watch, EventKind.NONFINITE_STATE)
        assert event.module == "grows"
        assert 15 < event.timestep < 40  # 50 ** 22 is beyond float32
        assert "keep |a| at 1 or under" in event.remedy
        assert ("from a finite input" in event.message) == named
        assert ("was not given" in event.message) != named


def test_a_readout_that_is_not_finite_is_named(tmp_path: Path) -> None:
    """By the timestep and sequence at which it is read out, though the states themselves are hidden."""

    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(WIDTH, 4)

        def forward(self, x: Tensor) -> Tensor:
            a, readout = torch.full((WIDTH, 4), 0.5), self.read(x)
            if len(x) == 8:  # not while the head is made
                readout = readout.masked_fill(at(5, 7, x), math.nan)
            y = torch.einsum("btdn,btn->btd", parallel(a, x[..., None].expand(*x.shape, 4)), readout)
            return tap_scan(y, a, readout=readout, name="read")

    def at(sequence: int, timestep: int, x: Tensor) -> Tensor:
        found = torch.zeros(*x.shape[:2], 1, dtype=torch.bool)
        found[sequence, timestep] = True
        return found

    event = only(fit(tmp_path, Fits(Read(), lambda y: y.mean(1)), 1), EventKind.NONFINITE_INPUT)
    assert (event.module, event.timestep, event.sequence) == ("read", 7, 5)
    assert "what reads its states out" in event.message


@pytest.mark.parametrize("name", NETS)
def test_a_gradient_that_arrives_broken_is_named_where_it_arrives(name: str, tmp_path: Path) -> None:
    """A root at 0 in the head sends an infinite gradient to one timestep of one sequence."""

    class Broken(Fits):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            y = self.net(batch[0])
            at = (y[5, 7] * 0.0).sum().sqrt() if batch_idx == 1 else 0.0
            return nn.functional.mse_loss(self.head(y[:, -1]), batch[1]) + y[:, 0].mean() + at

    watch = fit(tmp_path, Broken(NETS[name]()), 3)
    event = only(watch, EventKind.NONFINITE_HIDDEN_GRADIENT)
    assert (event.step, event.timestep, event.sequence) == (1, 7, 5)
    assert "sqrt" in event.message


def test_a_gradient_that_overflows_on_its_way_is_called_growth(tmp_path: Path) -> None:
    """Every state is finite, what arrives is finite, and the decays over 1 make it infinite."""

    class Back(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.full((WIDTH,), 8.0)), nn.Parameter(torch.full((), 1e-30))

        def forward(self, x: Tensor) -> Tensor:
            b = torch.cat([(x * self.b * 0.0)[:, :-1], x[:, -1:] * self.b], 1)
            return tap_scan(parallel(self.a, b), self.a, inputs=b, name="back")

    watch = fit(tmp_path, Fits(Back()), 1)
    event = only(watch, EventKind.NONFINITE_HIDDEN_GRADIENT)
    assert event.module == "back"
    assert "had grown from" in event.message
    assert "Decays over 1" in event.remedy


def test_a_mismatch_is_told_once(tmp_path: Path) -> None:
    """Whatever the number of samples; the profile says that it is not exact, and why."""

    class Shifted(Gated):
        def forward(self, x: Tensor) -> Tensor:
            keep = torch.sigmoid(self.gate(x))
            b = (1 - keep) * self.value(x)
            return tap_scan(parallel(keep.roll(1, 1), b), keep, inputs=b, name="shifted")

    watch = fit(tmp_path, Fits(Shifted(WIDTH, 8)))
    event = only(watch, EventKind.SCAN_MISMATCH)
    assert (event.module, event.timestep) == ("shifted", 1)
    assert event.value > event.threshold
    records = load_run(watch.run_dir).profile_records
    assert len(records) > 3
    assert all("differs from its recurrence" in record["inexact_reason"] for record in records)


@pytest.mark.parametrize("wrong", ["no sigmoid", "doubled", "negative"])
def test_lags_of_a_wrong_mark_are_not_judged(tmp_path: Path, wrong: str) -> None:
    """With the decays that were named the gradient would explode or vanish; the network's own does neither, and the mark is told."""

    class Mistaken(Gated):
        def forward(self, x: Tensor) -> Tensor:
            logits = self.gate(x) + 2
            keep = torch.sigmoid(logits)
            b = (1 - keep) * self.value(x)
            named = {"no sigmoid": logits, "doubled": 2 * keep, "negative": 0.1 * keep - 0.2}[wrong]
            return tap_scan(parallel(keep, b), named, inputs=b, name="mistaken")

    watch = fit(tmp_path, Fits(Mistaken(WIDTH, 8)))
    assert {event.kind for event in watch.events if not event.action} == {EventKind.SCAN_MISMATCH}
    (layer,) = watch.verdicts
    assert layer.said == "undecided"
    assert layer.sentence.startswith(
        "The horizon is not known: the states are not what the marked decay and inputs make."
    )


class MambaBlock(nn.Module):
    """What it does inside is not known; its class has the name of a scan."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Gated(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.sigmoid(self.inner.gate(x))
        return parallel(keep, (1 - keep) * self.inner.value(x))


class MarkedMambaBlock(MambaBlock):
    def forward(self, x: Tensor) -> Tensor:
        return tap_scan(super().forward(x), torch.sigmoid(self.inner.gate(x)), name="marked")


class Beside(nn.Module):
    """A network beside an LSTM."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.lstm, self.net = nn.LSTM(WIDTH, WIDTH, batch_first=True), net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.lstm(x)[0])


def test_a_module_that_looks_like_a_scan_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the name of its class, as a note, alone or beside an LSTM, however many there are."""
    for name, net in (("alone", MambaBlock()), ("two", nn.Sequential(MambaBlock(), nn.Linear(8, WIDTH), MambaBlock()))):
        for beside in (False, True):
            watch = fit(tmp_path / f"{name}{beside}", Fits(Beside(net) if beside else net), 3)
            event = only(watch, EventKind.NOT_OBSERVED)
            assert event.severity == Severity.INFO
            assert "(MambaBlock)" in event.message
            assert ("and 1 more like it look" in event.message) == (name == "two")
            assert "tap_scan" in event.remedy
    assert "found no recurrent module" not in capsys.readouterr().err


def test_who_marked_a_scan_gets_no_such_line(tmp_path: Path) -> None:
    """Nor does a model without such a name, nor one whose cell of that name is observed."""

    class MinGRU(nn.Module):
        """A cell called once a timestep."""

        def __init__(self) -> None:
            super().__init__()
            self.gate, self.value = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            keep = torch.sigmoid(self.gate(x))
            return keep * h + (1 - keep) * self.value(x)

    class Looped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = MinGRU()

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(len(x), 8)
            for t in range(x.shape[1]):
                h = self.cell(x[:, t], h)
            return h[:, None]

    for place, net in enumerate((MarkedMambaBlock(), Beside(nn.Linear(WIDTH, 8)), Looped())):
        watch = fit(tmp_path / str(place), Fits(net), 3)
        assert EventKind.NOT_OBSERVED not in {event.kind for event in watch.events}


UNSEEN = {
    "detached": (lambda h: h.detach(), "need no gradient", "before detach()"),
    "not used": (lambda h: h, "No loss reached its output", "let what it returns reach the loss"),
}


@pytest.mark.parametrize("case", UNSEEN)
def test_states_that_no_gradient_reaches_are_told(case: str, tmp_path: Path) -> None:
    """By the name under which they were marked, with the reason and what to do."""
    change, reason, remedy = UNSEEN[case]

    class Unreached(Gated):
        def forward(self, x: Tensor) -> Tensor:
            h = parallel(torch.sigmoid(self.gate(x)), self.value(x))
            tap_scan(change(h * 1), torch.sigmoid(self.gate(x)), name="mine")
            return h

    watch = fit(tmp_path, Fits(Unreached(WIDTH, 8)), 3)
    event = only(watch, EventKind.NOT_OBSERVED)
    assert event.module == "mine"
    assert reason in event.message
    assert remedy in event.remedy


def test_states_under_no_grad_are_told(tmp_path: Path) -> None:
    """A scan that never trains."""

    class Frozen(Gated):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    event = only(fit(tmp_path, Fits(Frozen(WIDTH, 8)), 3), EventKind.NOT_OBSERVED)
    assert event.module == "gated"
    assert "nothing in it needs a gradient" in event.message.lower()


def test_a_scan_backwards_that_is_read_at_its_begin_is_told(tmp_path: Path) -> None:
    """The remedy speaks of the scan's own end, not of h_n."""
    event = only(fit(tmp_path, Fits(Backwards(WIDTH, 8))), EventKind.FEW_TIMESTEPS_REACHED)
    assert "at timestep 0" in event.remedy
    assert "h_n" not in event.remedy
    read_at_0 = fit(tmp_path / "end", Fits(Backwards(WIDTH, 8), lambda y: y[:, 0]))
    assert EventKind.FEW_TIMESTEPS_REACHED not in {event.kind for event in read_at_0.events}


def test_layers_and_calls_are_told_apart(tmp_path: Path) -> None:
    """Two names are two places; one name twice in a step is two calls of one place."""

    class Stack(nn.Module):
        def __init__(self, names: tuple[str, str]) -> None:
            super().__init__()
            self.names, self.layers = names, nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in names])

        def forward(self, x: Tensor) -> Tensor:
            for name, layer in zip(self.names, self.layers, strict=True):
                a = torch.sigmoid(layer(x))
                x = tap_scan(parallel(a, x), a, inputs=x, name=name)
            return x

    two = load_run(fit(tmp_path / "two", Fits(Stack(("one", "two"))), 3).run_dir).profile_records
    assert {(record["module"], record["call"]) for record in two} == {("one", 0), ("two", 0)}
    same = load_run(fit(tmp_path / "one", Fits(Stack(("one", "one"))), 3).run_dir).profile_records
    assert {(record["module"], record["call"]) for record in same} == {("one", 0), ("one", 1)}


def test_the_closing_line_tells_the_channels(tmp_path: Path) -> None:
    """How far half of them reach, and the best."""

    class Ladder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            a = torch.tensor([0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.999])
            b = (x[..., :1] * self.scale).expand(*x.shape[:2], 12)
            return tap_scan(parallel(a, b), a, inputs=b, name="ladder")

    watch = fit(tmp_path, Fits(Ladder()), 6)
    run = load_run(watch.run_dir)
    (layer,) = summarise(run.profile_records, run.event_records)
    assert "Of its 12 channels half reach 7 timesteps or more, 2 outlive the sequence." in layer.sentence
