"""``python -m lightning_gradwatch`` is the command ``gradwatch``."""

import sys

from lightning_gradwatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
