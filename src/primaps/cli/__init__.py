"""The command line. Heavy imports wait inside the commands, so that --help is quick."""

from primaps.cli import data, images, projections, scores, training  # noqa: F401 (they add commands)
from primaps.cli.app import app


def main() -> None:
    """Entry point of the ``primaps`` command."""
    app()
