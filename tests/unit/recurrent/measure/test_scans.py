"""Diagonal recurrences that are computed by a scan, against a loop over the timesteps under autograd."""

# Over 300 lines: one oracle, and every shape of a scan.
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_gradwatch import tap_scan
from lightning_gradwatch.profile import Profile, gradient_horizon
from lightning_gradwatch.recurrent import Capture, measure_calls
from lightning_gradwatch.recurrent.measure import scan_reader
from tests.oracles import Scanned, scanned

EXACT = 1e-10
"""Relative to the largest norm, in float64."""


def measured(loss_of: Callable[[], Tensor], max_sequences: int | None = None, anchors: int = 4) -> Profile:
    """The one profile of what is marked in a forward that returns its loss."""
    capture = Capture({})
    capture.attach()
    capture.begin()
    try:
        loss_of().backward()
        (profile,) = measure_calls(capture.take(), max_sequences, anchors)
    finally:
        capture.detach()
    return profile


def random(*shape: int, kind: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=kind, generator=torch.Generator().manual_seed(seed))


def decays(*shape: int, kind: torch.dtype = torch.float64, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Between ``low`` and ``high`` in absolute value, with any phase where they are complex."""
    made = low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if kind.is_complex:
        return torch.polar(made, 6.28 * torch.rand(made.shape, dtype=torch.float64))
    return made.to(kind)


def loss_over(h: Tensor, timesteps: Any = slice(None)) -> Tensor:
    """A different gradient for each entry of the chosen timesteps; not of the imaginary parts alone."""
    weights = random(*h.shape, kind=torch.complex128 if h.is_complex() else torch.float64, seed=2).to(h.dtype)
    return (h * weights)[:, timesteps].abs().square().sum()


def assert_agrees(profile: Profile, truth: Scanned, loss: Tensor, anchors: list[int], tolerance: float = EXACT) -> None:
    """Totals, direct gradients, lags and the channels' horizons of all sequences."""
    assert profile.exact, profile.inexact_reason
    totals, direct = truth.totals(loss), truth.direct(loss)
    direct = direct.reshape(*direct.shape[:2], -1).abs().square().sum(-1).sqrt()
    for found, expected in ((profile.total, totals), (profile.direct, direct)):
        assert np.abs(found - expected.numpy()).max() <= tolerance * float(expected.max())
    curves = [truth.lagged(loss, anchor) for anchor in anchors]
    expected = [
        curve[j].numpy() for curve in curves for j in range(profile.batch_size) if bool(curve[j].isfinite().all())
    ]
    assert sorted(map(len, expected)) == sorted(int((~np.isnan(row)).sum()) for row in profile.curves)
    longest = max(map(len, expected))
    by_lag = [np.median([curve[k] for curve in expected if len(curve) > k]) for k in range(longest)]
    assert np.abs(profile.lagged() - by_lag).max() <= tolerance


CASES = {
    "real": ((3, 20, 5), torch.float64, {}),
    "complex": ((3, 20, 5), torch.complex128, {}),
    "constant in time": ((5,), torch.float64, {}),
    "constant and complex": ((5,), torch.complex128, {}),
    "the same for all channels": ((3, 20, 1), torch.float64, {}),
    "the same for all sequences": ((20, 5), torch.float64, {}),
    "one number": ((), torch.float64, {}),
    "over 1": ((3, 20, 5), torch.float64, {"low": 0.9, "high": 1.4}),
    "0 everywhere": ((3, 20, 5), torch.float64, {"high": 0.0}),
    "1 everywhere": ((3, 20, 5), torch.float64, {"low": 1.0}),
}


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("case", CASES)
def test_a_scan_is_measured_as_autograd_has_it(case: str, reverse: bool) -> None:
    """Totals, direct gradients and lags of every sequence, whatever the decay, with a loss on every state."""
    shape, kind, span = CASES[case]
    a, b = decays(*shape, kind=kind, **span), random(3, 20, 5, kind=kind).requires_grad_()
    truth = scanned(a, b, reverse=reverse)
    loss = loss_over(truth.stacked)
    order = truth.order
    anchors = [order[19], order[14], order[9], order[4]]
    h = truth.stacked.detach().requires_grad_()
    profile = measured(lambda: loss_over(tap_scan(h, a, inputs=b, reverse=reverse)))
    assert profile.direction == ("reverse" if reverse else "forward")
    assert_agrees(profile, truth, loss, anchors)


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128], ids=["real", "complex"])
def test_decays_of_0_cut_what_is_before(kind: torch.dtype) -> None:
    """Exact zeros behind them, no NaN, and a horizon at the cut."""
    a = decays(2, 30, 4, kind=kind, low=0.9).clone()
    a[:, 20], a[..., 0] = 0, 0
    b = random(2, 30, 4, kind=kind).requires_grad_()
    truth = scanned(a, b)
    loss = loss_over(truth.stacked, [29])
    profile = measured(lambda: loss_over(tap_scan(truth.stacked.detach().requires_grad_(), a), [29]), anchors=1)
    assert_agrees(profile, truth, loss, [29])
    assert (profile.lagged()[10:] == 0).all()
    assert gradient_horizon(profile.lagged()).lag == 10
    assert profile.channels is not None
    assert profile.channels.horizons.tolist() == [1, 10, 10, 10]


