"""The clip-audit campaign: is what GradWatch says of the clipping true?

    python -m benchmarks.campaigns.clip_audit [--runs N] [--seed N]

Each run is a real Trainer, or a loop without one (``loops.py``), whose gradients are clipped, or are not, in one of the ways of
``models.py``. What is true of it is known from how it was made and from the norms that the clipping
itself saw at every step; the verdict of each optimizer is held against that. *Undecided* is no wrong
verdict where a share is concerned and the sampled steps are few; it is counted apart.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.campaigns.clip_audit.campaign import campaign, table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    outcomes = campaign(args.runs, args.seed)
    print(table(outcomes))
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
