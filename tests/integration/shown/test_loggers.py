"""Each logger for real: what it stored is read back and is what the run log holds."""

from __future__ import annotations

import csv
import json
import math
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_gradwatch import AdaptiveClip, GradWatch, load_run
from lightning_gradwatch.report.logger_figures import log_figures
from tests.models import TinyLanguageModel, sentences, trainer
from tests.runlogs import profile
from tests.versions import seed_everything

pytestmark = pytest.mark.slow
Scalars = dict[tuple[str, int], float]
FIGURE = "gradwatch/rnn/l{}/gradient"


class Looking(pl.Callback):
    """Notes at which steps GradWatch hands figures to the loggers, and whether that moved a random stream."""

    def __init__(self, watch: GradWatch) -> None:
        self.watch, self.steps, self.undisturbed = watch, [], []
        self.draw, watch.on_train_epoch_end = watch.on_train_epoch_end, self.around

    def around(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        self.draw(trainer, pl_module)
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        self.steps.append(trainer.global_step)
        self.undisturbed.append(before == after)


def train(folder: Path, loggers: list[Logger]) -> Looking:
    seed_everything(0)
    watch = GradWatch(every_n_steps=3, figures=True)
    figures = Looking(watch)
    fit = trainer(folder, [watch, AdaptiveClip()], max_steps=8, logger=loggers, log_every_n_steps=1)
    fit.fit(TinyLanguageModel(layers=2), sentences())
    return figures


def of_run_log(folder: Path) -> Scalars:
    """What the loggers must hold, from the run log."""
    run = load_run(folder)
    found: Scalars = {}
    for record in run.profile_records:
        if record["state"] != "h":
            continue
        total = record["total"]
        values = {
            "horizon": record["horizon"],
            "growth_rate": record["growth_rate"],
            "total_first": total[0],
            "total_last": total[-1],
            "total_max": max(record["total_max"]),
        }
        for name, value in values.items():
            found[f"gradwatch/rnn/l{record['layer']}/{name}", record["step"]] = value
    for record in run.step_records:
        for name in ("grad_norm", "clip_threshold", "clip_coefficient", "clipped_norm"):
            if record[name] is not None:
                found[f"gradwatch/{name}", record["step"]] = record[name]
    return found


def of_tensorboard(logger: TensorBoardLogger) -> tuple[Scalars, list[tuple[str, int]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    scalars = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    return scalars, [(tag, e.step) for tag in events.Tags()["images"] for e in events.Images(tag)]


def of_csv(logger: CSVLogger) -> tuple[Scalars, list[tuple[str, int]]]:
    folder = Path(logger.log_dir)
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    scalars = {(key, int(row["step"])): float(value) for row in rows for key, value in row.items() if value}
    return scalars, pictures(folder / "figures")


def of_wandb(logger: WandbLogger) -> tuple[Scalars, list[tuple[str, int]]]:
    from wandb.proto import wandb_internal_pb2

    file = next((Path(logger.save_dir) / "wandb").glob("offline-run-*/run-*.wandb"))
    logger.experiment.finish()
    records: list[Any] = []
    end = time.monotonic() + 60
    while not any(record.WhichOneof("record_type") == "exit" for record in records):  # another process writes it
        assert time.monotonic() < end, f"only {len(records)} records"
        time.sleep(0.2)
        records = [wandb_internal_pb2.Record.FromString(data) for data in leveldb_records(file.read_bytes())]
    scalars: Scalars = {}
    images: list[tuple[str, int]] = []
    for items in (record.history.item for record in records):
        row = {tuple(item.nested_key) or (item.key,): json.loads(item.value_json) for item in items}
        step = row.get(("trainer/global_step",))
        for (key, *inner), value in row.items():
            if not inner and isinstance(value, int | float):
                scalars[key, step] = value
            elif inner == ["_type"] and value.startswith("image"):
                images.append((key, step))
    return scalars, images


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, in which W&B keeps an offline run: blocks of 32 KiB, 7 bytes of file header."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # too short for a record's header: padding
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if at + 7 + length > len(data):  # still being written
            return
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def of_mlflow(logger: MLFlowLogger) -> tuple[Scalars, list[tuple[str, int]]]:
    client, run = logger.experiment, logger.run_id
    keys = client.get_run(run).data.metrics
    scalars = {(key, metric.step): metric.value for key in keys for metric in client.get_metric_history(run, key)}
    return scalars, pictures(Path(client.download_artifacts(run, "")))


def pictures(folder: Path) -> list[tuple[str, int]]:
    files = sorted(folder.rglob("*.png"))
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    return [(file.parent.relative_to(folder).as_posix(), int(file.stem.removeprefix("step-"))) for file in files]


def mlflow_logger(folder: Path) -> MLFlowLogger:
    return MLFlowLogger(tracking_uri=f"file:{folder / 'mlruns'}")


LOGGERS: dict[str, tuple[Callable[[Path], Any], Callable[[Any], tuple[Scalars, list[tuple[str, int]]]]]] = {
    "tensorboard": (TensorBoardLogger, of_tensorboard),
    "csv": (lambda folder: CSVLogger(folder, flush_logs_every_n_steps=1), of_csv),
    "wandb": (lambda folder: WandbLogger(save_dir=folder, offline=True), of_wandb),
    "mlflow": (mlflow_logger, of_mlflow),
}


@pytest.fixture(autouse=True)
def _stores_on_disk(monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_holds_what_the_run_log_holds(tmp_path, name):
    """Every value of the run log is in the logger under its key and step, and so are the figures of each layer."""
    if name in ("wandb", "mlflow"):
        pytest.importorskip(name)
    make, read = LOGGERS[name]
    logger = make(tmp_path)
    figures = train(tmp_path, [logger])
    scalars, images = read(logger)
    expected = of_run_log(figures.watch.run_dir)
    assert len(expected) > 50
    assert {key: scalars.get(key, math.nan) for key in expected} == pytest.approx(expected, rel=1e-6)
    unexpected = {key for key, _ in scalars if key.startswith("gradwatch/")} - {key for key, _ in expected}
    assert unexpected == {
        "gradwatch/clip_rate",
        "gradwatch/skipped_steps",
    }  # the run log holds what they are counted from
    assert sorted(images) == [(FIGURE.format(layer), step) for layer in (0, 1) for step in figures.steps]
    assert figures.undisturbed == [True, True]


def test_several_loggers_at_once(tmp_path):
    """Each holds the same."""
    loggers = [make(tmp_path / name) for name, (make, _) in LOGGERS.items()]
    figures = train(tmp_path, loggers)
    expected = of_run_log(figures.watch.run_dir)
    for logger, (_, read) in zip(loggers, LOGGERS.values(), strict=True):
        scalars, images = read(logger)  # pyright: ignore[reportArgumentType]
        assert {key: scalars.get(key, math.nan) for key in expected} == pytest.approx(expected, rel=1e-6)
        assert len(images) == 4


def failing(*_: object, **__: object) -> None:
    raise RuntimeError("the server is away")


class Away(CSVLogger):
    """A logger whose server is away, for our values alone."""

    def log_metrics(self, metrics, step=None):
        if any(key.startswith("gradwatch/") for key in metrics):
            failing()
        super().log_metrics(metrics, step)


def test_a_logger_that_fails_is_no_error_in_training(tmp_path, recwarn):
    """One warning for each callback; the next logger gets everything, and both callbacks go on."""
    loggers = [Away(tmp_path / "away"), CSVLogger(tmp_path / "there", flush_logs_every_n_steps=1)]
    figures = train(tmp_path, loggers)
    expected = of_run_log(figures.watch.run_dir)
    scalars, _ = of_csv(loggers[1])
    assert {key: scalars.get(key, math.nan) for key in expected} == pytest.approx(expected, rel=1e-6)
    said = [str(warning.message) for warning in recwarn if "could not write to Away" in str(warning.message)]
    assert sorted(text.split()[0] for text in said) == ["AdaptiveClip", "GradWatch"]


class Broken:
    """A logger whose experiment cannot be opened."""

    @property
    def experiment(self) -> object:
        raise RuntimeError("no such server")


def test_what_a_logger_cannot_take_is_left_out_in_silence(recwarn, tmp_path):
    """Neither a logger that fails nor one that takes no figures, nor a record that cannot be drawn, disturbs the next one."""
    taken: list[str] = []
    good = SimpleNamespace(
        experiment=SimpleNamespace(add_figure=lambda key, figure, global_step: taken.append(f"{key} {global_step}"))
    )
    loggers = [
        SimpleNamespace(experiment=SimpleNamespace()),
        SimpleNamespace(log_image=failing),
        SimpleNamespace(experiment=SimpleNamespace(add_figure=failing)),
        SimpleNamespace(experiment=SimpleNamespace(log_figure=failing), run_id="1"),
        SimpleNamespace(experiment=SimpleNamespace(metrics_file_path="/dev/null/metrics.csv")),
        Broken(),
        object(),
        good,
    ]
    odd = [{**profile(1, module="odd"), "direct": [1.0]}, {**profile(1, module="empty"), "total": [], "timesteps": 0}]
    log_figures(loggers, [profile(3), profile(3, direction="reverse"), *odd], 3)
    assert {"gradwatch/rnn/l0/gradient 3", "gradwatch/rnn/l0r/gradient 3"} <= set(taken)
    assert not recwarn.list


def test_without_matplotlib_no_figure_is_drawn(monkeypatch):
    """The extra is not needed to log."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    taken: list[str] = []
    logger = SimpleNamespace(experiment=SimpleNamespace(add_figure=lambda key, *_, **__: taken.append(key)))
    log_figures([logger], [profile(3)], 3)
    assert taken == []
