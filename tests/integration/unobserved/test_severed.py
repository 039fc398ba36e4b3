"""A state through which nothing flows is told in whatever form it comes; a module that is called several times for good reasons is not."""

# Over 300 lines: one table of the forms in which a state is severed, and one of those in which it is not.
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch import EventKind, GradWatch, load_run, tap
from lightning_gradwatch.report import write_report
from lightning_gradwatch.runlog.summary import Verdict, summarise
from tests.integration.recurrences import (
    HIDDEN,
    WIDTH,
    ByHand,
    OwnCell,
    Run,
    WithStart,
    cell,
    fused,
    lstm_cell,
    series,
    zeros,
)
from tests.models import trainer


def fit(net: nn.Module, run: Run, tmp_path: Path, data: Any = None, steps: int = 3) -> GradWatch:
    torch.manual_seed(0)
    watch = GradWatch(dirpath=tmp_path / "run", every_n_steps=1, summary=False)
    trainer(tmp_path, [watch], max_steps=steps).fit(ByHand(net, run), series() if data is None else data)
    return watch


def told(watch: GradWatch) -> list[str | None]:
    """Of which modules it is said that nothing flows through time."""
    return [event.module for event in watch.events if event.kind == EventKind.NO_GRADIENT_THROUGH_TIME]


def gru() -> nn.Module:
    return nn.GRU(WIDTH, HIDDEN, batch_first=True)


def detached(state: Any) -> Any:
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


def embedded(net: nn.ModuleList, x: Tensor) -> Tensor:
    """Each timestep is embedded by itself, and the state never passed on."""
    words = (x[..., 0] > 0).long()
    return sum(net[1](net[0](words[:, t])[:, None])[0].square().mean() for t in range(x.shape[1]))


def begins_trained(net: WithStart, x: Tensor) -> Tensor:
    return sum(net.rnn(x[:, t : t + 1], net.begin(x))[0].square().mean() for t in range(x.shape[1]))


def begins_trained_from_the_second_on(net: WithStart, x: Tensor) -> Tensor:
    state, total = torch.zeros(1, len(x), HIDDEN), 0
    for t in range(x.shape[1]):
        output, _ = net.rnn(x[:, t : t + 1], state)
        state, total = net.start.expand(1, len(x), HIDDEN).contiguous(), total + output.square().mean()
    return total


def begins_trained_cell(net: WithStart, x: Tensor) -> Tensor:
    return sum(net.rnn(x[:, t], net.begin(x)[0]).square().mean() for t in range(x.shape[1]))


def tapped(net: nn.ModuleList, x: Tensor, after: bool) -> Tensor:
    h, total = zeros(x), 0
    for t in range(x.shape[1]):
        out = torch.tanh(net[0](x[:, t]) + net[1](h))
        out = out if after else tap(out, "mine")
        total = total + out.square().mean()
        h = tap(out.detach(), "mine") if after else out.detach()
    return total


def two_layers() -> nn.Module:
    return nn.ModuleList([nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, HIDDEN)])


def detached_and_tapped(net: nn.Module, x: Tensor) -> Tensor:
    h, total = zeros(x), 0
    for t in range(x.shape[1]):
        out = tap(net(x[:, t], h), "mine")
        h, total = out.detach(), total + out.square().mean()
    return total


def tapped_after_detach(net: nn.Module, x: Tensor) -> Tensor:
    h, total = zeros(x), 0
    for t in range(x.shape[1]):
        out = net(x[:, t], h)
        h, total = tap(out.detach(), "mine"), total + out.square().mean()
    return total


