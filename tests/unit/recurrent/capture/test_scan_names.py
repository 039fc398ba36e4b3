"""Modules that look like a scan by the name of their class."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_gradwatch.recurrent.capture.scan_names import named_like_scans

SCANS = [
    *("minGRU", "MinGRU", "minLSTM", "Mamba", "Mamba2", "MambaBlock", "MambaMixer", "Mamba2Mixer", "JambaMambaMixer"),
    *("FalconMambaMixer", "S4Block", "S4D", "S4DKernel", "S5", "S5SSM", "LRU", "LRULayer", "HGRN2Attention", "RGLRU"),
    *("RWKV_TimeMix", "RWKV_Tmix_x070", "RWKV6Attention", "RwkvSelfAttention", "mLSTMCell", "mLSTMBlock", "BiMamba"),
]
OTHERS = [
    *(
        "LSTM",
        "GRU",
        "Linear",
        "LRUCache",
        "MambaLM",
        "MambaModel",
        "MambaForCausalLM",
        "S4Model",
        "SSMNet",
        "sLSTMCell",
    ),
    *("RWKV_ChannelMix", "MinGRUHead", "Mambazole", "Block", "SMAPE", "DSSIM", "RWKVTokenizer"),
]


def made(kind: str) -> nn.Module:
    return type(kind, (nn.Module,), {})()


@pytest.mark.parametrize("kind", SCANS)
def test_the_names_of_published_scans_are_known(kind: str) -> None:
    """As their own repositories write them."""
    assert named_like_scans(nn.Sequential(made(kind))) == {"0": kind}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_names_are_left_alone(kind: str) -> None:
    """What only begins so, or holds such modules."""
    assert named_like_scans(nn.Sequential(made(kind))) == {}


def test_the_innermost_is_named() -> None:
    """A block that holds its kernel is not named beside it."""
    outer = made("Mamba")
    outer.kernel = made("SSM")
    assert named_like_scans(nn.ModuleDict({"a": outer, "b": made("LRU")})) == {"a.kernel": "SSM", "b": "LRU"}
