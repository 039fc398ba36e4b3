"""The agreement corpus: generated sentences whose verb must agree with a noun that may stand far
before it.

"the cat , which already ate the fish and the dogs , was full ." – *was* or *were* depends on the
first noun alone; the nouns in between are singular or plural at random, so that neither the nearest
noun nor any other says more than a thrown coin. (The task is that of Linzen, Dupoux and Goldberg
2016, generated instead of collected.)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gradwatch import arguments

NOUNS = (
    ("cat", "cats"),
    ("dog", "dogs"),
    ("bird", "birds"),
    ("fox", "foxes"),
    ("horse", "horses"),
    ("child", "children"),
)
"""Singular and plural."""

VERBS = ("was", "were")
"""Singular and plural."""

_CLAUSE_VERBS = ("ate", "saw")  # the past tense has no number, so that they give nothing away
_LINKS = ("and", "near")
_ADVERBS = ("already", "often")
_ADJECTIVES = ("full", "glad", "tired")

WORDS = (
    *("the", ",", "which", "."),
    *(*VERBS, *_CLAUSE_VERBS, *_LINKS, *_ADVERBS, *_ADJECTIVES),
    *(noun for pair in NOUNS for noun in pair),
)
"""The vocabulary; a word's number is its place here."""

NUMBERS = {word: number for number, word in enumerate(WORDS)}

SHORT = (1, 3)
"""Words from noun to verb in a sentence without a relative clause, least and most: "the cat often
was full ."."""

LONG = (8, 40)
"""The same in a sentence with a relative clause, which always holds a noun of its own: a
distractor.

Nothing lies between 3 and 8. A network that learned to bridge 3 words could stretch that to 4, then
5 and so on; the gap makes the gradient itself reach back.
"""

SHORT_SHARE = 0.3

_LONG_DISTANCES = range(LONG[0], LONG[1] + 1)
_LONG_WEIGHTS = [distance**-2 for distance in _LONG_DISTANCES]  # as in real text, the longer the rarer

_CLAUSE_FROM = 5  # words from noun to verb: "the cat , which ate , was"


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, and where to look in it.

    Args:
        words: all of them, the full stop included.
        noun, verb: indices of the subject and of was/were.
        distractors: indices of the nouns in between.
        plural: the subject's number.
    """

    words: tuple[str, ...]
    noun: int
    verb: int
    distractors: tuple[int, ...]
    plural: bool

    @property
    def distance(self) -> int:
        """Words from the subject to the verb."""
        return self.verb - self.noun


def draw_distance(rng: random.Random) -> int:
    """The distance of one sentence of the corpus, in words."""
    if rng.random() < SHORT_SHARE:
        return rng.randint(*SHORT)
    return rng.choices(_LONG_DISTANCES, _LONG_WEIGHTS)[0]


def make_sentence(rng: random.Random, distance: int, *, plural: bool | None = None) -> Sentence:
    """A sentence whose verb stands ``distance`` words after its subject.

    Args:
        rng: draws the words.
        distance: ≥ 1; from 7 on there are distractors, the more the longer.
        plural: the subject's number; None draws it.

    Raises:
        ValueError: ``distance`` < 1.
    """
    arguments.whole("distance", distance, "The verb stands after its subject.")
    plural = rng.random() < 0.5 if plural is None else plural
    between = _clause(rng, distance) if distance >= _CLAUSE_FROM else _adverbs(rng, distance - 1)
    words = ["the", rng.choice(NOUNS)[plural], *between, VERBS[plural], rng.choice(_ADJECTIVES), "."]
    nouns = {noun for pair in NOUNS for noun in pair}
    verb = 1 + distance
    distractors = tuple(place for place in range(2, verb) if words[place] in nouns)
    return Sentence(tuple(words), 1, verb, distractors, plural)


def _clause(rng: random.Random, distance: int) -> list[str]:
    """ ", which often ate the fox and the dogs ,": the ``distance`` − 1 words of a relative
    clause."""
    room = distance - _CLAUSE_FROM
    objects: list[str] = []
    if room >= 2:
        links = (room - 2) // 3
        objects = ["the", _any_noun(rng)]
        for _ in range(links):
            objects += [rng.choice(_LINKS), "the", _any_noun(rng)]
    adverbs = _adverbs(rng, room - len(objects))
    return [",", "which", *adverbs, rng.choice(_CLAUSE_VERBS), *objects, ","]


def _adverbs(rng: random.Random, count: int) -> list[str]:
    return [rng.choice(_ADVERBS) for _ in range(count)]


def _any_noun(rng: random.Random) -> str:
    return rng.choice(NOUNS)[rng.random() < 0.5]


def make_windows(
    seed: int,
    count: int,
    timesteps: int,
    distance: Callable[[random.Random], int] = draw_distance,
) -> Tensor:
    """Windows of running text, each of which ends at the verb of its last sentence.

    Half of these verbs are plural, so that a network that ignores the subject gets half of them
    right. What stands before the last sentence are other sentences of the corpus, cut off where the
    window begins.

    Args:
        seed: of the window's own generator; no other is touched.
        count: of windows.
        timesteps: a window feeds so many words and asks for as many; it holds one word more.
        distance: draws the distance of the last sentence.

    Returns:
        Words' numbers ``(window, time + 1)``, int64.
    """
    rng = random.Random(seed)
    rows: list[list[int]] = []
    for index in range(count):
        last = make_sentence(rng, distance(rng), plural=bool(index % 2))
        words = list(last.words[: last.verb + 1])
        while len(words) <= timesteps:
            words = [*make_sentence(rng, draw_distance(rng)).words, *words]
        rows.append([NUMBERS[word] for word in words[-timesteps - 1 :]])
    return torch.tensor(rows, dtype=torch.int64).reshape(count, timesteps + 1)
