"""Text on its way to a terminal, and words on their way to a shell."""

from __future__ import annotations

import subprocess
import unicodedata

import pytest

from lightning_gradwatch.plain import command, plain, plain_lines, say
from tests.steering import steers

STEERING = [chr(code) for code in range(0x110000) if steers(chr(code))]


def test_nothing_that_steers_a_terminal_is_left():
    """No control character of any kind, no mark of direction, no half of a pair; each is still told apart."""
    assert {"\x00", "\a", "\x1b", "\x7f", "\x9b", "\u202e", "\u2066", "\ud800", "\r", "\n"} <= set(STEERING)
    for letter in STEERING:
        shown = plain(f"a{letter}b")
        assert not any(map(steers, shown))
        assert shown == "a b" if letter.isspace() else shown.startswith("a\\")
        shown.encode("utf-8")


@pytest.mark.parametrize("text", ["model.rnn, layer 1", "Größe ≥ 3 · 10⁻³", "日本語", "🙂", "a\\x1bb", ""])
def test_what_is_plain_stays(text):
    """Letters of every language among it; what was shown once is not shown otherwise the second time."""
    assert plain(text) == text
    assert plain(plain(f"{text}\x1b\n")) == plain(f"{text}\x1b\n")


def test_lines_stay_lines(capsys):
    """What is printed has the lines that it was given, and no others."""
    assert plain_lines("a\nb\x1bc\n") == "a\nb\\x1bc\n"
    say("a\nb", "c\rd")
    assert capsys.readouterr().out == "a b\nc d\n"


@pytest.mark.parametrize(
    "word",
    [
        "plain",
        "two words",
        "it's",
        "$(touch x)",
        "`x`",
        "a;b",
        "a\nb",
        "a\x1b[31m'b\\n",
        "ü\u202eb\x9b",
        "",
        "-o",
        "a\x079",
        "日\x1b",
    ],
)
def test_a_shell_reads_the_words_back(word):
    """Whatever is in them; and the line itself steers no terminal."""
    line = command("printf", "%s|", word, "end")
    assert not any(map(steers, line))
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout.decode() == f"{word}|end|"


def test_steering_is_what_unicode_says():
    """The test's own idea of what steers does not come from the package."""
    assert all(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in STEERING)
