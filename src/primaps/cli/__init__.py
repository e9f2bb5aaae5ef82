"""The command line. Heavy imports wait inside the commands, so that --help is quick."""

from primaps.cli import studio, images, fit, classes, exchange, scores, data, reproduce, projections  # noqa: F401, I001
from primaps.cli.app import app


def main() -> None:
    """Entry point of the ``primaps`` command."""
    app()
