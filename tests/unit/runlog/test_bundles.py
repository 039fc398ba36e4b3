"""A bundle's file: there in full or not at all, whole, of a bounded size, and read without running code."""

from __future__ import annotations

import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gradwatch.runlog.bundles import BUNDLE_KEY, BundleError, read_bundle, write_bundle
from lightning_gradwatch.runlog.portable import KIND
from tests.bundles import whole_bundle


def test_written_and_read(tmp_path):
    """Its folder is made, and nothing else stays in it."""
    path = tmp_path / "bundles" / "a.pt"
    write_bundle(path, whole_bundle(batch=torch.ones(2)))
    assert torch.equal(read_bundle(path)[BUNDLE_KEY]["batch"], torch.ones(2))
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


def refused(path: Path, words: str, **options: Any) -> None:
    """It is refused in one line that names the file."""
    with pytest.raises(BundleError, match=words) as caught:
        read_bundle(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "found nothing at"),
        (b"not a file of torch", "cannot be read as a bundle"),
        (b"", "cannot be read as a bundle"),
        ([1, 2], "is no bundle of GradWatch"),
        ({"state_dict": {}}, "is no bundle of GradWatch"),
        ({BUNDLE_KEY: Evil()}, "cannot be read as a bundle"),
        (whole_bundle(batch=[Evil()]), "cannot be read as a bundle"),
        (whole_bundle(bundle_version="2.0"), "pip install --upgrade lightning-gradwatch"),
    ],
)
def test_what_is_no_bundle_is_said_in_one_line(tmp_path, capsys, content, words):
    """With the path and a remedy, and without running anything."""
    path = tmp_path / "a.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    refused(path, words)
    assert capsys.readouterr().out == ""


WRONG: list[Any] = [
    None,
    -1,
    10**30,
    2.5,
    math.nan,
    "\x1b[31m",
    b"a",
    [],
    [[]],
    {},
    {1: 2},
    {"a": torch.Size([1])},
    torch.ones(2),
    torch.int8,
]


@pytest.mark.parametrize(("where", "free"), [("", {"pytorch-lightning_version", BUNDLE_KEY}), (BUNDLE_KEY, {"batch"})])
def test_every_key_is_looked_at(tmp_path, where, free):
    """Without it, or with something else in its place, the bundle is damaged; the error names the key."""
    whole = whole_bundle()
    for key in ({*(whole[where] if where else whole)}) - free:
        for wrong in (*WRONG, "left out"):
            content = whole_bundle()
            changed = content[where] if where else content
            if isinstance(wrong, str) and wrong == "left out":
                del changed[key]
            else:
                changed[key] = wrong
            torch.save(content, tmp_path / "a.pt")
            said = _said_of(tmp_path / "a.pt")
            if isinstance(wrong, bytes) and said is not None and "cannot be read" in said:
                continue  # PyTorch before 2.6 reads no bytes at all
            if said is None:
                assert _is_right(changed[key], whole[where][key] if where else whole[key]), (key, wrong)
            else:
                assert key in said, (key, wrong)


def _said_of(path: Path) -> str | None:
    """Why it is refused; None where it is not."""
    try:
        read_bundle(path)
    except BundleError as error:
        return str(error)
    return None


def _is_right(found: Any, whole: Any) -> bool:
    """Whether what is accepted may stand there: of the same type, or an empty container or None where that is allowed."""
    return type(found) is type(whole) or whole is None or (found == [] and isinstance(whole, (list, tuple)))


@pytest.mark.parametrize(
    "fields",
    [
        {KIND: "nonsense", "fields": {}},
        {KIND: "array", "fields": [1]},
        {KIND: "array"},
        {KIND: "packed", "fields": {"data": torch.ones(1)}},
        {KIND: "set", "fields": [[1]]},
        {KIND: "namedtuple", "type": 3, "fields": {"a": 1}},
        {KIND: "dataclass", "type": "a:b", "fields": {"__class__": 1}},
        {KIND: ["set"], "fields": []},
    ],
)
@pytest.mark.parametrize("place", ["batch", "attributes", "optimizer_states"])
def test_what_stands_for_nothing_is_refused(tmp_path, fields, place):
    """Before anything is put together from it."""
    content = whole_bundle(batch=[fields]) if place == "batch" else whole_bundle(attributes={"": {"state": fields}})
    if place == "optimizer_states":
        content = whole_bundle() | {place: [{"state": fields, "param_groups": []}]}
    torch.save(content, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "is damaged: .* stands for nothing that is known")


def test_the_modules_own_attributes_are_not_for_a_file_to_set(tmp_path):
    """Its hooks and parameters, and what Python keeps in it."""
    for name in ("_forward_hooks", "_parameters", "training", "__class__"):
        for place in ("attributes", "numbers"):
            torch.save(whole_bundle(**{place: {"": {name: 1}}}), tmp_path / "a.pt")
            refused(tmp_path / "a.pt", rf"is damaged: gradwatch\.{place}")


def packed(path: Path) -> None:
    """Pack the parts of a file, as torch never does."""
    with zipfile.ZipFile(path) as parts:
        held = {part.filename: parts.read(part) for part in parts.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as parts:
        for name, content in held.items():
            parts.writestr(name, content)


def repeated(times: int, depth: int) -> list[Any]:
    """A list of few objects that holds ``times ** depth``."""
    held: list[Any] = [0]
    for _ in range(depth):
        held = [held] * times
    return held


def cycle() -> list[Any]:
    """A list that holds itself."""
    held: list[Any] = []
    held.append(held)
    return held


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.zeros(1).expand(10**9), "unfolds to 3815; 64 are taken. If you trust it, give `--max-mib`"),
        ([torch.zeros(1).expand(10**6)] * 30, "unfolds to 114; 64 are taken"),
        (repeated(10, 12), "is nested too deeply"),
        (repeated(1, 300), "is nested too deeply"),
        (cycle(), "is nested too deeply"),
    ],
    ids=["one tensor", "many tensors", "many lists", "deep lists", "a cycle"],
)
def test_what_unfolds_is_bounded(tmp_path, batch, words):
    """A small file must not take the machine's memory, nor its time."""
    torch.save(whole_bundle(batch=batch), tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 2**16
    refused(tmp_path / "a.pt", words)


def test_a_packed_file_is_bounded(tmp_path):
    """By what its parts say before one of them is unpacked; the argument lifts the bound, or lowers it."""
    path = tmp_path / "a.pt"
    torch.save(whole_bundle(batch=torch.zeros(100 * 2**18)), path)
    assert read_bundle(path)  # 100 MiB in a file of 100 MiB
    refused(path, "unfolds to 100; 50 are taken", max_mib=50)
    packed(path)
    assert path.stat().st_size < 2**20
    refused(path, "takes 0.1 MiB and unfolds to 100; 64 are taken")
    assert read_bundle(path, max_mib=101)[BUNDLE_KEY]["batch"].numel() == 100 * 2**18


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.8, 0.95, 0.999])
def test_a_cut_file_is_said(tmp_path, share):
    """Wherever it was cut."""
    path = tmp_path / "a.pt"
    torch.save(whole_bundle(batch=torch.randn(1000)), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "cannot be read as a bundle")
