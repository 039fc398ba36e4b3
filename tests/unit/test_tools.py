"""A sentence names what the user has at hand: callbacks with a Trainer, functions in a loop."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_gradwatch
from lightning_gradwatch.detect import NormJumpDetector
from lightning_gradwatch.events import EventKind, Moment
from lightning_gradwatch.tools import tools_at_hand

PACKAGE = Path(lightning_gradwatch.__file__).parent

TRAINER, LOOP = tools_at_hand(in_loop=False), tools_at_hand(in_loop=True)


@pytest.mark.parametrize("kind", EventKind)
def test_no_remedy_of_a_kind_is_left_with_a_field(kind: EventKind) -> None:
    """Nor does one in a loop name a callback, or one with a Trainer a function."""
    there, here = Moment(0, in_loop=True).event(kind, value=1.0, threshold=1.0), kind.remedy
    assert "{" not in there.remedy + here
    assert not any(name in there.remedy for name in ("AdaptiveClip", "GradWatch", "bf16-mixed"))
    assert not any(name in here for name in ("clip_adaptively", "watch("))


@pytest.mark.parametrize("kind", ["NONFINITE_LOSS", "EXPLODING_HIDDEN_GRADIENT", "AMP_OVERFLOW"])
def test_a_kind_names_other_tools_in_a_loop(kind: str) -> None:
    """Only the tools differ."""
    there, here = EventKind[kind].remedy_with(LOOP), EventKind[kind].remedy
    assert there != here
    for of_loop, of_trainer in (
        (LOOP.clip(), TRAINER.clip()),
        (LOOP.clipper, TRAINER.clipper),
        (LOOP.bfloat16, TRAINER.bfloat16),
    ):
        there = there.replace(of_loop, of_trainer)
    assert there == here


@pytest.mark.parametrize(
    ("arguments", "with_trainer", "in_loop"),
    [
        ("", "AdaptiveClip()", "clip_adaptively(optimizer)"),
        ("policy=Norm(1)", "AdaptiveClip(policy=Norm(1))", "clip_adaptively(optimizer, policy=Norm(1))"),
        ('on_nonfinite="skip"', 'AdaptiveClip(on_nonfinite="skip")', 'clip_adaptively(optimizer, on_nonfinite="skip")'),
    ],
)
def test_a_call_can_be_pasted(arguments: str, with_trainer: str, in_loop: str) -> None:
    """With its arguments, and no comma too many."""
    assert (TRAINER.clip(arguments), LOOP.clip(arguments)) == (with_trainer, in_loop)
    assert (TRAINER.watch(), LOOP.watch()) == ("GradWatch()", "watch(model, optimizer)")


def test_what_is_no_field_stays() -> None:
    """A remedy of a user's detector may hold braces, and names that it means."""
    said = "Set {'lr': 1} {clips} in AdaptiveClip()"
    assert Moment(0, in_loop=True).event(EventKind.DIVERGED, value=1.0, threshold=1.0, remedy=said).remedy == said


@pytest.mark.parametrize(
    ("norms", "said"),
    [
        ([0.25] * 64 + [1e3], "Use clip_adaptively(optimizer), which brings"),
        ([1.0, 1.1] * 32 + [3e6], "Use clip_adaptively(optimizer), which brings"),
        ([1.0] * 5 + [401.0], "Use clip_adaptively(optimizer), which brings"),
    ],
)
def test_a_detector_says_what_its_moment_has_at_hand(norms: list[float], said: str) -> None:
    """The same jump, in a loop."""
    detector = NormJumpDetector()
    event = [detector(norm, Moment(step, in_loop=True)) for step, norm in enumerate(norms)][-1]
    assert event is not None
    assert said in event.remedy


ROOMS = ("audit", "clip", "detect", "engine", "events.py", "findings", "profile.py", "recurrent/capture", "runlog")
"""What has its say with a Trainer and without."""

OF_A_TRAINER = {"audit/words.py": "in the module's on_before_optimizer_step"}
"""Sentences that are said with a Trainer alone, by their file."""


def sentences(file: Path) -> Iterator[str]:
    """Its strings, without docstrings."""
    tree = ast.parse(file.read_text("utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def test_no_sentence_of_both_names_a_callback() -> None:
    """It names a field, or asks the tools."""
    files = [file for room in ROOMS for file in ([PACKAGE / room] if "." in room else (PACKAGE / room).rglob("*.py"))]
    named = {
        f"{file.relative_to(PACKAGE).as_posix()}: {said}"
        for file in files
        for said in sentences(file)
        if "AdaptiveClip" in said or "GradWatch(" in said or "clip_adaptively(" in said
    }
    known = {one for one in named for name, words in OF_A_TRAINER.items() if one.startswith(name) and words in one}
    assert named == known
    assert len(known) == len(OF_A_TRAINER)
