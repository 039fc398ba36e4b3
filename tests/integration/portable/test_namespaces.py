"""Both of Lightning's names, LightningCLI of each, and the entry points."""

from __future__ import annotations

import json
import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from lightning_gradwatch import GradWatch
from lightning_gradwatch.callbacks import factory
from lightning_gradwatch.callbacks.environment import GradWatchFromEnvironment
from tests.integration.processes import run, succeed
from tests.models import TinyLanguageModel, sentences, trainer

NAMESPACES = ("lightning.pytorch", "pytorch_lightning")
SCRIPT = ("-m", "tests.integration.portable.namespace")
CONFIG = """
trainer:
  callbacks:
    - class_path: lightning_gradwatch.GradWatch
      init_args:
        every_n_steps: 2
        modules: [rnn]
        max_sequences: null
    - class_path: lightning_gradwatch.AdaptiveClip
      init_args:
        on_nonfinite: stop
        policy:
          class_path: lightning_gradwatch.ZClip
          init_args:
            z_threshold: 3.0
            warmup_steps: 7
"""


def findings(output: str) -> dict[str, Any]:
    """The script's last line."""
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("namespace", NAMESPACES)
class TestNamespaces:
    """Each in a process of its own, where nothing else was imported before."""

    @pytest.mark.parametrize("how", ["both", "only"])
    def test_the_trainer_takes_the_callbacks(self, namespace: str, how: str, tmp_path: Path) -> None:
        """Both callbacks work, alone or with the other name installed beside it, which is then never imported."""
        found = findings(succeed(*SCRIPT, namespace, how, tmp_path).stdout)
        assert found["callbacks"] == ["GradWatch", "AdaptiveClip"]
        assert found["right base"]
        assert found["measured"] == [True]
        assert found["run_dir"] == [str(tmp_path / "gradwatch")] * 2
        assert not found["other imported"]

    def test_lightning_cli_builds_nested_policies(self, namespace: str, tmp_path: Path) -> None:
        """From YAML the callbacks come with their arguments, and the policy inside with its own."""
        pytest.importorskip("jsonargparse")
        config = tmp_path / "config.yaml"
        config.write_text(CONFIG)
        done = succeed(*SCRIPT, namespace, "only", tmp_path / "out", "fit", "--config", config)
        found = findings(done.stdout)
        assert found["callbacks"] == ["GradWatch", "AdaptiveClip"]
        assert found["every_n_steps"] == [2]
        (policy,) = found["policies"]
        assert "ZClip(" in policy
        assert "z_threshold=3.0" in policy
        assert "warmup_steps=7" in policy

    def test_lightning_cli_takes_a_policy_by_name(self, namespace: str, tmp_path: Path) -> None:
        """On the command line a policy can be given by its short name."""
        pytest.importorskip("jsonargparse")
        arguments = ("--trainer.callbacks=lightning_gradwatch.AdaptiveClip", "--trainer.callbacks.policy=autoclip")
        found = findings(succeed(*SCRIPT, namespace, "only", tmp_path, "fit", *arguments).stdout)
        assert "AutoClip(" in found["policies"][0]

    def test_lightning_cli_says_what_is_wrong(self, namespace: str, tmp_path: Path) -> None:
        """An argument that a policy does not have is an error of the command line that names it."""
        pytest.importorskip("jsonargparse")
        config = tmp_path / "config.yaml"
        config.write_text(CONFIG.replace("z_threshold", "threshold"))
        done = run(*SCRIPT, namespace, "only", tmp_path / "out", "fit", "--config", config)
        assert done.returncode == 2
        assert "'threshold' is not accepted" in done.stderr
        assert "Traceback" not in done.stderr

    def test_the_environment_adds_gradwatch(self, namespace: str, tmp_path: Path) -> None:
        """GRADWATCH=1 adds GradWatch with the arguments of its variables to a script that knows nothing of it."""
        options = {"GRADWATCH": "1", "GRADWATCH_EVERY_N_STEPS": "3", "GRADWATCH_DIRPATH": str(tmp_path / "mine")}
        found = findings(succeed(*SCRIPT, namespace, "only-bare", tmp_path, **options).stdout)
        assert found["callbacks"] == ["GradWatchFromEnvironment"]
        assert found["right base"]
        assert (found["every_n_steps"], found["measured"]) == ([3], [True])
        assert found["run_dir"] == [str(tmp_path / "mine")]
        assert (tmp_path / "mine" / "profiles.jsonl").exists()

    def test_without_the_variable_nothing_is_added(self, namespace: str, tmp_path: Path) -> None:
        """Unset, the script has none of our callbacks, and no folder is made."""
        assert findings(succeed(*SCRIPT, namespace, "both-bare", tmp_path).stdout)["callbacks"] == []
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("group", [f"{name}.callbacks_factory" for name in NAMESPACES])
def test_the_entry_point_is_registered(group: str) -> None:
    """The installed package names the factory in the group of each of Lightning's names."""
    (ours,) = [point for point in entry_points(group=group) if point.name == "gradwatch"]
    assert ours.load() is factory.callbacks


