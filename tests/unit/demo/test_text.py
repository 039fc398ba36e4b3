"""Text by character: what can be read, what is said where it cannot, and what the numbers mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_gradwatch.demo.data import TextData
from lightning_gradwatch.demo.error import DemoError
from lightning_gradwatch.demo.text import MOST_CHARACTERS, UNKNOWN, Characters, read_text, unigram_perplexity


def test_files_are_read_one_after_another_up_to_the_limit(tmp_path: Path) -> None:
    """The order is the user's, and the limit counts characters."""
    (tmp_path / "b").write_text("zwölf ", "utf-8")
    (tmp_path / "a").write_text("Boxkämpfer", "utf-8")
    names = [tmp_path / "b", tmp_path / "a"]
    assert read_text(names) == "zwölf Boxkämpfer"
    assert read_text(names, limit=9) == "zwölf Box"
    assert read_text(names, limit=6) == "zwölf "


def test_the_standard_library_is_read_alike_every_time() -> None:
    """Without a name the text is Python's own sources, within the limit."""
    text = read_text(limit=50_000)
    assert len(text) == 50_000
    assert text == read_text(limit=50_000)
    assert "import" in text


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    """One line says which file and what to do."""
    path = tmp_path / "latin.txt"
    path.write_bytes("zwölf".encode("latin-1") * 100)
    with pytest.raises(DemoError, match=r"must be UTF-8; found b'\\xf6' in .*latin\.txt.*iconv"):
        read_text([path])


def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    """One line says which and why."""
    with pytest.raises(DemoError, match=r"found .*nothing\.txt.* \(No such file or directory\)"):
        read_text([tmp_path / "nothing.txt"])
    with pytest.raises(DemoError, match="directory"):
        read_text([tmp_path])


@pytest.mark.parametrize("length", [0, 1, 41])
def test_a_text_shorter_than_two_windows_is_an_error(tmp_path: Path, length: int) -> None:
    """The message tells the length found; one character more is enough."""
    path = tmp_path / "short.txt"
    path.write_text("x" * length)
    with pytest.raises(DemoError, match=rf"two windows of 21 characters.*found {length} characters.*--timesteps"):
        TextData([str(path)], timesteps=20)


def test_the_shortest_text_that_will_do_gives_batches(tmp_path: Path) -> None:
    """Two windows of text are one to learn from and one held out, each asked for its next characters."""
    path = tmp_path / "short.txt"
    path.write_text("abcdefghijklmnopqrstu" * 2)
    data = TextData([str(path)], timesteps=20, batch_size=2, batches=3)
    batches = list(data.train_dataloader())
    assert [tuple(fed.shape) for fed, _ in batches] == [(2, 20)] * 3
    assert data.characters.decode(batches[0][0][0]) == "abcdefghijklmnopqrst"
    assert data.characters.decode(batches[0][1][0]) == "bcdefghijklmnopqrstu"
    assert [fed.shape[0] for fed, _ in data.val_dataloader()] == [1]


def test_the_held_out_tenth_is_not_trained_on(tmp_path: Path) -> None:
    """Characters that only the held-out part has are unknown to the model."""
    path = tmp_path / "text.txt"
    path.write_text("a" * 900 + "b" * 100)
    data = TextData([str(path)], timesteps=10, batches=50)
    assert data.characters.characters == (UNKNOWN, "a")
    assert set(data.held_out.tolist()) == {0}
    assert all((fed == 1).all() and (asked == 1).all() for fed, asked in data.train_dataloader())


def test_places_come_from_the_seed_alone(tmp_path: Path) -> None:
    """The same seed draws the same windows whatever the global generator's state, and leaves that alone."""
    path = tmp_path / "text.txt"
    path.write_text("".join(map(chr, range(33, 127))) * 20)
    data = TextData([str(path)], timesteps=10, batches=2, seed=4)
    first = [fed for fed, _ in data.train_dataloader()]
    torch.rand(1)
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, data.train_dataloader(), strict=True))
    data.seed = 5
    assert not torch.equal(first[0], next(iter(data.train_dataloader()))[0])


def test_characters_round_trip_and_the_rare_ones_share_a_number() -> None:
    """The most frequent characters keep a number of their own; the rest is 0."""
    text = "".join(chr(200 + index) * (400 - index) for index in range(MOST_CHARACTERS + 5))
    characters = Characters(text)
    assert len(characters) == MOST_CHARACTERS + 1
    assert characters.decode(characters.encode(text[:1000])) == text[:1000]
    assert set(characters.encode(text[-100:]).tolist()) == {0}


def test_unigram_perplexity_of_known_shares() -> None:
    """Two characters, equally frequent, are as good as a coin; one alone is certain."""
    assert unigram_perplexity(torch.tensor([0, 1, 0, 1]), 5) == pytest.approx(2.0)
    assert unigram_perplexity(torch.tensor([3, 3, 3]), 5) == pytest.approx(1.0)
