"""The command that the others hang on, and how every one of them reports and fails."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from primaps.support.errors import PrimapsError

err = Console(stderr=True)
ORDER = (
    "demo", "studio", "propose", "fit", "predict", "classes", "name", "report", "audit", "export",
    "import", "push", "evaluate", "oracle", "probe", "data", "project", "projection", "reproduce",
)  # fmt: skip
"""Of the commands in `primaps --help`: that in which a person needs them."""


class _InOrder(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(
    cls=_InOrder,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find and segment the classes of an image collection **without a single label**.",
)

# Panels of `primaps --help`.
IMAGES = "Your images"
CLASSES = "Classes"
EXCHANGE = "Out and in"
SCORES = "With labels"
DATA = "Labelled data sets"
PAPER = "The paper, and features of other methods"

debugging = False
"""Whether errors that are none of ours show where they come from."""


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an unexpected error comes from.")
    ] = False,
) -> None:
    global debugging
    debugging = debug
    if version:
        from primaps.version import VERSION

        print(VERSION)
        raise typer.Exit


@contextmanager
def running(bars: bool = True) -> Iterator[Any]:
    """Progress on the terminal; every error becomes one sentence and exit status 1.

    Without ``bars`` the terminal is left alone, so that a person can be asked on it.

    What is wrong with the input is said as it is. Anything else is a defect of ours or of the
    machine: its kind is named, and ``--debug`` shows where it comes from.
    """
    from primaps.support.progress import ProgressDisplay, silent

    logger = logging.getLogger("primaps")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(_Sentences())
    try:
        with ProgressDisplay(err) if bars else nullcontext(silent) as progress:
            yield progress
    except KeyboardInterrupt:
        note("stopped: the same command goes on where it stopped")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does; nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:
        if debugging:
            traceback.print_exc()
        _say("[red]error[/red]", _sentence(error))
        raise typer.Exit(1) from None


def _sentence(error: Exception) -> str:
    if isinstance(error, PrimapsError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    lines = str(error).splitlines() or ["no message"]
    return (
        f"{type(error).__name__}: {lines[0]} (unexpected: `primaps --debug ...` shows where it "
        "comes from)"
    )


class _Sentences(logging.Handler):
    """What the package has to say, as plain lines."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def warn(sentence: str) -> None:
    """Report an image that is left out."""
    _say("[yellow]left out[/yellow]", sentence)


def note(sentence: str) -> None:
    """Say something that is not a problem."""
    err.print(escape(visible(sentence)), highlight=False, soft_wrap=True)


def visible(text: str) -> str:
    """Text of others, such as names of files and classes, as it may go to a terminal.

    Examples:
        >>> visible("a\\x1b[31mb")
        'a\\\\x1b[31mb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _say(what: str, sentence: str) -> None:
    err.print(f"{what}: {escape(visible(sentence))}", highlight=False, soft_wrap=True)


def summary(done: Any, out: Path) -> None:
    """What a run over files did."""
    text = f"{len(done.written)} written"
    text += f", {len(done.kept)} kept from before" if done.kept else ""
    text += f", {len(done.problems)} left out" if done.problems else ""
    note(f"{text}: {out}")