def test_unset_it_imports_nothing() -> None:
    """Without the variable, importing and calling the factory imports neither torch nor Lightning."""
    code = (
        "import sys; from lightning_gradwatch.callbacks.factory import callbacks; print(callbacks());"
        "print([name for name in ('torch', 'lightning', 'pytorch_lightning', 'numpy') if name in sys.modules])"
    )
    assert succeed("-c", code).stdout.splitlines() == ["[]", "[]"]


class TestEnvironment:
    """What the variables mean."""

    @pytest.fixture(autouse=True)
    def _clean(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in list(os.environ):
            if variable.startswith("GRADWATCH"):
                monkeypatch.delenv(variable)

    @pytest.mark.parametrize("value", ["", "0"])
    def test_off(self, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Empty or 0 is off, whatever the other variables hold."""
        monkeypatch.setenv("GRADWATCH", value)
        monkeypatch.setenv("GRADWATCH_ANCHORS", "nonsense")
        assert factory.callbacks() == []

    def test_every_variable_reaches_its_argument(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Each variable sets the argument of its name; those not set keep GradWatch's own default."""
        given = {
            "MODULES": "encoder.*, decoder",
            "EVERY_N_STEPS": "7",
            "MAX_SEQUENCES": "all",
            "ANCHORS": "2",
            "KEEP_SEQUENCES": "1",
            "DIRPATH": str(tmp_path),
            "SUMMARY": "0",
            "ON_ANOMALY": "rollback",
            "BUNDLES": "3",
        }
        monkeypatch.setenv("GRADWATCH", "1")
        (default,) = factory.callbacks()
        for name, value in given.items():
            monkeypatch.setenv(f"GRADWATCH_{name}", value)
        (watch,) = factory.callbacks()
        own, names = GradWatch(), [name.lower() for name in given]
        assert {n: getattr(default, n) for n in names} == {n: getattr(own, n) for n in names}
        assert {n: getattr(watch, n) for n in names} == {
            "modules": ["encoder.*", "decoder"],
            "every_n_steps": 7,
            "max_sequences": None,
            "anchors": 2,
            "keep_sequences": True,
            "dirpath": str(tmp_path),
            "summary": False,
            "on_anomaly": "rollback",
            "bundles": 3,
        }
        assert {f"``GRADWATCH_{name}``" in (factory.__doc__ or "") for name in given} == {True}

    @pytest.mark.parametrize(
        ("variable", "value", "match"),
        [
            ("GRADWATCH", "yes", "`GRADWATCH` must be 1 or 0; found 'yes'"),
            ("GRADWATCH_EVERY_N_STEPS", "0", "`GRADWATCH_EVERY_N_STEPS` must be a whole number ≥ 1; found '0'"),
            ("GRADWATCH_ANCHORS", "two", "`GRADWATCH_ANCHORS` must be a whole number ≥ 1; found 'two'"),
            ("GRADWATCH_MAX_SEQUENCES", "-1", "`GRADWATCH_MAX_SEQUENCES` must be a whole number ≥ 1, or `all`"),
            (
                "GRADWATCH_ON_ANOMALY",
                "explode",
                "`GRADWATCH_ON_ANOMALY` must be one of warn, skip, stop, raise, rollback; found",
            ),
            ("GRADWATCH_BUNDLES", "some", "`GRADWATCH_BUNDLES` must be a whole number ≥ 1; found 'some'"),
            ("GRADWATCH_SUMMARY", "no", "`GRADWATCH_SUMMARY` must be 1 or 0; found 'no'"),
            (
                "GRADWATCH_EVERY",
                "5",
                "`GRADWATCH_EVERY` is no variable of GradWatch. Did you mean GRADWATCH_EVERY_N_STEPS",
            ),
        ],
    )
    def test_a_wrong_value(self, variable: str, value: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """One error that names the variable, the rule and the value."""
        monkeypatch.setenv("GRADWATCH", "1")
        monkeypatch.setenv(variable, value)
        with pytest.raises(ValueError, match=match):
            factory.callbacks()

    def test_a_script_with_its_own_keeps_it(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Where the script has a GradWatch, the added one does nothing, and the Trainer takes both."""
        monkeypatch.setenv("GRADWATCH", "1")
        own = GradWatch(dirpath=tmp_path / "own")
        fit = trainer(tmp_path, [own], max_steps=2)
        fit.fit(TinyLanguageModel(), sentences())
        (added,) = [callback for callback in fit.callbacks if isinstance(callback, GradWatchFromEnvironment)]
        assert (bool(own.lagged), bool(added.lagged)) == (True, False)
        assert added.run_dir is None
        assert not (tmp_path / "gradwatch").exists()
