"""Write `reference/configurations.md` from the results of the tests, which train every configuration and see what is observed.

python docs/make_table.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE / "reference" / "configurations.md"
TESTS = {
    "Ways of calling a recurrent network": "tests/integration/exact/test_real_calls.py",
    "Ways of training": "tests/integration/neutral/test_invariance.py",
}
HEAD = """# What is observed

Each line is a test that trains with and without `GradWatch` and finds weights, optimizer state and
random streams the same to the bit. The second column is what the test found in the run log. This
page is written from the tests' results by `docs/make_table.py`.
"""


def results(path: str) -> list[tuple[str, str]]:
    """Configuration → observation, of the tests of a file that passed.

    Raises:
        SystemExit: a test failed, so that there is no honest table.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:randomly", "-o", "junit_family=xunit1", f"--junitxml={report}"]
        done = subprocess.run([sys.executable, "-m", "pytest", path, *options], cwd=HERE.parent, check=False)
        if done.returncode:
            raise SystemExit(f"{path} failed; no table was written")
        rows: list[tuple[str, str]] = []
        for case in ElementTree.parse(report).iter("testcase"):
            name = re.search(r"\[(.+)\]$", case.get("name", ""))
            found = [p.get("value", "") for p in case.iter("property") if p.get("name") == "observation"]
            if name and found:
                rows.append((name[1], found[0]))
        return rows


def main() -> None:
    lines = [HEAD]
    for title, path in TESTS.items():
        lines += [f"## {title}", "", "| configuration | observed |", "|---|---|"]
        lines += [f"| {name} | {observation} |" for name, observation in results(path)]
        lines.append("")
    PAGE.write_text("\n".join(lines))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