SEVERED: dict[str, tuple[Callable[[], nn.Module], Run, str]] = {
    "nn.LSTMCell, detached": (lambda: nn.LSTMCell(WIDTH, HIDDEN), lstm_cell(torch.detach), "net"),
    "nn.GRUCell, detached and masked": (lambda: nn.GRUCell(WIDTH, HIDDEN), cell(lambda h: h.detach() * (h[:, :1] > 0)), "net"),
    "nn.GRUCell, a new state of zeros": (lambda: nn.GRUCell(WIDTH, HIDDEN), cell(torch.zeros_like), "net"),
    "nn.RNNCell, no state": (lambda: nn.RNNCell(WIDTH, HIDDEN), cell(lambda h: None), "net"),
    "nn.GRUCell, a trained state": (lambda: WithStart(nn.GRUCell(WIDTH, HIDDEN)), begins_trained_cell, "net.rnn"),
    "a cell of one's own, detached": (OwnCell, cell(torch.detach), "net"),
    "a cell of one's own, a new state of zeros": (OwnCell, cell(torch.zeros_like), "net"),
    "a cell of one's own, a state made of ones": (OwnCell, cell(lambda h: torch.ones_like(h)), "net"),
    "a cell of one's own, a trained state": (lambda: WithStart(OwnCell()), begins_trained_cell, "net.rnn"),
    "a cell of one's own, called by its forward": (
        OwnCell,
        lambda net, x: cell(torch.detach)(net.forward, x),
        "net",
    ),
    "a cell of one's own, detached and tapped": (OwnCell, detached_and_tapped, "mine"),
    "a cell of one's own, tapped after the detach": (OwnCell, tapped_after_detach, "mine"),
    "a cell of one's own, its data copied": (OwnCell, cell(lambda h: h.data.clone()), "net"),
    "a cell of one's own, detached and masked": (OwnCell, cell(lambda h: h.detach() * (h[:, :1] > 0)), "net"),
    "a tap after the detach": (two_layers, lambda net, x: tapped(net, x, True), "mine"),
    "a tap before the detach": (two_layers, lambda net, x: tapped(net, x, False), "mine"),
    "nn.GRU, detached": (gru, fused(detached), "net"),
    "nn.LSTM, detached": (lambda: nn.LSTM(WIDTH, HIDDEN, 2, batch_first=True), fused(detached), "net"),
    "nn.GRU, from a list of numbers": (gru, fused(lambda h: torch.tensor(h.tolist())), "net"),
    "nn.GRU, detached and dropped out": (gru, fused(lambda h: nn.functional.dropout(h.detach(), 0.3)), "net"),
    "nn.GRU, detached and normalised": (gru, fused(lambda h: nn.functional.layer_norm(h.detach(), (HIDDEN,))), "net"),
    "nn.GRU, a new state of zeros": (gru, fused(torch.zeros_like), "net"),
    "nn.GRU, no state": (gru, fused(lambda h: None), "net"),
    "nn.GRU, no state, words embedded one by one": (lambda: nn.ModuleList([nn.Embedding(2, WIDTH), gru()]), embedded, "net.1"),
    "nn.GRU, a trained state": (lambda: WithStart(gru()), begins_trained, "net.rnn"),
    "nn.GRU, a trained state after zeros": (
        lambda: WithStart(gru()),
        begins_trained_from_the_second_on,
        "net.rnn",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", SEVERED)
def test_a_severed_state_is_told(form: str, tmp_path: Path, recwarn) -> None:
    """Once, under the module's or the tap's name, with a verdict of its own; and nobody is told that there is nothing to watch."""
    make, run, name = SEVERED[form]
    watch = fit(make(), run, tmp_path)
    assert told(watch) == [name]
    assert not any("found no recurrent module" in str(warning.message) for warning in recwarn)
    log = load_run(tmp_path / "run")
    (layer, *_) = found = summarise(log.profile_records, log.event_records)
    assert {one.verdict for one in found} == {Verdict.NO_GRADIENT_THROUGH_TIME}
    assert layer.module == name
    assert f"nothing flows through time. No gradient flows through time in {name}." in layer.line
    assert not [event for event in watch.events if event.kind == EventKind.NOT_OBSERVED]


class MayBegin(OwnCell):
    """A cell that begins by itself where it is given no state."""

    def forward(self, x: Tensor, hx: Tensor | None = None) -> Tensor:
        return super().forward(x, zeros(x) if hx is None else hx)


class Pair(nn.Module):
    """An LSTM's cell in a module of its own, whose state is optional."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(WIDTH, 4 * HIDDEN), nn.Linear(HIDDEN, 4 * HIDDEN)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        h, c = state or (zeros(x), zeros(x))
        i, f, g, o = (self.x(x) + self.h(h)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


def with_context(net: nn.ModuleList, x: Tensor) -> Tensor:
    """A cell over each input and what an encoder made of all, as a gated layer."""
    context = torch.tanh(net[0](x.mean(1)))
    return sum(net[1](x[:, t], context).square().mean() for t in range(x.shape[1]))


IF_ONE = "takes one timestep of one sequence, a slice of one tensor, and begins anew"

NOTED: dict[str, tuple[Callable[[], nn.Module], Run, str, str]] = {
    "nn.GRUCell over a context": (
        lambda: nn.ModuleList([nn.Linear(WIDTH, HIDDEN), nn.GRUCell(WIDTH, HIDDEN)]),
        with_context,
        "net.1",
        "works as a gated layer",
    ),
    "nn.RNNCell over a context": (
        lambda: nn.ModuleList([nn.Linear(WIDTH, HIDDEN), nn.RNNCell(WIDTH, HIDDEN)]),
        with_context,
        "net.1",
        "works as a gated layer",
    ),
    "nn.GRUCell over data": (
        lambda: nn.GRUCell(WIDTH, WIDTH),
        lambda net, x: sum(net(x[:, t], x[:, 0]).square().mean() for t in range(1, x.shape[1])),
        "net",
        "works as a gated layer",
    ),
    "a cell of one's own, given no state": (
        MayBegin,
        lambda net, x: sum(net(x[:, t]).square().mean() for t in range(x.shape[1])),
        "net",
        "none is given hx",
    ),
    "a cell of one's own with a pair, given none": (
        Pair,
        lambda net, x: sum(net(x[:, t])[0].square().mean() for t in range(x.shape[1])),
        "net",
        "none is given state",
    ),
    "one sequence, nn.GRU without a state": (gru, lambda net, x: fused(lambda h: None)(net, x[:1]), "net", IF_ONE),
    "one sequence, nn.LSTMCell without a state": (
        lambda: nn.LSTMCell(WIDTH, HIDDEN),
        lambda net, x: sum(net(x[:1, t])[0].square().mean() for t in range(x.shape[1])),
        "net",
        IF_ONE,
    ),
    "one sequence with time first, nn.RNN": (
        lambda: nn.RNN(WIDTH, HIDDEN),
        lambda net, x: sum(net(step[None])[0].square().mean() for step in x[:1].transpose(0, 1)),
        "net",
        IF_ONE,
    ),
    "one sequence, a cell of one's own": (
        OwnCell,
        lambda net, x: cell(torch.zeros_like)(net, x[:1]),
        "net",
        "of one sequence",
    ),
    "elements of one timestep each": (gru, lambda net, x: each(net, x[:, :1]), "net", IF_ONE),
}


@pytest.mark.parametrize("form", NOTED)
def test_what_may_be_meant_is_a_note(form: str, tmp_path: Path, recwarn) -> None:
    """A gated layer, a cell that is given no state, one whose slices may be sequences: told truly, once, as no alarm."""
    make, run, name, words = NOTED[form]
    watch = fit(make(), run, tmp_path)
    (event,) = watch.events
    assert (event.kind, event.severity, event.module) == (EventKind.NOT_OBSERVED, "info", name)
    assert words in event.message
    log = load_run(tmp_path / "run")
    (layer,) = summarise(log.profile_records, log.event_records)
    assert layer.verdict is Verdict.NOT_OBSERVED
    assert words in layer.sentence
    assert not any("found no recurrent module" in str(warning.message) for warning in recwarn)


def cut(what: Callable[[Tensor], Tensor]) -> Run:
    """h is passed on, and of c what is made of it."""

    def run(net: nn.Module, x: Tensor) -> Tensor:
        if isinstance(net, nn.LSTMCell):
            h = c = zeros(x)
            for t in range(x.shape[1]):
                h, c = net(x[:, t], (h, what(c)))
            return h.square().mean()
        h = c = zeros(x)[None]
        for t in range(x.shape[1]):
            _, (h, c) = net(x[:, t : t + 1], (h, what(c)))
        return h.square().mean()

    return run


@pytest.mark.parametrize("what", [torch.zeros_like, torch.detach, lambda c: c.detach() * 0.5])
@pytest.mark.parametrize("make", [lambda: nn.LSTMCell(WIDTH, HIDDEN), lambda: nn.LSTM(WIDTH, HIDDEN, batch_first=True)])
def test_a_cell_state_that_is_cut_has_its_own_remedy(make: Any, what: Any, tmp_path: Path) -> None:
    """Not the forget gate, which has nothing to keep: with c passed on, that advice is not given, and the gradient reaches further."""
    watch = fit(make(), cut(what), tmp_path, data=series(40, WIDTH), steps=4)
    (event,) = [e for e in watch.events if e.kind == EventKind.VANISHING_HIDDEN_GRADIENT and e.action is None]
    assert "pass c on" in event.remedy
    assert "ln 40" not in event.remedy
    mended = fit(make(), cut(lambda c: c), tmp_path / "mended", data=series(40, WIDTH), steps=4)
    assert not any("pass c on" in e.remedy for e in mended.events)
    reach = [w.lagged["net", 0, "forward"].horizon().lag or 0 for w in (watch, mended)]
    assert reach[1] > reach[0]


def each(net: nn.Module, x: Tensor) -> Tensor:
    """One call for each element of the batch."""
    return sum(net(x[i : i + 1])[0].square().mean() for i in range(len(x)))


def three(net: nn.Module, x: Tensor) -> Tensor:
    """Three sequences, one call each."""
    return sum(net(torch.randn(len(x), 5, WIDTH))[0].square().mean() for _ in range(3))


def both_ways(net: nn.Module, x: Tensor) -> Tensor:
    return sum(net(way)[0].square().mean() for way in (x, x.flip(1), x.flip(1) * 2))


def both_ways_by_cell(net: nn.Module, x: Tensor) -> Tensor:
    """Both directions in one loop: two sequences over one cell that take turns."""
    h, g = zeros(x), zeros(x)
    for t in range(x.shape[1]):
        h, g = net(x[:, t], h), net(x[:, -1 - t], g)
    return (h + g).square().mean()


def one_timestep(net: nn.Module, x: Tensor) -> Tensor:
    """Three independent inputs of one timestep each."""
    return sum(net(torch.randn(len(x), 1, WIDTH))[0].square().mean() for _ in range(3))


def siamese(net: nn.Module, x: Tensor) -> Tensor:
    a, b, c = (net(part)[1][0] for part in x.chunk(3, 1))
    return (a - b).square().mean() + (a - c).square().mean()


def decodes(net: nn.Module, x: Tensor) -> Tensor:
    """Three steps of decoding from a state that an encoder made, which is not trained here."""
    state, total = net(x)[1].detach(), 0
    for t in range(3):
        output, state = net(x[:, t : t + 1], state)
        total = total + output.square().mean()
    return total


def gate(net: nn.Module, x: Tensor) -> Tensor:
    """A cell that merges two series timestep by timestep: its second input is no state of its own."""
    smooth = x.new_ones(len(x), 1, HIDDEN) + 0.01 * x.sum(-1, keepdim=True).cumsum(1)
    return sum(net(x[:, t], smooth[:, t]).square().mean() for t in range(x.shape[1]))


def gate_own(net: nn.Module, x: Tensor) -> Tensor:
    return sum(net(x[:, t], x[:, t].mean(1, keepdim=True).expand(-1, HIDDEN)).square().mean() for t in range(5))


def feeds_back(net: nn.Module, x: Tensor) -> Tensor:
    """No state is passed on, but each output is the next input."""
    value, total = x[:, :1], 0
    for _ in range(6):
        output, _ = net(value)
        value = output[..., :WIDTH]
        total = total + output.square().mean()
    return total


class Residual(nn.Module):
    """Changes nothing when training begins."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(x)


INNOCENT: dict[str, tuple[Callable[[], nn.Module], Run]] = {
    "an encoder of three sequences": (gru, three),
    "one call for each element of the batch": (gru, each),
    "both directions by hand": (gru, both_ways),
    "both directions by a cell": (lambda: nn.GRUCell(WIDTH, HIDDEN), both_ways_by_cell),
    "inputs of one timestep": (gru, one_timestep),
    "siamese encoders": (gru, siamese),
    "three steps of decoding": (gru, decodes),
    "a cell that merges two series": (lambda: nn.GRUCell(WIDTH, HIDDEN), gate),
    "outputs that are fed back": (gru, feeds_back),
    "segments of four timesteps": (gru, fused(detached, 4)),
    "a layer with a state that is called h by accident": (
        MayBegin,
        lambda net, x: sum(net(torch.randn(len(x), WIDTH)).square().mean() for _ in range(3)),
    ),
    "a cell over what changes": (OwnCell, lambda net, x: gate_own(net, x)),
    "a residual on one input three times": (Residual, lambda net, x: sum(net(x).square().mean() for _ in range(3))),
    "a residual timestep by timestep": (Residual, lambda net, x: sum(net(x[:, t] / 99 + 1).square().mean() for t in range(9))),
}  # fmt: skip


@pytest.mark.parametrize("use", INNOCENT)
@pytest.mark.filterwarnings("ignore:.*found no recurrent module.*")
def test_several_calls_for_good_reasons(use: str, tmp_path: Path) -> None:
    """Of a module that is called several times, each time for another sequence or with its state, nothing of the kind is said."""
    make, run = INNOCENT[use]
    watch = fit(make(), run, tmp_path)
    assert not told(watch)
    assert not any("nothing is carried" in event.message for event in watch.events)


@pytest.mark.parametrize("pieces", [3, 4])
def test_segments_are_named(pieces: int, tmp_path: Path) -> None:
    """A fused module fed chunk by chunk with a detached state: the gradient flows within segments, and the verdict says so."""
    watch = fit(gru(), fused(detached, pieces), tmp_path)
    (layer,) = summarise(load_run(tmp_path / "run").profile_records, [])
    assert f"within segments of {pieces} timesteps and is cut between them" in layer.sentence
    assert not told(watch)


def test_a_first_state_of_data_has_no_past(tmp_path: Path) -> None:
    """A cell that begins with what the batch holds, as a graph network with its nodes: of a past is spoken only conditionally."""

    def passes(net: nn.Module, x: Tensor) -> Tensor:
        h = nn.functional.pad(x.reshape(-1, WIDTH), (0, HIDDEN - WIDTH))
        for _ in range(4):
            h = net(h.flip(1)[:, :WIDTH], h)
        return h.square().mean()

    fit(nn.GRUCell(WIDTH, HIDDEN), passes, tmp_path)
    (layer,) = summarise(load_run(tmp_path / "run").profile_records, [])
    assert layer.timesteps == 4
    assert "The state that comes in has no graph: if it is carried over," in layer.sentence


def test_segments_of_a_tap(tmp_path: Path) -> None:
    """Tapped states that are detached every fourth step are sequences of four, none of them vanishing."""

    def run(net: nn.ModuleList, x: Tensor) -> Tensor:
        h, total = zeros(x), 0
        for t in range(x.shape[1]):
            h = tap(torch.tanh(net[0](x[:, t]) + net[1](h if t % 4 else h.detach())), "mine")
            total = total + h.square().mean()
        return total

    watch = fit(two_layers(), run, tmp_path)
    records = load_run(tmp_path / "run").profile_records
    assert {(r["timesteps"], len(r["lagged"]), r["exact"]) for r in records} == {(4, 4, True)}
    (layer,) = summarise(records, [])
    assert "segments of 4 timesteps" in layer.sentence
    assert not watch.events


class HandsBack(ByHand):
    """Truncated backpropagation by hand: each state is made a leaf, and its gradient handed back from the last step to the first."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, lambda net, x: x.sum())
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, optimizer = batch[0], self.optimizers()
        state = torch.zeros(1, len(x), HIDDEN) if isinstance(self.net, nn.GRU) else zeros(x)
        made: list[tuple[Tensor, Tensor]] = []
        for t in range(x.shape[1]):
            leaf = state.detach().requires_grad_()
            state = self.net(x[:, t : t + 1], leaf)[1] if isinstance(self.net, nn.GRU) else self.net(x[:, t], leaf)
            made.append((leaf, state))
        optimizer.zero_grad()
        self.manual_backward(state.square().mean())
        for (leaf, _), (_, before) in zip(made[:0:-1], made[-2::-1], strict=True):
            before.backward(leaf.grad)
        optimizer.step()


@pytest.mark.parametrize("make", [gru, lambda: nn.GRUCell(WIDTH, HIDDEN), lambda: nn.RNNCell(WIDTH, HIDDEN)])
def test_a_gradient_handed_back_by_hand(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """It is not said that nothing flows through time: a leaf's gradient may be handed back, and how far it reaches is not known."""
    watch = GradWatch(dirpath=tmp_path / "run", every_n_steps=1, summary=False)
    trainer(tmp_path, [watch], max_steps=3).fit(HandsBack(make()), series())
    assert not told(watch)
    (layer,) = summarise(load_run(tmp_path / "run").profile_records, [e.to_record() for e in watch.events])
    assert layer.verdict is Verdict.UNDECIDED
    assert "handed back by hand" in layer.sentence
    assert "nothing flows" not in layer.line


def with_tap(net: nn.Module, x: Tensor) -> Tensor:
    h, total = zeros(x), 0
    for t in range(x.shape[1]):
        h = tap(net(x[:, t], h), "mine")
        total = total + h.square().mean()
    return total


def tapped_fused(net: nn.Module, x: Tensor) -> Tensor:
    state, total = None, 0
    for t in range(x.shape[1]):
        output, state = net(x[:, t : t + 1], state)
        total = total + tap(output[:, 0], "mine").square().mean()
    return total


@pytest.mark.parametrize(
    ("make", "run", "name"),
    [
        (lambda: nn.GRUCell(WIDTH, HIDDEN), with_tap, "net"),
        (gru, tapped_fused, "net"),
        (OwnCell, with_tap, "mine"),
    ],
    ids=["a cell of PyTorch's own", "a fused module", "a cell of one's own"],
)
def test_a_recurrence_found_and_tapped_is_measured_once(make: Any, run: Run, name: str, tmp_path: Path) -> None:
    """Under the name of a module of PyTorch's own, which has layers and gates; a cell of one's own under the tap's."""
    watch = fit(make(), run, tmp_path, steps=4)
    records = load_run(tmp_path / "run").profile_records
    assert {(r["module"], r["timesteps"]) for r in records} == {(name, 12)}
    assert sorted({r["step"] for r in records}) == [0, 1, 2, 3]
    assert not [event for event in watch.events if event.kind == EventKind.NOT_OBSERVED]


@pytest.mark.parametrize("place", ["input", "state"])
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_nan_in_a_module_fed_piece_by_piece(place: str, pieces: int, tmp_path: Path) -> None:
    """Its timestep is counted from the begin of the whole sequence."""

    def run(net: nn.Module, x: Tensor) -> Tensor:
        spoilt = x.clone()
        if place == "input":
            spoilt[2, 7] = torch.nan
        state, total = None, 0
        for t, piece in enumerate(spoilt.split(pieces, 1)):
            output, state = net(piece, state)
            spoil = place == "state" and (t + 1) * pieces == 6
            state = state * torch.tensor([1.0, 1, torch.nan if spoil else 1, 1, 1, 1, 1, 1])[:, None]
            total = total + output.square().mean()
        return total

    event = fit(gru(), run, tmp_path, steps=1).events[0]
    kind, timestep = (EventKind.NONFINITE_INPUT, 7) if place == "input" else (EventKind.NONFINITE_STATE, 6)
    assert (event.kind, event.timestep, event.sequence) == (kind, timestep, 2)


def test_the_report_has_a_headline_and_no_empty_picture(tmp_path: Path) -> None:
    """The page says first that nothing flows through time, in a card of the colour of a warning, and offers no heatmap of it."""
    fit(gru(), fused(detached), tmp_path)
    page = write_report(load_run(tmp_path / "run"), tmp_path / "report.html").read_text()
    assert "<p class=headline><b>nothing flows through time</b> in net, layer 0.</p>" in page
    assert page.count('<article class="card nothing-flows-through-time">') == 1
    assert '"keys":[]' in page
    assert "<dt>horizon</dt>" not in page
    assert "Not observed" not in page


def shrinks(net: nn.Module, x: Tensor) -> Tensor:
    state, total = None, 0
    for t in range(6):
        output, state = net(x[: 8 - t, t : t + 1], None if state is None else state[:, : 8 - t])
        total = total + output.square().mean()
    return total


def both_stepped(net: nn.Module, x: Tensor) -> Tensor:
    return fused(lambda h: h * 0.9)(net, x)


def checkpointed(net: nn.Module, x: Tensor) -> Tensor:
    state, total = torch.zeros(1, len(x), HIDDEN, requires_grad=True), 0
    for t in range(6):
        step = lambda x, h: net(x, h * 0.9)  # noqa: E731
        output, state = checkpoint(step, x[:, t : t + 1], state, use_reentrant=False)
        total = total + output.square().mean()
    return total


@pytest.mark.parametrize(
    ("make", "run", "why"),
    [
        (gru, shrinks, "batches of different sizes"),
        (lambda: nn.GRU(WIDTH, HIDDEN, batch_first=True, bidirectional=True), both_stepped, "bidirectional"),
        (gru, checkpointed, "activation checkpointing"),
    ],
    ids=["a batch that shrinks", "a bidirectional module", "a checkpoint around each step"],
)
def test_what_could_not_be_measured_is_not_called_nothing(make: Any, run: Run, why: str, tmp_path: Path) -> None:
    """Where the state goes on and how far the gradient reaches is not known, that and the reason are said, and nothing else."""
    watch = fit(make(), run, tmp_path)
    for layer in summarise(load_run(tmp_path / "run").profile_records, [e.to_record() for e in watch.events]):
        assert layer.verdict is Verdict.UNDECIDED
        assert why in layer.sentence
        assert "nothing flows" not in layer.line
    assert not told(watch)
