"""The agreement corpus is right by construction."""

from __future__ import annotations

import random

import pytest
import torch

from lightning_gradwatch.demo.agreement import (
    LONG,
    NOUNS,
    NUMBERS,
    SHORT,
    VERBS,
    WORDS,
    draw_distance,
    make_sentence,
    make_windows,
)

SINGULAR, PLURAL = ({pair[number] for pair in NOUNS} for number in (0, 1))


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 23, 40])
@pytest.mark.parametrize("plural", [False, True])
def test_the_verb_has_the_subjects_number_and_stands_where_asked(distance: int, plural: bool) -> None:
    """The noun, the verb and what lies between them are as asked, at every distance."""
    sentence = make_sentence(random.Random(distance), distance, plural=plural)
    assert sentence.verb - sentence.noun == sentence.distance == distance
    assert sentence.words[sentence.noun] in (PLURAL if plural else SINGULAR)
    assert sentence.words[sentence.verb] == VERBS[plural]
    assert sum(word in VERBS for word in sentence.words) == 1
    assert set(sentence.words) <= set(WORDS)
    assert sentence.words[0] == "the"
    assert sentence.words[-1] == "."


@pytest.mark.parametrize("distance", range(7, 41))
def test_distractors_stand_in_between(distance: int) -> None:
    """From seven words on nouns stand between the subject and the verb, and are reported where they are."""
    sentence = make_sentence(random.Random(0), distance)
    assert sentence.distractors
    for place, word in enumerate(sentence.words):
        between = sentence.noun < place < sentence.verb
        assert (place in sentence.distractors) == (between and word in SINGULAR | PLURAL)


def test_the_distractors_say_nothing_of_the_subject() -> None:
    """Of the last distractors half have the subject's number."""
    rng = random.Random(3)
    agree = 0
    for _ in range(2000):
        sentence = make_sentence(rng, 12)
        agree += (sentence.words[sentence.distractors[-1]] in PLURAL) == sentence.plural
    assert 0.46 < agree / 2000 < 0.54  # ±3.6 standard deviations


def test_a_distance_under_one_is_an_error() -> None:
    """The verb cannot stand on its subject."""
    with pytest.raises(ValueError, match="`distance` must be ≥ 1; found 0"):
        make_sentence(random.Random(0), 0)


def test_distances_keep_clear_of_the_gap() -> None:
    """Drawn distances are short or long, and reach both ends of both."""
    rng = random.Random(0)
    drawn = {draw_distance(rng) for _ in range(5000)}
    assert drawn == {*range(SHORT[0], SHORT[1] + 1), *range(LONG[0], LONG[1] + 1)}


def test_windows_end_at_a_verb_half_of_them_plural() -> None:
    """The last word of a window is was or were, in turn, and agrees with the noun at the distance asked for."""
    windows = make_windows(5, 40, 48, lambda rng: 20)
    assert windows.shape == (40, 49)
    assert windows[:, -1].tolist() == [NUMBERS[verb] for verb in VERBS] * 20
    for row in windows:
        assert (WORDS[int(row[-21])] in PLURAL) == (WORDS[int(row[-1])] == "were")


def test_the_seed_decides_and_no_global_generator_is_touched() -> None:
    """The same seed gives the same windows, another one others, and neither global generator moves."""
    before, before_torch = random.getstate(), torch.get_rng_state()
    first, again, other = make_windows(1, 8, 48), make_windows(1, 8, 48), make_windows(2, 8, 48)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert random.getstate() == before
    assert torch.equal(torch.get_rng_state(), before_torch)


def test_no_windows_is_an_empty_tensor() -> None:
    """Zero windows have their width all the same."""
    assert make_windows(0, 0, 48).shape == (0, 49)
