"""Assertions that tests of several kinds share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def assert_identical(one: Any, other: Any, path: str = "") -> None:
    """Equal to the bit, whatever is nested."""
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), path
        assert torch.equal(one.isnan(), other.isnan()), path
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_identical(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_identical(a, b, f"{path}/{i}")
    else:
        assert one == other or (one != one and other != other), path