def test_ten_thousand_timesteps() -> None:
    """As exact as few, some channels dead after a step and some outliving all."""
    size = torch.tensor([0.0, 0.3, 0.99, 0.9995, 1.0], dtype=torch.float64)
    a = torch.polar(size, torch.arange(5).double())
    b = random(1, 10_000, 5, kind=torch.complex128).requires_grad_()
    truth = scanned(a, b)
    loss = loss_over(truth.stacked, [9_999])
    profile = measured(lambda: loss_over(tap_scan(truth.stacked.detach().requires_grad_(), a), [9_999]), anchors=1)
    assert_agrees(profile, truth, loss, [9_999])
    assert profile.channels is not None
    assert profile.channels.horizons.tolist() == [1, 4, 459, 9_209, 9_999]
    assert profile.channels.censored == 1


def test_the_horizon_of_a_channel_is_that_of_its_own_gradient() -> None:
    """By the same rule as the layer's, each channel by itself, the lower median over the sequences."""
    a = decays(3, 40, 6, low=0.5)
    b = random(3, 40, 6).requires_grad_()
    truth = scanned(a, b)
    loss = loss_over(truth.stacked)
    profile = measured(lambda: loss_over(tap_scan(truth.stacked.detach().requires_grad_(), a)))
    by_lag = torch.stack(truth.channels(loss, 39)).abs().numpy()  # (lag, sequence, channel)
    reach = [[gradient_horizon(by_lag[:, j, c] / by_lag[0, j, c]) for j in range(3)] for c in range(6)]
    middle = [sorted(99 if one.censored else one.lag for one in channel)[1] for channel in reach]
    assert profile.channels is not None
    assert profile.channels.horizons.tolist() == sorted(min(lag, 39) for lag in middle)
    assert profile.channels.censored == middle.count(99)


