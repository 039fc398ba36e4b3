"""Modules that look like a scan by the name of their class: what they compute shows in no call."""

from __future__ import annotations

import re

from torch import nn

from lightning_gradwatch.recurrent.capture.modules import plain_name

_NAMES = re.compile(
    r"[Mm]in(GRU|LSTM)"
    r"|(Bi|Falcon|Jamba|Zamba2?)?Mamba\d?(Block|Layer|Mixer|Simple)?"
    r"|(S4|S4D|S5|S6|DSS|LRU|SSM|HGRN2?|RGLRU|mLSTM|RWKV\d?)(Block|Layer|Kernel|Cell|SSM|Attention)?"
    r"|RWKV_?T(ime_?M|[Mm])ix\w*|RwkvSelfAttention|RecurrentGemmaRglru"
)
"""Of published diagonal recurrences that are computed by a scan."""


def named_like_scans(model: nn.Module) -> dict[str, str]:
    """Qualified name → class of the innermost modules with such a name."""
    every = {plain_name(name): type(module).__name__ for name, module in model.named_modules()}
    alike = {name: kind for name, kind in every.items() if _NAMES.fullmatch(kind)}
    return {name: kind for name, kind in alike.items() if not any(other.startswith(f"{name}.") for other in alike)}
