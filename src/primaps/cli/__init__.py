"""The command line. Heavy imports wait inside the commands, so that --help is quick."""

from primaps.cli import (  # noqa: F401 (they add their commands)
    classes,
    data,
    experiments,
    images,
    projections,
    scores,
    training,
)
from primaps.cli.app import app


def main() -> None:
    """Entry point of the ``primaps`` command."""
    app()
