"""The command that the others hang on, and how every one of them reports and fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

err = Console(stderr=True)
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find and segment the classes of an image collection **without a single label**.",
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from primaps import __version__

        print(__version__)
        raise typer.Exit


@contextmanager
def progress() -> Iterator[Any]:
    """Progress on the terminal; what users can mend becomes one sentence and exit status 1."""
    from primaps.progress import Progress

    logger = logging.getLogger("primaps")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(
            RichHandler(console=err, show_time=False, show_path=False, show_level=False)
        )
    try:
        with Progress(err) as report:
            yield report
    except KeyboardInterrupt:
        err.print("stopped: the same command goes on where it stopped")
        raise typer.Exit(130) from None
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if isinstance(error, RuntimeError) and not type(error).__module__.startswith("primaps"):
            raise  # a defect, so the traceback is wanted
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        err.print(f"[red]error[/red]: {where}{reason}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def warn(sentence: str) -> None:
    """Report an image that is left out."""
    err.print(f"[yellow]left out[/yellow]: {escape(sentence)}", highlight=False, soft_wrap=True)


def note(sentence: str) -> None:
    """Say something that is not a problem."""
    err.print(sentence, highlight=False, soft_wrap=True, markup=False)


def summary(done: Any, out: Path) -> None:
    """What a run over files did."""
    text = f"{len(done.written)} written"
    text += f", {len(done.kept)} kept from before" if done.kept else ""
    text += f", {len(done.problems)} left out" if done.problems else ""
    note(f"{text}: {out}")
