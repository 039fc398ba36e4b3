"""Every way in which real models call a recurrent network: seen exactly, or said not to be; and never disturbed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_gradwatch import EventKind, GradWatch, load_run
from tests.asserts import assert_identical
from tests.integration.exact.real_calls import EXACT, INEXACT, NO_TIME, NOT_OBSERVED, WAYS, model_of
from tests.models import sentences, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning"),
]


def train(way: str, tmp_path, watched: bool):
    torch.manual_seed(3)
    torch._dynamo.reset()  # what was compiled without hooks would be reused, and with it their absence
    model = model_of(way)
    watch = GradWatch(every_n_steps=2, dirpath=tmp_path / "run", keep_sequences=True, max_sequences=None)
    fit = trainer(tmp_path, [watch] if watched else [], max_steps=5)
    fit.fit(model, sentences(64))
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "optimizer": fit.optimizers[0].state_dict(),
        "rng": torch.get_rng_state(),
        "loss": fit.callback_metrics,
    }, watch


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_measured_or_reported_and_never_disturbed(way: str, tmp_path, record_property) -> None:
    """Training is the same to the bit, and each profile is exact, says why it is not, or is reported as not observed."""
    bare, _ = train(way, tmp_path / "bare", watched=False)
    watched, watch = train(way, tmp_path / "watched", watched=True)
    assert_identical(bare, watched)
    records = load_run(watch.run_dir).profile_records
    kinds = {event.kind for event in watch.events}
    if kinds >= NOT_OBSERVED_EVENTS:
        found = NOT_OBSERVED
    elif EventKind.NO_GRADIENT_THROUGH_TIME in kinds:
        found = NO_TIME
    else:
        assert records
        found = EXACT if all(record["exact"] for record in records) else INEXACT
        assert all(record["inexact_reason"] for record in records if not record["exact"])
    record_property("observation", found)
    assert found == WAYS[way][2], [event.message for event in watch.events]


NOT_OBSERVED_EVENTS = {EventKind.NOT_OBSERVED}


def records_of(way: str, tmp_path):
    _, watch = train(way, tmp_path, watched=True)
    return [r for r in load_run(watch.run_dir).profile_records if r["state"] == "h"]


def test_a_subclass_that_packs_inside_measures_what_packing_outside_does(tmp_path) -> None:
    """The inner call of the subclass has the profiles of the same module given a packed sequence; sequences in packed order."""
    inside = records_of("a subclass that packs in its own forward", tmp_path / "inside")
    outside = records_of("a packed sequence", tmp_path / "outside")
    assert len(inside) == len(outside) > 1
    for a, b in zip(inside, outside, strict=True):
        assert sorted(map(len, a["total_by_sequence"])) == sorted(map(len, b["total_by_sequence"]))
        for one in a["total_by_sequence"]:
            assert any(
                len(one) == len(other) and np.allclose(one, other, rtol=1e-5) for other in b["total_by_sequence"]
            )


def test_the_ways_of_running_one_lstm_agree(tmp_path) -> None:
    """Fed at once, in two halves, one step at a time, under checkpointing: the same profile of the same first step."""
    first = [
        records_of(way, tmp_path / str(i))[0]
        for i, way in enumerate(
            [
                "a fused module",
                "one module for encoding and decoding",
                "a fused module fed one timestep at a time",
                "activation checkpointing, not reentrant",
                "activation checkpointing, reentrant",
                "15 calls under no_grad and one that trains",
            ]
        )
    ]
    for record in first[1:]:
        assert record["timesteps"] == 8
        assert np.allclose(record["total_by_sequence"], first[0]["total_by_sequence"], rtol=1e-5)
        assert np.allclose(record["lagged"], first[0]["lagged"], rtol=1e-5)


def test_truncated_halves_are_two_calls(tmp_path) -> None:
    """A state that is detached between two calls leaves two profiles, each of its own length."""
    records = records_of("truncated BPTT within a step", tmp_path)
    assert [(r["call"], r["timesteps"]) for r in records[:2]] == [(0, 4), (1, 4)]


def test_a_cell_of_ones_own_is_sampled_on_the_step_after_it_was_found(tmp_path) -> None:
    """The first step finds the cell; the second is sampled, then every n-th as ever."""
    records = records_of("a cell of one's own, found by itself", tmp_path)
    assert [record["step"] for record in records] == [1, 2, 4]
    assert {record["kind"] for record in records} == {"OwnCell"}


def test_the_state_of_ones_own_cell_is_what_comes_back(tmp_path) -> None:
    """Of a cell that returns output and state, the state's gradient is measured: it has a past at every timestep."""
    (record, *_) = records_of("a cell of one's own that returns output and state", tmp_path)
    assert record["timesteps"] == 8
    assert len(record["lagged"]) == 8
    assert all(0 < ratio < 1 for ratio in record["lagged"][1:])
