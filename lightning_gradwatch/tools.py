"""What a user has at hand, as sentences name it: the callbacks of a Trainer, or the functions that
do the same for a loop of one's own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tools:
    """By name.

    Args:
        clipper: what clips adaptively; ``optimizer``: what its call begins with.
        watcher: what measures; ``watched``: what its call begins with.
        bfloat16: what has a training compute in that format.
    """

    clipper: str
    optimizer: str
    watcher: str
    watched: str
    bfloat16: str

    def clip(self, arguments: str = "") -> str:
        """The call of what clips, with ``arguments`` as one writes them."""
        return _call(self.clipper, self.optimizer, arguments)

    def watch(self, arguments: str = "") -> str:
        """The call of what measures."""
        return _call(self.watcher, self.watched, arguments)

    def fill(self, remedy: str) -> str:
        """A remedy with its fields filled in: ``{clipper}``, its call ``{clip}``, ``{bfloat16}``.
        Other braces stay as they are.
        """
        fields = {"{clipper}": self.clipper, "{clip}": self.clip(), "{bfloat16}": self.bfloat16}
        for field, name in fields.items():
            remedy = remedy.replace(field, name)
        return remedy


def _call(name: str, first: str, arguments: str) -> str:
    return f"{name}({', '.join(filter(None, (first, arguments)))})"


_OF_TRAINER = Tools("AdaptiveClip", "", "GradWatch", "", "bf16-mixed")
_OF_LOOP = Tools("clip_adaptively", "optimizer", "watch", "model, optimizer", "torch.autocast(…, torch.bfloat16)")


def tools_at_hand(*, in_loop: bool) -> Tools:
    """Those of a Trainer, or of a loop."""
    return _OF_LOOP if in_loop else _OF_TRAINER
