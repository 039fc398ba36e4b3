"""What earlier versions left on the disk is read by this one, and what a newer one left is answered in a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gradwatch import AdaptiveClip, GradWatch, __version__, load_run
from lightning_gradwatch.cli import main
from lightning_gradwatch.runlog.bundles import BUNDLE_KEY, BundleError, read_bundle
from lightning_gradwatch.runlog.reader import RunLogError
from lightning_gradwatch.runlog.schema import RUN_FILE
from tests.formats import write
from tests.versions import AS_DATA

VERSIONS = sorted(path.parent for path in write.HERE.glob("*/expected.json"))
EACH = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)


def expected(version: Path) -> dict[str, Any]:
    return json.loads((version / "expected.json").read_text("utf-8"))


def bundle_of(version: Path) -> Path:
    (found,) = (version / "gradwatch" / "bundles").glob("*.pt")
    return found


def with_version(checkpoint: Path, version: object, *, of: str, to: Path) -> Path:
    """A copy in which the state of one of the callbacks has another format version; None is without any."""
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    (key,) = [key for key in content["callbacks"] if key.startswith(of)]
    content["callbacks"][key]["format_version"] = version
    if version is None:
        del content["callbacks"][key]["format_version"]
    torch.save(content, to)
    return to


def test_this_version_has_left_its_files() -> None:
    """The readers to come are held against them: ``python -m tests.formats.write`` writes them."""
    assert __version__ in [version.name for version in VERSIONS]


class TestAnEarlierVersion:
    """Its files, as they were written."""

    @EACH
    def test_its_run_log_is_read(self, version) -> None:
        """Every record, to the last number."""
        found = write.found_in(version / "gradwatch")
        assert found == {name: value for name, value in expected(version).items() if name in found}

    @EACH
    @pytest.mark.parametrize("command", ["events", "check", "report", "watch"])
    def test_the_commands_read_it(self, version, command, tmp_path, capsys) -> None:
        """Without a word of complaint."""
        output = ["-o", str(tmp_path / "page.html")] if command == "report" else []
        assert main([command, str(version / "gradwatch"), *output]) == (1 if command == "check" else 0)
        assert capsys.readouterr().err == ""

    @EACH
    def test_its_bundle_repeats_the_step(self, version, capsys) -> None:
        """With the same event."""
        assert main(["replay", str(bundle_of(version)), "--module", "tests.formats.write:Labels"]) == 0
        assert "Replayed: the same event." in capsys.readouterr().out

    @EACH
    def test_its_checkpoint_is_gone_on_from(self, version, tmp_path) -> None:
        """The policies decide as if there had been no interruption, and the run log is continued."""
        shutil.copytree(version / "gradwatch", tmp_path / "gradwatch")
        _, (watch, clip) = write.fit(tmp_path, 2, version / "last.ckpt", **AS_DATA)
        assert watch.run_dir == clip.run_dir == tmp_path / "gradwatch"
        run = load_run(tmp_path)
        assert run.meta["run_id"] == expected(version)["run_id"]
        assert [record["step"] for record in run.step_records] == list(range(2 * write.BATCHES))
        later = run.step_records[write.BATCHES :]
        steps, thresholds = zip(*expected(version)["next thresholds"], strict=True)
        assert [record["step"] for record in later] == list(steps)
        now = [record["clip_threshold"] for record in later]
        assert [threshold is None for threshold in now] == [threshold is None for threshold in thresholds]
        # The rule is no longer that of 0.1.0, but it goes on from its norms: no bound follows from the parameters alone.
        assert all(0.1 * old <= new <= 10 * old for new, old in zip(now, thresholds, strict=True) if old)

    @EACH
    def test_nothing_that_it_wrote_is_missing_now(self, version, tmp_path) -> None:
        """The same training leaves the same fields; more of them are a new minor, fewer a new major."""
        write.write(tmp_path / "now")
        for file in sorted(version.rglob("*.json*")):
            here = tmp_path / "now" / file.relative_to(version)
            before, now = (keys(path.read_text("utf-8").splitlines()) for path in (file, here))
            assert before <= now, f"{file.name}: a new major? If {version.name} was not released: write.py once more"
        states = [torch.load(at / "last.ckpt", weights_only=True)["callbacks"] for at in (version, tmp_path / "now")]
        assert names_in(states[0]) <= names_in(states[1])


def keys(lines: list[str]) -> set[str]:
    """Those of all the records of a file of JSON Lines, or of one JSON object."""
    try:
        return set().union(*(json.loads(line) for line in lines))
    except ValueError:
        return set(json.loads("\n".join(lines)))


def names_in(state: Any, at: str = "") -> set[str]:
    """The paths of all values in a nest of dicts."""
    if not isinstance(state, dict):
        return {at}
    return {name for key, value in state.items() for name in names_in(value, f"{at}/{key}")}


class TestANewerVersion:
    """Files of which this version cannot know what they mean."""

    @pytest.fixture
    def mine(self, tmp_path) -> Path:
        """This version's files, to be changed."""
        return Path(shutil.copytree(write.HERE / __version__, tmp_path / "mine"))

    @pytest.mark.parametrize("version", ["2.0", "3", "99.7.1"])
    def test_a_run_log(self, mine, version, capsys) -> None:
        """It is one line with the remedy, of every command."""
        run_file = mine / "gradwatch" / RUN_FILE
        run_file.write_text(run_file.read_text("utf-8").replace('"1.0"', f'"{version}"'), "utf-8")
        with pytest.raises(RunLogError, match=r"must be 1.x or older; found .* pip install --upgrade lightning-gradw"):
            load_run(mine)
        assert main(["events", str(mine)]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize("version", ["2.0", "3", "99.7.1"])
    def test_a_bundle(self, mine, version, tmp_path) -> None:
        """The same."""
        content = torch.load(bundle_of(mine), weights_only=True)
        content[BUNDLE_KEY]["bundle_version"] = version
        torch.save(content, tmp_path / "newer.pt")
        with pytest.raises(BundleError, match=r"reads 1.0. .* pip install --upgrade lightning-gradwatch"):
            read_bundle(tmp_path / "newer.pt")

    @pytest.mark.parametrize("version", ["2.0", "10.3"])
    def test_the_histories_of_clipping(self, mine, version, tmp_path) -> None:
        """A run is not resumed without them: it would be clipped otherwise."""
        newer = with_version(mine / "last.ckpt", version, of="AdaptiveClip", to=tmp_path / "newer.ckpt")
        with pytest.raises(
            ValueError, match=rf"AdaptiveClip's state .* must be 1.x or older; found '{version}'. A newer"
        ):
            write.fit(tmp_path, 2, newer, **AS_DATA)

    @pytest.mark.parametrize("version", ["2.0", "10.3"])
    def test_the_identity_of_a_run_log(self, mine, version, tmp_path) -> None:
        """Training goes on, with a warning, and the other log is left as it is."""
        newer = with_version(mine / "last.ckpt", version, of="GradWatch", to=tmp_path / "newer.ckpt")
        content = torch.load(newer, weights_only=True)
        content["callbacks"] = {key: state for key, state in content["callbacks"].items() if key.startswith("GradW")}
        torch.save(content, newer)
        before = (mine / "gradwatch" / "profiles.jsonl").read_bytes()
        with pytest.warns(UserWarning, match=r"GradWatch's state .* pip install --upgrade .* A new run log is begun"):
            _, (watch, _) = write.fit(mine, 2, newer, **AS_DATA)
        assert watch.run_dir == mine / "gradwatch-1"
        assert (mine / "gradwatch" / "profiles.jsonl").read_bytes() == before

    def test_a_run_log_is_not_gone_on_with(self, mine) -> None:
        """Lines of two formats in one file would be misread."""
        run_file = mine / "gradwatch" / RUN_FILE
        run_file.write_text(run_file.read_text("utf-8").replace('"1.0"', '"2.0"'), "utf-8")
        before = (mine / "gradwatch" / "profiles.jsonl").read_bytes()
        _, (watch, clip) = write.fit(mine, 2, mine / "last.ckpt", **AS_DATA)
        assert watch.run_dir == clip.run_dir == mine / "gradwatch-1"
        assert (mine / "gradwatch" / "profiles.jsonl").read_bytes() == before

    @pytest.mark.parametrize("version", [7, [], "one"])
    def test_a_version_that_is_none(self, mine, version, tmp_path) -> None:
        """The checkpoint is called damaged."""
        damaged = with_version(mine / "last.ckpt", version, of="AdaptiveClip", to=tmp_path / "damaged.ckpt")
        with pytest.raises(ValueError, match="The checkpoint is damaged"):
            write.fit(tmp_path, 2, damaged, **AS_DATA)

    @pytest.mark.parametrize("of", ["AdaptiveClip", "GradWatch"])
    def test_no_version_is_the_first(self, mine, of, tmp_path) -> None:
        """As it was written before there were any."""
        older = with_version(mine / "last.ckpt", None, of=of, to=tmp_path / "older.ckpt")
        _, (watch, clip) = write.fit(mine, 2, older, **AS_DATA)
        assert isinstance(watch, GradWatch)
        assert isinstance(clip, AdaptiveClip)
        assert watch.run_dir == clip.run_dir == mine / "gradwatch"