READOUTS = {
    "a matrix": ((3, 12, 4), (5, 4), (5,)),
    "a matrix for each timestep": ((3, 12, 4), (3, 12, 5, 4), (3, 12, 4)),
    "a matrix for each sequence": ((3, 12, 4), (3, 1, 5, 4), (3, 12, 4)),
    "a vector for all channels": ((3, 12, 6, 4), (3, 12, 4), (3, 12, 6, 4)),
    "a vector for each channel": ((3, 12, 6, 4), (6, 4), (6, 4)),
    "all of its own": ((3, 12, 6, 4), (3, 12, 6, 4), (3, 12, 6, 4)),
    "heads": ((3, 12, 2, 6, 4), (3, 12, 2, 4), (3, 12, 2, 1, 1)),
    "one group for all heads": ((3, 12, 2, 6, 4), (3, 12, 4), (3, 12, 2, 1, 1)),
}
"""States, readout and decay."""


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128], ids=["real", "complex"])
@pytest.mark.parametrize("case", READOUTS)
def test_states_that_a_kernel_hides_are_known_by_their_readout(case: str, kind: torch.dtype) -> None:
    """The same profile as of the states themselves, from the output, its readout and the decay; of complex states, by their real part."""
    states, read, decay = READOUTS[case]
    a = decays(*((4,) if case == "a matrix" else decay), kind=kind, low=0.5)
    b, C = random(*states, kind=kind).requires_grad_(), random(*read, kind=kind)  # noqa: N806
    matrix = case.startswith("a matrix")
    # Each way is written out by hand, as a model would.
    if matrix:
        equation = {2: "bti,oi->bto", 4: "bti,btoi->bto"}[C.dim()]
        full = C if C.dim() == 2 else C.expand(3, 12, 5, 4)
    else:
        full = C if C.dim() != 3 else C.reshape(3, 12, *(1,) * (len(states) - 3), 4)
        full = full.reshape(3, 12, 2, 1, 4) if case == "heads" else full

    def read_out(h: Tensor) -> Tensor:
        y = torch.einsum(equation, h, full) if matrix else (h * full).sum(-1)
        return y.real if kind.is_complex else y

    truth = scanned(a, b)
    loss = loss_over(read_out(truth.stacked))
    y = read_out(truth.stacked.detach()).requires_grad_()
    profile = measured(lambda: loss_over(tap_scan(y, a, readout=C)))
    assert_agrees(profile, truth, loss, [11, 8, 5, 2])


@pytest.mark.parametrize(
    ("order", "dim"), [((1, 0, 2), 0), ((0, 2, 1), 2), ((0, 2, 1), -1)], ids=["time first", "time last", "from the end"]
)
def test_time_may_be_any_dimension(order: tuple[int, ...], dim: int) -> None:
    """The batch is the first of the others."""
    a, b = decays(3, 12, 4), random(3, 12, 4).requires_grad_()
    truth = scanned(a, b)
    loss = loss_over(truth.stacked)
    back = [order.index(place) for place in range(3)]
    h = truth.stacked.detach().permute(order).requires_grad_()
    profile = measured(lambda: loss_over(tap_scan(h, a.permute(order), inputs=b.permute(order), dim=dim).permute(back)))
    assert_agrees(profile, truth, loss, [11, 8, 5, 2])


def test_two_dimensions_are_one_sequence_or_one_channel() -> None:
    """(time, channels) with dim=0, (batch, time) with dim=1."""
    a, b = decays(1, 12, 4), random(1, 12, 4).requires_grad_()
    truth = scanned(a, b)
    h = truth.stacked.detach()[0].requires_grad_()
    profile = measured(lambda: loss_over(tap_scan(h, a[0], dim=0)[None]))
    assert profile.batch_size == 1
    assert_agrees(profile, truth, loss_over(truth.stacked), [11, 8, 5, 2])
    narrow = scanned(a[0].T[..., None], b[0].T[..., None])
    h = narrow.stacked.detach()[..., 0].requires_grad_()
    profile = measured(lambda: loss_over(tap_scan(h, a[0].T)[..., None]))
    assert profile.batch_size == 4
    assert_agrees(profile, narrow, loss_over(narrow.stacked), [11, 8, 5, 2])


