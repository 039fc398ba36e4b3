"""Equal inputs at the ends of sequences, as padding leaves them: named where the gradient crosses them, left out where the loss does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_gradwatch import EventKind, load_run
from tests.integration.located.remedies.fits import fit

VANISHING = EventKind.VANISHING_HIDDEN_GRADIENT
T = 30


def words(left: bool = False):
    """Sentences of 4 to 8 words, padded with 0 to 30; the label is that of the second word."""
    torch.manual_seed(1)
    words, lengths = torch.randint(1, 20, (128, T)), torch.randint(4, 9, (128,))
    words[torch.arange(T) >= lengths[:, None]] = 0
    return words.flip(1) if left else words, lengths, (words[:, 1] > 10).long()


def network(kind: str = "LSTM", **options) -> nn.ModuleList:
    torch.manual_seed(0)
    rnn = getattr(nn, kind)(6, 12, **{"batch_first": True, **options})
    return nn.ModuleList([nn.Embedding(20, 6, padding_idx=0), rnn, nn.Linear(12 * (1 + rnn.bidirectional), 2)])


def last_state(net, batch):
    words, _, y = batch
    output, _ = net[1](net[0](words))
    return functional.cross_entropy(net[2](output[:, -1]), y)


def time_major(net, batch):
    words, _, y = batch
    state = net[1](net[0](words).transpose(0, 1))[1]
    h = state[0] if isinstance(state, tuple) else state
    return functional.cross_entropy(net[2](h[-1]), y)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_padding_before_the_loss_is_named_first(tmp_path, kind, batch_first) -> None:
    """In the event, its remedy and the verdict's sentence; only then what helps a network whose sequences are no padded ones."""
    model = network(kind, batch_first=batch_first)
    told = fit(tmp_path, model, last_state if batch_first else time_major, words(), every=4)
    (event,) = told.begun(VANISHING)
    detail = event.message.partition("timesteps. ")[2]
    assert detail.startswith("In most sequences the last 2")
    assert "equal inputs, as padding has" in detail
    assert event.remedy.startswith("If the equal inputs are padding, pack the sequences")
    assert "enforce_sorted=False" in event.remedy
    assert "timesteps before the loss have equal inputs, as padding has" in told.layers[0].sentence


def test_padding_with_a_number_is_seen_in_series_too(tmp_path) -> None:
    """Series of floats padded with −1, in a stack of two layers: whichever of them vanishes."""
    torch.manual_seed(1)
    x, lengths = torch.randn(128, T, 6), torch.randint(4, 9, (128,))
    x[torch.arange(T) >= lengths[:, None]] = -1.0
    torch.manual_seed(0)
    model = nn.ModuleList([nn.LSTM(6, 12, 2, batch_first=True), nn.Linear(12, 1)])
    told = fit(
        tmp_path,
        model,
        lambda n, b: (n[1](n[0](b[0])[0][:, -1])[:, 0] - b[1]).square().mean(),
        (x, x[:, 0, 0]),
        every=4,
    )
    events = told.begun(VANISHING)
    assert events
    assert all("as padding has" in event.message for event in events)


def test_in_a_loop_over_a_cell_it_is_told_as_well(tmp_path) -> None:
    """Packing is no remedy there: the state at the last real step is."""

    def loop(net, batch):
        words, _, y = batch
        x, h = net[0](words), None
        for t in range(T):
            h = net[1](x[:, t], h)
        return functional.cross_entropy(net[2](h), y)

    torch.manual_seed(0)
    model = nn.ModuleList([nn.Embedding(20, 6, padding_idx=0), nn.GRUCell(6, 12), nn.Linear(12, 2)])
    (event,) = fit(tmp_path, model, loop, words(), every=4).begun(VANISHING)
    assert "equal inputs, as padding has" in event.message
    assert event.remedy.startswith("If the equal inputs are padding, read each sequence's state at its last real step")


