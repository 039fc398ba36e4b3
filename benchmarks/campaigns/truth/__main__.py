"""The command line of the truth campaign."""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.campaigns.truth import __doc__ as about
from benchmarks.campaigns.truth.campaign import campaign, draw, quietly, show, table


def main() -> int:
    """Print the table; exit code 1 if any sentence is false, unread or missing."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=380)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="", help="only kinds whose name holds these words")
    parser.add_argument("-j", "--jobs", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print each fault, and everything that was said of its run")
    options = parser.parse_args()
    quietly()
    begin = time.monotonic()
    numbers = [n for n in range(options.runs) if options.kind in draw(n, options.seed).kind]
    outcomes = campaign(numbers, options.seed, options.jobs)
    for number, outcome in zip(numbers, outcomes, strict=True):
        if options.list and outcome.faults:
            show(number, outcome)
    print(table(outcomes))
    print(f"{time.monotonic() - begin:.0f} s.")
    return 1 if any(outcome.faults for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