@given(
    st.data(),
    st.integers(1, 3),
    st.integers(1, 9),
    st.lists(st.integers(1, 3), min_size=0, max_size=2),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_that_broadcasts(
    data, batch: int, steps: int, width: list[int], is_complex: bool, reverse: bool
) -> None:
    """Whatever dimensions of the decay are of size 1 or missing, with exact zeros among the decays."""
    kind = torch.complex128 if is_complex else torch.float64
    full = (batch, steps, *width)
    shape = tuple(n if data.draw(st.booleans()) else 1 for n in full)[data.draw(st.integers(0, len(full))) :]
    a = decays(*shape, kind=kind, high=1.2) * data.draw(st.sampled_from([1.0, 0.0]))
    b = random(*full, kind=kind).requires_grad_()
    truth = scanned(a, b, reverse=reverse)
    h = truth.stacked.detach().requires_grad_()
    profile = measured(lambda: loss_over(tap_scan(h, a, inputs=b, reverse=reverse)), anchors=1)
    assert_agrees(profile, truth, loss_over(truth.stacked), [truth.order[-1]])


def test_memory_is_bounded_by_chunks_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few channels at a time give the same figures."""
    a, b = decays(3, 12, 2, 7), random(3, 12, 2, 7).requires_grad_()
    truth = scanned(a, b)
    h = truth.stacked.detach().requires_grad_()
    monkeypatch.setattr(scan_reader, "CHUNK", 3 * 12 * 4)
    profile = measured(lambda: loss_over(tap_scan(h, a, inputs=b)))
    assert_agrees(profile, truth, loss_over(truth.stacked), [11, 8, 5, 2])
    assert profile.channels is not None
    assert len(profile.channels.horizons) == 14


def test_padded_sequences_end_where_they_end() -> None:
    """Each has its own length, and each its own last anchor."""
    a, b = decays(3, 12, 4, low=0.5), random(3, 12, 4).requires_grad_()
    lengths = [12, 7, 1]
    inside = torch.arange(12) < torch.tensor(lengths)[:, None]

    def masked(h: Tensor) -> Tensor:
        return loss_over(h * inside[..., None])

    for reverse in (False, True):
        truth = scanned(a, b * inside[..., None], reverse=reverse)
        h = truth.stacked.detach().requires_grad_()
        profile = measured(
            lambda h=h, r=reverse: masked(tap_scan(h, a, reverse=r, lengths=torch.tensor(lengths))), anchors=1
        )
        assert profile.lengths == (12, 7, 1)
        totals = truth.totals(masked(truth.stacked)).numpy()
        assert np.array_equal(np.isnan(profile.total), ~inside.numpy())
        assert np.allclose(profile.total[inside], totals[inside], rtol=1e-10)
        last = [0, 0, 0] if reverse else [11, 6, 0]
        curves = [truth.lagged(masked(truth.stacked), anchor)[j] for j, anchor in enumerate(last)]
        for j, curve in enumerate(curves):
            own = curve[: lengths[j]].numpy()
            (found,) = [row[: len(own)] for row in profile.curves if (~np.isnan(row)).sum() == len(own)]
            assert np.allclose(found, own, rtol=1e-10)


def test_a_batch_is_measured_by_some_sequences_exactly() -> None:
    """Those that the loss reaches, and each as it is."""
    a, b = decays(9, 12, 4), random(9, 12, 4).requires_grad_()
    truth = scanned(a, b)
    chosen = torch.tensor([1, 4, 5, 8])
    loss = loss_over(truth.stacked[chosen])
    h = truth.stacked.detach().requires_grad_()
    profile = measured(lambda: loss_over(tap_scan(h, a)[chosen]), max_sequences=2)
    assert profile.sequences == (1, 8)
    assert profile.with_gradient == 4
    assert np.allclose(profile.total, truth.totals(loss)[[1, 8]], rtol=1e-10)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
def test_a_narrow_format_is_told_or_exact(kind: torch.dtype) -> None:
    """The sweep itself is in float64; what was computed in half precision is not exact and says so."""
    a, b = decays(2, 12, 4).to(kind), random(2, 12, 4).to(kind)
    truth = scanned(a.double(), b.double().requires_grad_())
    h = truth.stacked.detach().to(kind).requires_grad_()
    profile = measured(lambda: loss_over(tap_scan(h, a)))
    wide = truth.stacked.detach().to(kind).double().requires_grad_()
    expected = measured(lambda: loss_over(tap_scan(wide, a.double())))
    tolerance = {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float32: 1e-6}[kind]
    assert np.abs(profile.total / expected.total - 1).max() < tolerance
    assert profile.exact == (kind == torch.float32)
    assert kind == torch.float32 or str(kind).removeprefix("torch.") in str(profile.inexact_reason)


def test_one_timestep_has_no_past() -> None:
    """Total equals direct, the only lag is 0, and no channel has a horizon."""
    h = random(3, 1, 4).requires_grad_()
    profile = measured(lambda: loss_over(tap_scan(h, decays(3, 1, 4), inputs=h)))
    assert profile.direct is not None
    assert (profile.total == profile.direct).all()
    assert profile.lagged().tolist() == [1.0]
    assert profile.channels is None
    assert profile.exact


def test_an_empty_batch_leaves_nothing() -> None:
    """No call, and no error."""
    capture = Capture({})
    capture.attach()
    capture.begin()
    tap_scan(torch.zeros(0, 5, 4, requires_grad=True), 0.5)
    assert not capture.read_calls()
    capture.detach()


def test_a_gradient_of_zeros_has_no_lags() -> None:
    """Totals of 0, no curve, no channels, nothing that is not finite."""
    h = random(2, 6, 3).requires_grad_()
    profile = measured(lambda: (tap_scan(h, 0.5) * 0.0).sum())
    assert not profile.total.any()
    assert profile.lagged().size == 0
    assert profile.channels is None
    assert profile.exact


@pytest.mark.parametrize("kind", [torch.bool, torch.int64])
def test_decays_may_be_a_mask(kind: torch.dtype) -> None:
    """A sum that begins anew where the mask is 0."""
    mask = (torch.arange(12) % 5 != 0)[:, None].to(kind)
    b = random(3, 12, 4).requires_grad_()
    truth = scanned(mask.double(), b)
    h = truth.stacked.detach().requires_grad_()
    profile = measured(lambda: loss_over(tap_scan(h, mask, inputs=b), [11]), anchors=1)
    assert_agrees(profile, truth, loss_over(truth.stacked, [11]), [11])
    assert gradient_horizon(profile.lagged()).lag == 2


WRONG = {
    "one timestep off": (lambda a, b: (a.roll(1, 1), b), 1),
    "inputs without their factor": (lambda a, b: (a, b / (1 - a)), 1),
    "one entry": (lambda a, b: (a, b + torch.nn.functional.one_hot(torch.tensor(77), 3 * 12 * 4).view(3, 12, 4)), 7),
}


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("case", WRONG)
def test_states_that_are_not_those_of_the_recurrence_are_located(case: str, reverse: bool) -> None:
    """The profile is not exact, and says from which timestep of which sequence on."""
    change, first = WRONG[case]
    a, b = decays(3, 12, 4, low=0.3, high=0.8), random(3, 12, 4).requires_grad_()
    h = scanned(a, b, reverse=reverse).stacked.detach().requires_grad_()
    named, inputs = change(a, b.detach())
    profile = measured(lambda: loss_over(tap_scan(h, named, inputs=inputs, reverse=reverse)))
    found = profile.mismatch
    assert found is not None
    assert found.timestep == (first if case == "one entry" or not reverse else 10)
    assert case != "one entry" or found.sequence == 1
    assert f"from timestep {found.timestep} on" in str(profile.inexact_reason)


def test_an_initial_state_is_no_mismatch() -> None:
    """What the first state was made of is not known."""
    a, b = decays(3, 12, 4), random(3, 12, 4).requires_grad_()
    first = torch.cat([b[:, :1] + 5.0, b[:, 1:]], 1)
    h = scanned(a, first).stacked.detach().requires_grad_()
    assert measured(lambda: loss_over(tap_scan(h, a, inputs=b))).exact


def test_what_was_changed_in_place_is_told() -> None:
    """A decay that is not that of the forward any more gives no exact figures; a state that was used before does."""
    a, b = decays(3, 12, 4), random(3, 12, 4).requires_grad_()
    truth = scanned(a, b)

    def decay_changed() -> Tensor:
        other = a.clone()
        loss = loss_over(tap_scan(truth.stacked.detach().requires_grad_() * 1, other))
        other.mul_(0.5)
        return loss

    assert "its decay was changed in place" in str(measured(decay_changed).inexact_reason)

    def state_changed() -> Tensor:
        h = tap_scan(truth.stacked.detach().requires_grad_() * 1, a, inputs=b)
        return loss_over(h.mul_(1.0))

    assert_agrees(measured(state_changed), truth, loss_over(truth.stacked), [11, 8, 5, 2])


def test_a_view_that_is_changed_in_place_is_told() -> None:
    """Its gradient goes another way, and was not seen."""
    h = random(3, 13, 4).requires_grad_()

    def forward() -> Tensor:
        view = tap_scan((h * 1)[:, 1:], 0.5)
        view.mul_(2.0)
        return loss_over(view)

    capture = Capture({})
    capture.attach()
    capture.begin()
    forward().backward()
    (scan,) = capture.read_calls()
    capture.detach()
    assert scan.lost()


def test_gradients_too_small_for_their_format_are_told() -> None:
    """Subnormal numbers have fewer digits."""
    h = random(1, 6, 2).float().requires_grad_()
    profile = measured(lambda: (tap_scan(h, 0.5) * 1e-40).sum())
    assert "so small" in str(profile.inexact_reason)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"decay": torch.ones(3, 4)}, "`decay` must broadcast"),
        ({"decay": 0.5j}, "`h` must be complex"),
        ({"decay": 0.5, "dim": 3}, "`dim` must be a dimension"),
        ({"decay": 0.5, "inputs": torch.ones(3, 13, 4)}, "`inputs` must be as large"),
        ({"decay": 0.5, "lengths": [1, 2]}, "`lengths` must hold one number a sequence"),
        ({"decay": torch.ones(7), "readout": torch.ones(3, 7)}, "`readout` must be a matrix"),
        ({"decay": 0.5, "readout": torch.ones(4, 7), "inputs": torch.ones(3, 12, 4)}, "`inputs` must be left out"),
        ({"decay": 0.5, "readout": torch.ones(4, 7) + 0j}, "`decay` must be complex"),
    ],
)
def test_what_does_not_fit_is_told_at_once(arguments: dict[str, Any], words: str) -> None:
    """In one line that names the argument, whether or not anybody listens."""
    with pytest.raises(ValueError, match=words):
        tap_scan(torch.ones(3, 12, 4), **arguments)


def test_what_fits_in_two_ways_is_asked_about() -> None:
    """As many timesteps as channels: a decay of two dimensions may be of either."""
    with pytest.raises(ValueError, match="must fit in one way"):
        tap_scan(torch.ones(2, 6, 6), torch.ones(6, 4), readout=torch.ones(6, 4))


@pytest.mark.parametrize(("output", "readout"), [((1, 6, 6), (1, 6, 4)), ((6, 6, 6), (6, 6, 4))])
def test_a_readout_that_all_channels_may_share_is_asked_about(
    output: tuple[int, ...], readout: tuple[int, ...]
) -> None:
    """As many channels as timesteps: it may be (batch, time, state) or (time, channel, state). Written out, it is taken."""
    y = torch.randn(output, requires_grad=True)
    with pytest.raises(ValueError, match=r"readout\[:, :, None\]"):
        tap_scan(y, torch.full((6, 4), 0.5), readout=torch.ones(readout))
    assert tap_scan(y, torch.full((6, 4), 0.5), readout=torch.ones(readout)[:, :, None]) is y


def test_one_sequence_has_a_readout_for_each_timestep() -> None:
    """(time, state) beside (time, channel)."""
    a, b, C = decays(12, 6, 4), random(12, 6, 4).requires_grad_(), random(12, 4)  # noqa: N806
    truth = scanned(a[None], b[None])

    def read_out(h: Tensor) -> Tensor:
        return torch.einsum("btdn,tn->btd", h, C)

    y = read_out(truth.stacked.detach())[0].requires_grad_()
    profile = measured(lambda: loss_over(tap_scan(y, a, readout=C, dim=0)[None]))
    assert_agrees(profile, truth, loss_over(read_out(truth.stacked)), [11, 8, 5, 2])


def test_something_else_than_a_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="`h` must be a tensor; found list"):
        tap_scan([1.0], 0.5)  # type: ignore[type-var]
