"""The command line. Heavy imports wait inside the commands, so that --help is quick."""
# ruff: noqa: F401, I001 (the order of the imports is that of the panels in --help)

import sys

from primaps.cli import studio, images, fit, classes, exchange, scores, data, reproduce, projections
from primaps.cli.app import app, run


def main() -> None:
    """Entry point of the ``primaps`` command."""
    sys.exit(run())
