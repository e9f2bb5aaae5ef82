"""The command line. Heavy imports wait inside the commands, so that --help is quick."""
# ruff: noqa: F401, I001 (the order of the imports is that of the panels in --help)

import atexit
import gc
import sys

from primaps.cli import studio, images, fit, classes, exchange, scores, data, reproduce, projections
from primaps.cli.app import app, run


def main() -> None:
    """Entry point of the ``primaps`` command."""
    # Modules are no garbage: to look for some among those of torch and transformers takes half a
    # second while they are imported, and most of one at the end.
    gc.set_threshold(50_000, 10, 10)
    atexit.register(gc.freeze)
    sys.exit(run())
