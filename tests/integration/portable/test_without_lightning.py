"""Outside of a Trainer nothing needs Lightning, and the name of the function is no module's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.processes import succeed


def test_a_loop_is_watched_where_lightning_is_not(tmp_path: Path) -> None:
    """Neither of its names can be imported; what was found is said on the terminal."""
    done = succeed("-m", "tests.integration.portable.without_lightning", tmp_path / "run")
    assert done.stdout.startswith("model")
    assert "GradWatch: how far the gradient reaches back through time\n  model" in done.stderr
    assert f"gradwatch events {tmp_path / 'run'}" in done.stderr


@pytest.mark.parametrize(
    "before",
    ["lightning_gradwatch.engine.watch", "lightning_gradwatch.cli.watch", "lightning_gradwatch.outside.loop_watch"],
)
def test_the_name_is_the_functions_whatever_was_imported_before(before: str) -> None:
    """No module of the package is called so at its top."""
    code = f"import {before}; import lightning_gradwatch as g; assert isinstance(g.watch, type), g.watch"
    succeed("-c", code)
    succeed("-c", f"import lightning_gradwatch as g; g.watch; import {before}; assert isinstance(g.watch, type)")
