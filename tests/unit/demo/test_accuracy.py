"""The accuracy at was/were, with models whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_gradwatch.demo.accuracy import Accuracy, accuracy_by_distance
from lightning_gradwatch.demo.agreement import NOUNS, NUMBERS, WORDS

PLURALS = torch.tensor([NUMBERS[plural] for _, plural in NOUNS])
ALL_NOUNS = torch.tensor([NUMBERS[noun] for pair in NOUNS for noun in pair])


def _says(plural: Tensor, words: Tensor) -> Tensor:
    """Logits that prefer were where ``plural`` ``(batch,)``."""
    logits = torch.zeros(*words.shape, len(WORDS))
    logits[:, -1, NUMBERS["were"]] = torch.where(plural, 1.0, -1.0)
    return logits


def test_a_model_that_knows_the_subject_is_always_right() -> None:
    """The noun that stands the bucket's one distance in front of the verb decides."""
    found = accuracy_by_distance(
        lambda words: _says(torch.isin(words[:, -12], PLURALS), words),
        seed=1,
        timesteps=48,
        verbs=60,
        buckets=[(12, 12)],
    )
    assert [accuracy.share for accuracy in found] == [1.0]
    assert not found[0].at_chance


def test_a_model_that_always_says_were_gets_half() -> None:
    """Half of the verbs are plural, exactly."""
    found = accuracy_by_distance(
        lambda words: _says(torch.ones(len(words), dtype=torch.bool), words), seed=1, timesteps=48, verbs=60
    )
    assert [accuracy.share for accuracy in found] == [0.5] * 4


def test_the_nearest_noun_helps_only_in_short_sentences() -> None:
    """A model that looks at the last noun is right without a clause and at chance with one."""

    def nearest(words: Tensor) -> Tensor:
        place = torch.arange(words.shape[1]) * torch.isin(words, ALL_NOUNS)
        noun = words.gather(1, place.argmax(1, keepdim=True))[:, 0]
        return _says(torch.isin(noun, PLURALS), words)

    short, *long = accuracy_by_distance(nearest, seed=2, timesteps=48)
    assert short.share == 1.0
    assert all(accuracy.at_chance for accuracy in long)


@pytest.mark.parametrize(("right", "at_chance"), [(200, True), (229, True), (231, False), (169, False), (400, False)])
def test_chance_is_within_three_standard_deviations(right: int, at_chance: bool) -> None:
    """Of 400 thrown coins 200 ± 30 are right."""
    assert Accuracy((1, 3), right, 400).at_chance is at_chance
