"""A training that is killed leaves a run log that can be read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from lightning_gradwatch import load_run


def test_a_killed_run_leaves_a_log_that_loads(tmp_path) -> None:
    """After kill -9 in the middle of training the run log is readable."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[3])!r})
        from pathlib import Path
        from lightning_gradwatch import GradWatch
        from tests.models import TinyLanguageModel, sentences, trainer
        run = trainer(Path({str(tmp_path)!r}), [GradWatch(every_n_steps=1, dirpath={str(tmp_path / "run")!r})], max_steps=-1)
        run.fit(TinyLanguageModel(), sentences())
        """)
    )
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen([sys.executable, str(script)], stdout=output, stderr=output)
    profiles = tmp_path / "run" / "profiles.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (profiles.exists() and profiles.stat().st_size > 20_000):
        assert process.poll() is None, (tmp_path / "output").read_text()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run = load_run(tmp_path / "run")
    assert len(run.profile_records) >= 10
    assert run.skipped_lines <= 1
    assert run.meta["modules"]["rnn"]["kind"] == "LSTM"
