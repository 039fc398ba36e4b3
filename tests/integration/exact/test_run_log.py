"""What stands in the run log is the training step's own: which steps, and which figures."""

from __future__ import annotations

import copy

import numpy as np
import torch

from lightning_gradwatch import GradWatch, load_run
from tests.integration.watched import fit
from tests.models import TinyLanguageModel, sentences
from tests.oracles import gradients, norms, unroll


def test_the_profile_in_the_run_log_is_that_of_the_training_step(tmp_path) -> None:
    """total_by_sequence of every micro-batch sampled equals autograd on the unrolled model, accumulation undone."""
    torch.manual_seed(5)
    model = TinyLanguageModel("GRU").double()
    before = copy.deepcopy(model)
    watch = GradWatch(dirpath=tmp_path / "run", keep_sequences=True, max_sequences=None)
    data = sentences()
    fit(tmp_path, model, [watch], data, accumulate_grad_batches=4, max_steps=1)
    (record,) = load_run(tmp_path / "run").profile_records
    (words,) = next(iter(data))
    unrolled = [unroll(before.rnn, x) for x in before.embedding(words[:, :-1]).detach()]
    output = torch.stack([torch.cat(model.output) for model in unrolled])
    loss = torch.nn.functional.cross_entropy(before.head(output).flatten(0, 1), words[:, 1:].flatten())
    for found, model in zip(record["total_by_sequence"], unrolled, strict=True):
        expected = norms(gradients(loss, model.h[0][0])).numpy()
        assert np.abs(np.array(found) - expected).max() <= 1e-10 * expected.max()


def test_the_first_step_and_every_nth_are_sampled(tmp_path) -> None:
    """Steps 0, 3 and 6 are in the run log, each once, with accumulation as well."""
    watch = GradWatch(every_n_steps=3, dirpath=tmp_path / "run")
    fit(tmp_path, None, [watch], sentences(128), accumulate_grad_batches=2, max_steps=8)
    records = load_run(watch.run_dir).profile_records
    assert [(r["step"], r["micro_batch"]) for r in records if r["state"] == "h"] == [(0, 0), (3, 0), (6, 0)]
