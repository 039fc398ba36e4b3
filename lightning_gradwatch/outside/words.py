"""What an event says where there is no Trainer: its remedies name what is at hand."""

from __future__ import annotations

import re
from dataclasses import replace

from lightning_gradwatch.events import Event

_WORDS = (
    (r"AdaptiveClip\(\)", "clip_adaptively(optimizer)"),
    (r"AdaptiveClip\(", "clip_adaptively(optimizer, "),
    (r"AdaptiveClip", "clip_adaptively"),
    (r"GradWatch\(", "watch(model, optimizer, "),
    (
        r"Make it in __init__ or configure_model, or train on in a fit of its own: each fit looks for the modules anew",
        "Make it before the watch begins, or enter a watch of its own: each looks for the modules anew",
    ),
)


def outside(event: Event) -> Event:
    """The event in words that hold outside of a Trainer."""
    message, remedy = in_words(event.message), in_words(event.remedy)
    same = message == event.message and remedy == event.remedy
    return event if same else replace(event, message=message, remedy=remedy, detail="")


def in_words(text: str) -> str:
    """A text in such words."""
    for pattern, words in _WORDS:
        text = re.sub(pattern, words, text)
    return text
