"""The command line. Commands import torch when they run, which keeps ``--help`` fast."""
# ruff: noqa: F401, I001 (the order of the imports is that of the panels in --help)

import atexit
import gc
import sys

from primaps.cli import images, fit, teach, classes, exchange, measure, labeled, paper
from primaps.cli.app import app, run


def main() -> None:
    """Run the ``primaps`` command."""
    # Garbage collection during the imports of torch and transformers takes half a second, and
    # almost one at exit, without finding any garbage.
    gc.set_threshold(50_000, 10, 10)
    atexit.register(gc.freeze)
    sys.exit(run())
