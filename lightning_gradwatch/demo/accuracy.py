"""How often a language model prefers the right one of was and were, by the distance of the
subject."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gradwatch.demo.agreement import NUMBERS, VERBS, make_windows

BUCKETS = ((1, 3), (8, 15), (16, 25), (26, 40))
"""Distances that share a column, least and most, in words; from the second on there are
distractors."""

CHANCE = 0.5
"""What a model gets right that knows nothing of the subject: half of the verbs are plural."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of right choices among the verbs of a bucket ``(least, most)`` of distances, in
    words."""

    bucket: tuple[int, int]
    right: int
    verbs: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.right / self.verbs

    @property
    def at_chance(self) -> bool:
        """Whether guessing explains it: within three standard deviations of a thrown coin."""
        return abs(self.share - CHANCE) <= 3 * CHANCE / math.sqrt(self.verbs)


def accuracy_by_distance(
    logits: Callable[[Tensor], Tensor],
    *,
    seed: int,
    timesteps: int,
    verbs: int = 400,
    buckets: Sequence[tuple[int, int]] = BUCKETS,
) -> list[Accuracy]:
    """The accuracy at was/were on sentences made for the purpose.

    Args:
        logits: words ``(batch, time)`` → ``(batch, time, word)``.
        seed: of these sentences.
        timesteps: of a window; larger than any distance.
        verbs: in each bucket.
        buckets: of distances in words, least and most.
    """
    accuracies: list[Accuracy] = []
    for place, bucket in enumerate(buckets):

        def distance(rng: random.Random, bucket: tuple[int, int] = bucket) -> int:
            return rng.randint(*bucket)

        windows = make_windows(seed * len(buckets) + place, verbs, timesteps, distance)
        with torch.no_grad():
            last = logits(windows[:, :-1])[:, -1]
        singular, plural = (last[:, NUMBERS[verb]] for verb in VERBS)
        chosen = torch.where(plural > singular, NUMBERS[VERBS[1]], NUMBERS[VERBS[0]])
        accuracies.append(Accuracy(bucket, int((chosen == windows[:, -1]).sum()), verbs))
    return accuracies
