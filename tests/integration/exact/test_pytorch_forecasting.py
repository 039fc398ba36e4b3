"""pytorch-forecasting's recurrent models, trained as its users train them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gradwatch import AdaptiveClip, EventKind, GradWatch, load_run
from tests.asserts import assert_identical
from tests.models import trainer

forecasting = pytest.importorskip("pytorch_forecasting")
xlstm = pytest.importorskip("pytorch_forecasting.models.xlstm")
pandas = pytest.importorskip("pandas")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "DeepAR with LSTM": ("DeepAR", {"cell_type": "LSTM", "hidden_size": 8, "rnn_layers": 2, "dropout": 0.1}),
    "DeepAR with GRU": ("DeepAR", {"cell_type": "GRU", "hidden_size": 8, "rnn_layers": 2, "dropout": 0.1}),
    "RecurrentNetwork": ("RecurrentNetwork", {"cell_type": "LSTM", "hidden_size": 8, "rnn_layers": 2}),
    "TemporalFusionTransformer": ("TemporalFusionTransformer", {"hidden_size": 8, "lstm_layers": 2, "dropout": 0.1}),
}
XLSTM = {"hidden_size": 8, "input_size": 2, "output_size": 4, "decomposition_kernel": 5, "num_layers": 2}
XLSTMS: dict[str, tuple[str, dict[str, Any]]] = {
    "xLSTMTime with sLSTM": ("xLSTMTime", {"xlstm_type": "slstm", "dropout": 0.1, **XLSTM}),
    "xLSTMTime with mLSTM": ("xLSTMTime", {"xlstm_type": "mlstm", "dropout": 0.0, **XLSTM}),
}
STATES = {"slstm": ("h", "c"), "mlstm": ("h", "c", "n")}
RECURRENT = {
    "DeepAR": {"rnn"},
    "RecurrentNetwork": {"rnn"},
    "TemporalFusionTransformer": {"lstm_encoder", "lstm_decoder"},
}


@pytest.fixture(scope="module")
def dataset() -> Any:
    """Three noisy sine waves, with encoder lengths that differ from sample to sample."""
    time = np.arange(60)
    random = np.random.default_rng(0)
    waves = [
        pandas.DataFrame(
            {"time": time, "series": str(i), "value": 2 + np.sin(time / (3 + i)) + 0.1 * random.normal(size=60)}
        )
        for i in range(3)
    ]
    return forecasting.TimeSeriesDataSet(
        pandas.concat(waves, ignore_index=True),
        time_idx="time",
        target="value",
        group_ids=["series"],
        min_encoder_length=8,
        max_encoder_length=16,
        max_prediction_length=4,
        time_varying_unknown_reals=["value"],
        static_categoricals=["series"],
    )


def train(
    dataset: Any, name: str, tmp_path: Path, *callbacks: Any, prepare: Callable[[Any], None] = lambda model: None
) -> dict[str, Any]:
    """Six steps from a fixed seed, with gradient_clip_val as in the library's own tutorials.

    Args:
        prepare: is given the model before it is trained.
    """
    torch.manual_seed(0)
    np.random.seed(0)
    kind, options = (MODELS | XLSTMS)[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maker = getattr(forecasting, kind, None) or getattr(xlstm, kind)
        if maker is xlstm.xLSTMTime:
            options = {**options, "loss": forecasting.SMAPE()}  # its default is one object for all models
        model = maker.from_dataset(dataset, learning_rate=0.03, log_interval=-1, **options)
        prepare(model)
        run = trainer(tmp_path, callbacks, gradient_clip_val=0.1)
        run.fit(model, dataset.to_dataloader(train=True, batch_size=8, num_workers=0))
    assert run.global_step == 6
    weights = {key: value for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    return {"weights": weights, "optimizers": [o.state_dict() for o in run.optimizers], "rng": torch.get_rng_state()}


@pytest.mark.parametrize("name", MODELS)
def test_watching_changes_no_bit_and_sees_every_recurrent_module(dataset: Any, name: str, tmp_path: Path) -> None:
    """With GradWatch the weights are the same to the bit, and each recurrent module is observed exactly."""
    watch = GradWatch(every_n_steps=2, dirpath=tmp_path / "run", summary=False)
    assert_identical(train(dataset, name, tmp_path), train(dataset, name, tmp_path, watch))
    records = load_run(tmp_path / "run").profile_records
    assert {record["module"] for record in records} == RECURRENT[MODELS[name][0]]
    assert not [event for event in watch.events if event.kind == EventKind.NOT_OBSERVED]
    assert all(record["exact"] for record in records), {record["inexact_reason"] for record in records}
    assert sorted({record["step"] for record in records}) == [0, 2, 4]


@pytest.mark.parametrize("name", MODELS)
def test_both_callbacks_work_beside_the_trainers_clipping(dataset: Any, name: str, tmp_path: Path) -> None:
    """AdaptiveClip measures every step, the Trainer clips after it, and the weights stay finite."""
    clip = AdaptiveClip(dirpath=tmp_path / "run")
    watch = GradWatch(every_n_steps=2, dirpath=tmp_path / "run", summary=False)
    ended = train(dataset, name, tmp_path, watch, clip)
    steps = load_run(tmp_path / "run").step_records
    assert [step["step"] for step in steps] == list(range(6))
    assert all(step["grad_norm"] > 0 for step in steps)
    assert all(value.isfinite().all() for value in ended["weights"].values() if value.is_floating_point())
    assert watch.run_dir == clip.run_dir == tmp_path / "run"


class Heard:
    """The gradient of each state that a cell hands on, as a hook on it has it: (layer, state) → one for each call, in order."""

    def __init__(self) -> None:
        self.gradients: dict[tuple[int, int], list[torch.Tensor | None]] = {}

    def listen_to(self, model: Any) -> None:
        network = getattr(model.lstm, f"{model.xlstm_type}_layer")
        for layer, cell in enumerate(network.cells):
            cell.register_forward_hook(lambda cell, inputs, outputs, layer=layer: self._keep(layer, outputs))

    def _keep(self, layer: int, outputs: tuple[torch.Tensor, ...]) -> None:
        for number, state in enumerate(outputs):
            kept = self.gradients.setdefault((layer, number), [])
            at = len(kept)
            kept.append(None)
            state.register_hook(lambda gradient, kept=kept, at=at: kept.__setitem__(at, gradient.clone()))

    def norms(self, layer: int, number: int, step: int) -> np.ndarray:
        """``(sequence, timestep)`` of one step; 0 where no gradient came."""
        kept = self.gradients[layer, number]
        timesteps = len(kept) // 6
        own = kept[step * timesteps : (step + 1) * timesteps]
        batch = next(len(gradient) for gradient in own if gradient is not None)
        return np.stack([np.zeros(batch) if g is None else g.norm(dim=1).numpy() for g in own], axis=1)


@pytest.mark.parametrize("name", XLSTMS)
def test_each_state_of_an_xlstm_is_measured_as_autograd_has_it(dataset: Any, name: str, tmp_path: Path) -> None:
    """Each layer's cell by itself, each of its states by its name, from the second step on; not a bit of the training changes."""
    heard, kind = Heard(), XLSTMS[name][1]["xlstm_type"]
    watch = GradWatch(every_n_steps=2, max_sequences=None, keep_sequences=True, dirpath=tmp_path / "run", summary=False)
    bare = train(dataset, name, tmp_path, prepare=heard.listen_to)
    assert_identical(bare, train(dataset, name, tmp_path, watch))
    assert not [event for event in watch.events if event.kind == EventKind.NOT_OBSERVED]
    records = load_run(tmp_path / "run").profile_records
    cells = [f"lstm.{kind}_layer.cells.{layer}" for layer in (0, 1)]
    assert {(record["module"], record["state"]) for record in records} == {(c, s) for c in cells for s in STATES[kind]}
    assert {record["step"] for record in records} >= {2, 4}
    for record in records:
        assert record["exact"], record["inexact_reason"]
        truth = heard.norms(cells.index(record["module"]), STATES[kind].index(record["state"]), record["step"])
        assert np.array(record["total_by_sequence"]) == pytest.approx(truth, rel=1e-4, abs=1e-9)
        assert truth.any()