def test_padding_in_front_is_another_thing(tmp_path) -> None:
    """Where it lies before the first word, the gradient need not cross it, and no timestep starves of it: no alarm."""
    told = fit(tmp_path, network(), last_state, words(left=True), every=4)
    assert all(event.severity == "info" for event in told.watch.events)
    record = load_run(told.watch.run_dir).profile_records[-1]
    assert (record["padded"], record["starved"]) == (0, 0)
    assert record["real_timesteps"] <= 8
    assert "vanishing" not in told.verdicts()


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_padding_that_the_loss_leaves_out_is_harmless(tmp_path, kind) -> None:
    """A bidirectional tagger with ignore_index: neither direction is alarmed, and packing is no remedy for anything."""

    def tagger(net, batch):
        words, _, _ = batch
        tags = torch.where(words > 0, (words > 10).long(), -100)
        return functional.cross_entropy(net[2](net[1](net[0](words))[0]).transpose(1, 2), tags, ignore_index=-100)

    told = fit(tmp_path, network(kind, bidirectional=True), tagger, words(), every=4)
    assert not [event for event in told.watch.events if event.severity != "info"]
    assert not [event for event in told.watch.events if "pack" in event.remedy]
    assert set(told.verdicts()) == {"healthy"}


def test_of_a_bidirectional_module_the_direction_that_crosses_it_is_told(tmp_path) -> None:
    """With the final states read, the forward one stands behind the padding; the reverse one has just passed the words."""

    def both(net, batch):
        words, _, y = batch
        h = net[1](net[0](words))[1][0]
        return functional.cross_entropy(net[2](torch.cat([h[0], h[1]], -1)), y)

    told = fit(tmp_path, network(bidirectional=True), both, words(), every=4)
    assert [event.direction for event in told.begun(VANISHING)] == ["forward"]
    assert told.layers[1].verdict == "healthy"


@pytest.mark.parametrize("inputs", ["the same at every timestep", "all different"])
def test_other_sequences_are_none(tmp_path, inputs) -> None:
    """A constant input from begin to end is no padding, nor is noise."""
    torch.manual_seed(1)
    x = torch.randn(128, 1, 6).expand(128, T, 6) if inputs.startswith("the same") else torch.randn(128, T, 6)
    torch.manual_seed(0)
    model = nn.ModuleList([nn.RNN(6, 12, batch_first=True), nn.Linear(12, 1)])
    told = fit(
        tmp_path,
        model,
        lambda n, b: (n[1](n[0](b[0])[0][:, -1])[:, 0] - b[1]).square().mean(),
        (x.contiguous(), x[:, 0, 0]),
        every=4,
    )
    (event,) = told.begun(VANISHING)
    assert "padding" not in event.message + event.remedy
    assert "padding" not in told.layers[0].sentence


def test_a_pooled_output_crosses_nothing(tmp_path) -> None:
    """The mean over all timesteps reaches the words directly: there is nothing to cross."""

    def pooled(net, batch):
        words, _, y = batch
        return functional.cross_entropy(net[2](net[1](net[0](words))[0].mean(1)), y)

    told = fit(tmp_path, network(), pooled, words(), every=4)
    assert "pack" not in "".join(event.remedy for event in told.watch.events)


@pytest.mark.parametrize("masked", [False, True])
def test_a_module_fed_step_by_step_crosses_it_too(tmp_path, masked) -> None:
    """Also where something is done to the state in between; packing is no remedy there."""

    def stepped(net, batch):
        words, _, y = batch
        x, h = net[0](words), torch.zeros(1, len(words), 12)
        for t in range(T):
            _, h = net[1](x[:, t : t + 1], h * 1.0 if masked else h)
        return functional.cross_entropy(net[2](h[0]), y)

    (event,) = fit(tmp_path, network("GRU"), stepped, words(), every=4).begun(VANISHING)
    assert "equal inputs, as padding has" in event.message
    assert event.remedy.startswith("If the equal inputs are padding, read each sequence's state at its last real step")
