"""A recurrence in tensor operations whose state is detached at every step is told where each step has a loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_gradwatch import EventKind, GradWatch, load_run, tap
from lightning_gradwatch.runlog.summary import Verdict, summarise
from tests.integration.recurrences import ByHand, OwnCell, Run, series
from tests.integration.unobserved.tensor_operations import RECURRENCES, WIDTH, Net, linear, plain, weight, zeros
from tests.models import trainer

TIMESTEPS = 7

pytestmark = pytest.mark.filterwarnings("ignore:.*found no recurrent module.*")


def fit(net: nn.Module, run: Run, tmp_path: Path) -> GradWatch:
    torch.manual_seed(0)
    watch = GradWatch(dirpath=tmp_path / "run", every_n_steps=1, summary=False)
    trainer(tmp_path, [watch], max_steps=2).fit(ByHand(net, run), series(TIMESTEPS, WIDTH, count=16))
    return watch


def severed(watch: GradWatch) -> list[str | None]:
    return [event.module for event in watch.events if event.kind == EventKind.NO_GRADIENT_THROUGH_TIME]


def each(cut: Callable[[Tensor], Tensor]) -> Run:
    """A loss on every state, each handed on as ``cut`` leaves it."""

    def run(net: Any, x: Tensor) -> Tensor:
        states: list[Tensor] = []

        def hand_on(h: Tensor, name: str) -> Tensor:
            states.append(h)
            return cut(h)

        net(x, hand_on)
        return sum((h.square().mean() for h in states), torch.zeros(()))

    return run


def independent(net: Any, x: Tensor, tap: Any) -> Tensor:
    """Each unit feeds back to itself alone (IndRNN)."""
    h = zeros(x)
    for t in range(x.shape[1]):
        h = tap(torch.relu(net.W(x[:, t]) + net.u * h), name="mine")
    return h


def whole_lstm(net: Any, x: Tensor, tap: Any) -> Tensor:
    """Both of its states are handed on alike."""
    h = c = zeros(x)
    for t in range(x.shape[1]):
        i, f, g, o = (x[:, t] @ net.W + h @ net.U + net.b).chunk(4, 1)
        c = tap(f.sigmoid() * c + i.sigmoid() * g.tanh(), name="c")
        h = tap(o.sigmoid() * c.tanh(), name="mine")
    return h


def with_modules(net: Any, x: Tensor, tap: Any) -> Tensor:
    h = zeros(x)
    for t in range(x.shape[1]):
        h = tap(net.act(net.both(torch.cat((h, x[:, t]), -1))), name="mine")
    return h


LOOPS: dict[str, Callable[[], Net]] = {
    name: RECURRENCES[name] for name in ("products", "linear layers", "one layer for input and state", "a GRU by hand")
} | {
    "an LSTM by hand": lambda: Net(
        whole_lstm, W=weight(WIDTH, 4 * WIDTH), U=weight(WIDTH, 4 * WIDTH), b=weight(4 * WIDTH)
    ),
    "units by themselves": lambda: Net(independent, W=linear(), u=weight(WIDTH)),
    "modules": lambda: Net(with_modules, both=nn.Linear(2 * WIDTH, WIDTH), act=nn.Tanh()),
}

CUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "data": lambda h: h.data,
    "a copy": lambda h: h.detach().clone(),
    "numbers": lambda h: torch.tensor(h.tolist()),
}


@pytest.mark.parametrize(
    ("name", "cut"), [*((name, "detach") for name in LOOPS), *(("a GRU by hand", cut) for cut in CUTS)]
)
def test_a_severed_loop_is_told(name: str, cut: str, tmp_path: Path) -> None:
    """Once, under a parameter in it, with how often it is used, and as the verdict."""
    net = LOOPS[name]()
    watch = fit(net, each(CUTS.get(cut, torch.detach)), tmp_path)
    (event,) = watch.events
    assert severed(watch) == [event.module]
    assert event.module in {f"net.{own}" for own, _ in net.named_parameters()}
    assert (
        f"In one step it is used {TIMESTEPS} times, each time on what was made with the use before, but detached."
        in event.message
    )
    (layer,) = summarise(load_run(tmp_path / "run").profile_records, [event.to_record()])
    assert layer.verdict == Verdict.NO_GRADIENT_THROUGH_TIME


@pytest.mark.parametrize("name", ["linear layers", "an LSTM by hand", "modules"])
def test_beside_an_lstm_it_is_told_too(name: str, tmp_path: Path) -> None:
    """The LSTM has a verdict of its own."""
    net = nn.ModuleList([nn.LSTM(WIDTH, WIDTH, batch_first=True), LOOPS[name]()])
    watch = fit(net, lambda net, x: each(torch.detach)(net[1], net[0](x)[0]), tmp_path)
    (place,) = severed(watch)
    assert str(place).startswith("net.1.")


@pytest.mark.parametrize("name", ["products", "a GRU by hand", "units by themselves"])
def test_as_advised_nothing_is_severed(name: str, tmp_path: Path) -> None:
    """With the state passed on the event is gone, and the loop a note."""
    watch = fit(LOOPS[name](), each(lambda h: h), tmp_path)
    assert [event.kind for event in watch.events] == [EventKind.NOT_OBSERVED]


def in_a_leaf(net: Any, x: Tensor) -> Tensor:
    """Whose gradient somebody may hand back."""
    return each(lambda h: h.detach().requires_grad_())(net, x)


def leaking(net: Any, x: Tensor) -> Tensor:
    """Its state goes on beside the product, too."""
    h, total = zeros(x), torch.zeros(())
    for t in range(x.shape[1]):
        h = 0.5 * h + torch.tanh(x[:, t] @ net.W + h.detach() @ net.U)
        total = total + h.square().mean()
    return total


def scaled(net: Any, x: Tensor) -> Tensor:
    """Changes nothing when training begins, of one input again and again."""
    one = torch.ones_like(net.u)
    return sum(((net.u * x[:, 0] - k * one).square().mean() for k in range(5)), torch.zeros(()))


def scaled_anew(net: Any, x: Tensor) -> Tensor:
    """Each result, changed by nothing yet, is detached and given in again."""
    y, total = x[:, 0], torch.zeros(())
    for _ in range(5):
        y = net.u * y.detach()
        total = total + y.square().mean()
    return total


def own_words(net: Any, x: Tensor) -> Tensor:
    """Fed with its own outputs, detached, while its state is passed on."""
    h, y, total = zeros(x), x[:, 0], torch.zeros(())
    for _ in range(x.shape[1]):
        h = torch.tanh(y.detach() @ net.W + h @ net.U)
        y = net.head(h)
        total = total + y.square().mean()
    return total


def greedy(net: Any, x: Tensor) -> Tensor:
    """Layers that are trained one by one, each by one head."""
    h, total = x[:, 0], torch.zeros(())
    for layer in net.layers:
        h = torch.tanh(layer(h.detach()))
        total = total + functional.mse_loss(net.head(h), x[:, 1])
    return total


def a_sequence_each(net: Any, x: Tensor) -> Tensor:
    """Of data alone."""
    return sum((torch.tanh(net.W(x[:, t])).square().mean() for t in range(x.shape[1])), torch.zeros(()))


def two_alike(net: Any, x: Tensor) -> Tensor:
    """Used twice, for an image and for what was made of it, as adversaries are."""
    made = torch.tanh(net.W(x[:, 0]))
    return made.square().mean() + net.W(made.detach()).square().mean()


NOT_SEVERED: dict[str, tuple[Callable[[], nn.Module], Run]] = {
    "a leaf at every step": (RECURRENCES["products"], in_a_leaf),
    "a leak": (RECURRENCES["products"], leaking),
    "one input scaled by ones": (lambda: Net(plain, u=nn.Parameter(torch.ones(WIDTH))), scaled),
    "results scaled by ones": (lambda: Net(plain, u=nn.Parameter(torch.ones(WIDTH))), scaled_anew),
    "its own words": (lambda: Net(plain, W=weight(WIDTH, WIDTH), U=weight(WIDTH, WIDTH), head=linear()), own_words),
    "layers one by one": (lambda: Net(plain, layers=nn.ModuleList(linear() for _ in range(5)), head=linear()), greedy),
    "data alone": (lambda: Net(plain, W=linear()), a_sequence_each),
    "twice": (lambda: Net(plain, W=linear()), two_alike),
    "an LSTM by hand whose c goes on": (RECURRENCES["an LSTM by hand"], each(torch.detach)),
    "a scripted function": (RECURRENCES["a scripted function"], each(torch.detach)),
}


@pytest.mark.parametrize("name", NOT_SEVERED)
def test_what_may_have_good_reasons_is_not_called_severed(name: str, tmp_path: Path) -> None:
    """A gradient goes another way, or nothing comes back."""
    make, run = NOT_SEVERED[name]
    assert severed(fit(make(), run, tmp_path)) == []


def test_data_in_a_scripted_function_is_no_recurrence(tmp_path: Path) -> None:
    """TorchScript's part of the graph does not show what needs no gradient: it is not taken for parameters alone."""
    watch = fit(RECURRENCES["a scripted function"](), each(torch.detach), tmp_path)
    assert watch.events == []


