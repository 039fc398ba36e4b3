"""sb3-contrib's RecurrentPPO, which trains in a loop of its own: its policy is watched from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import EventKind, load_run, watch
from tests.asserts import assert_identical

EPISODE, SEQUENCES, STEPS = 7, 5, 8


def recall() -> Any:
    """A task in which one has to say at the end what was shown first."""
    gymnasium = pytest.importorskip("gymnasium", exc_type=ImportError)

    class Recall(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def seen(self) -> np.ndarray:
            return np.array([0.0 if self.t else self.cue, self.t / EPISODE], np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
            super().reset(seed=seed)
            self.t, self.cue = 0, float(self.np_random.integers(2) * 2 - 1)
            return self.seen(), {}

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            self.t += 1
            ends = self.t >= EPISODE
            return self.seen(), float(ends and (action == 1) == (self.cue > 0)), ends, False, {}

    return Recall()


def agent(**options: Any) -> Any:
    contrib = pytest.importorskip("sb3_contrib", exc_type=ImportError)
    rollout = EPISODE * SEQUENCES
    return contrib.RecurrentPPO(
        "MlpLstmPolicy",
        recall(),
        n_steps=rollout,
        batch_size=rollout,
        n_epochs=STEPS // 2,
        seed=0,
        device="cpu",
        policy_kwargs={"lstm_hidden_size": 6, "net_arch": [6], **options},
    )


class Heard:
    """The gradient of each timestep's state: what comes by the output, and what by the state that is handed on."""

    def __init__(self, rnn: nn.LSTM) -> None:
        self.states: list[list[Tensor]] = []
        rnn.register_forward_hook(self._keep)

    def _keep(self, rnn: nn.Module, inputs: Any, made: tuple[Tensor, tuple[Tensor, Tensor]]) -> None:
        if made[0].requires_grad and rnn.training:
            kept = [torch.zeros(made[0].shape[1:])]
            self.states.append(kept)
            for state in (made[0], made[1][0]):
                state.register_hook(lambda gradient, kept=kept: kept.append(gradient[-1].clone()))

    def norms(self) -> list[np.ndarray]:
        """Of one optimizer step after the other ``(sequence, timestep)``."""
        each = [sum(kept, torch.zeros(())).norm(dim=1) for kept in self.states]
        return [torch.stack(each[at : at + EPISODE], 1).numpy() for at in range(0, len(each), EPISODE)]


@pytest.mark.parametrize(
    ("options", "watched"),
    [
        ({}, {"lstm_actor", "lstm_critic"}),
        ({"shared_lstm": True, "enable_critic_lstm": False}, {"lstm_actor"}),
        ({"n_lstm_layers": 2}, {"lstm_actor", "lstm_critic"}),
    ],
    ids=["two", "shared", "two layers"],
)
def test_each_memory_is_observed_and_not_a_bit_changes(
    options: dict[str, Any], watched: set[str], tmp_path: Path
) -> None:
    """Exactly, within the episodes, at every step of the optimizer; what is collected in between, without gradients, counts for
    nothing.
    """
    bare = agent(**options).learn(2 * EPISODE * SEQUENCES)
    ours = agent(**options)
    with watch(ours.policy, ours.policy.optimizer, every_n_steps=1, dirpath=tmp_path, summary=False) as w:
        ours.learn(2 * EPISODE * SEQUENCES)
    assert_identical(bare.policy.state_dict(), ours.policy.state_dict())
    assert w.run_dir is not None
    records = load_run(w.run_dir).profile_records
    assert {record["module"] for record in records} == watched
    assert {record["step"] for record in records} == set(range(STEPS))
    assert {record["timesteps"] for record in records} == {EPISODE}
    assert {record["batch_size"] for record in records} <= {SEQUENCES, SEQUENCES + 1}  # it may cut one in two
    assert all(record["exact"] for record in records), {record["inexact_reason"] for record in records}
    assert not [event for event in w.events if event.kind == EventKind.NOT_OBSERVED]


def test_a_memory_is_measured_as_autograd_has_it(tmp_path: Path) -> None:
    """The total gradient of every timestep of every episode, in the first step and in the last."""
    bare = agent()
    heard = Heard(bare.policy.lstm_actor)
    bare.learn(2 * EPISODE * SEQUENCES)
    ours = agent()
    with watch(
        ours.policy,
        every_n_steps=1,
        max_sequences=None,
        keep_sequences=True,
        dirpath=tmp_path,
        summary=False,
    ) as w:
        ours.learn(2 * EPISODE * SEQUENCES)
    assert w.run_dir is not None
    records = [record for record in load_run(w.run_dir).profile_records if record["module"] == "lstm_actor"]
    of_h = [record for record in records if record["state"] == "h"]
    assert len(of_h) == STEPS
    for record, truth in zip(of_h, heard.norms(), strict=True):
        assert np.array(record["total_by_sequence"]) == pytest.approx(truth, rel=1e-4, abs=1e-8)
        assert truth.any(axis=0).all()
