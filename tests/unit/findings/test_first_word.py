"""What is kept for the line on a module that is sampled for the first time."""

from __future__ import annotations

from lightning_gradwatch.findings.first_word import FirstWord


def test_samples_after_the_first_step_are_not_kept() -> None:
    """Where nobody asks for a line, a long training would leave all of its records here."""
    word = FirstWord()
    for step in range(100):
        word.hear([{"module": "rnn", "step": step}, {"module": "rnn", "step": step}])
    assert word._fresh == 2 * [{"module": "rnn", "step": 0}]