def cell_by_cell(net: Any, x: Tensor) -> Tensor:
    h, total = torch.zeros(len(x), 8), torch.zeros(())
    for t in range(x.shape[1]):
        h = net(x[:, t, :3], h.detach())
        total = total + h.square().mean()
    return total


def tapped(net: Any, x: Tensor) -> Tensor:
    return each(lambda h: tap(h, "mine").detach())(net, x)


@pytest.mark.parametrize(
    ("make", "run", "place"),
    [
        (OwnCell, cell_by_cell, "net"),
        (RECURRENCES["products"], tapped, "mine"),
        (RECURRENCES["a GRU by hand"], tapped, "mine"),
    ],
    ids=["a cell", "a tap", "a tapped GRU"],
)
def test_what_is_told_by_its_name_is_told_once(make: Any, run: Run, place: str, tmp_path: Path) -> None:
    """Not once more by a parameter in it."""
    assert severed(fit(make(), run, tmp_path)) == [place]


@pytest.mark.parametrize("name", ["products", "one layer for input and state", "a GRU by hand"])
def test_the_search_changes_nothing(name: str, tmp_path: Path) -> None:
    """The weights of a training are the same to the bit with it and without it."""

    def trained(*callbacks: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = RECURRENCES[name]()
        fitted = trainer(tmp_path, list(callbacks), max_steps=3)
        fitted.fit(ByHand(net, each(torch.detach)), series(TIMESTEPS, WIDTH, count=24))
        return {**net.state_dict(), "rng": torch.get_rng_state()}

    bare, watched = trained(), trained(GradWatch(summary=False, dirpath=tmp_path / "run"))
    assert all(torch.equal(bare[key], watched[key]) for key in bare)
