"""A bundle's file: there in full or not at all, and read without running code."""

from __future__ import annotations

import pickle

import pytest
import torch

from lightning_gradwatch.runlog.bundles import BUNDLE_KEY, BundleError, read_bundle, write_bundle


def test_written_and_read(tmp_path):
    """Its folder is made, and nothing else stays in it."""
    path = tmp_path / "bundles" / "a.pt"
    write_bundle(path, {BUNDLE_KEY: {"bundle_version": "1.0"}, "x": torch.ones(2)})
    assert torch.equal(read_bundle(path)["x"], torch.ones(2))
    assert [one.name for one in path.parent.iterdir()] == ["a.pt"]


def test_a_write_that_fails_leaves_nothing(tmp_path):
    """Not even a part."""
    path = tmp_path / "a.pt"
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        write_bundle(path, {"x": lambda: None})
    assert list(tmp_path.iterdir()) == []


class Evil:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "found nothing at"),
        (b"not a file of torch", "cannot be read as a bundle"),
        (b"", "cannot be read as a bundle"),
        ([1, 2], "is no bundle of GradWatch"),
        ({"state_dict": {}}, "is no bundle of GradWatch"),
        ({BUNDLE_KEY: Evil()}, "cannot be read as a bundle"),
        ({BUNDLE_KEY: {"bundle_version": "2.0"}}, "Upgrade lightning-gradwatch"),
    ],
)
def test_what_is_no_bundle_is_said_in_one_line(tmp_path, capsys, content, words):
    """With the path and a remedy, and without running anything."""
    path = tmp_path / "a.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(BundleError, match=words) as caught:
        read_bundle(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert capsys.readouterr().out == ""
