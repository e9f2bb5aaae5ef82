"""What commands say: plain sentences, whatever the texts of others in them hold."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from primaps.utils.errors import PrimapsError, reason

err = Console(stderr=True)


def visible(text: str) -> str:
    """Text of others, such as names of files and classes, as it may go to a terminal.

    Examples:
        >>> visible("a\\x1b[31mb")
        'a\\\\x1b[31mb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def note(text: str) -> None:
    """Say something that is not a problem."""
    err.print(Text(visible(text)), soft_wrap=True)


def warn(text: str) -> None:
    """Report an image that is left out."""
    say("left out", "yellow", text)


def say(what: str, color: str, text: str) -> None:
    """A sentence behind a colored word."""
    err.print(Text.assemble((what, color), f": {visible(text)}"), soft_wrap=True)


def result(text: Any) -> None:
    """Print a result: for a person escaped, for a program as it is."""
    for line in str(text).split("\n"):
        print(visible(line) if sys.stdout.isatty() else line)


def cell(text: Any) -> Text:
    """Text of others in a table."""
    return Text(visible(str(text)))


def show(table: Table) -> None:
    """Print a table."""
    Console().print(table)


def summary(done: Any, out: Path) -> None:
    """What a run over files did."""
    text = f"{len(done.written)} written"
    text += f", {len(done.kept)} kept from before" if done.kept else ""
    text += f", {len(done.problems)} left out" if done.problems else ""
    note(f"{text}: {out}")


def sentence(error: Exception) -> str:
    """An error in one sentence: of ours as it is, of others with its kind."""
    if isinstance(error, PrimapsError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if _of_memory(error):
        return "there is not enough memory: a smaller --size or fewer --classes take less"
    return (
        f"{type(error).__name__}: {reason(error)} (unexpected: `primaps --debug ...` shows where "
        "it comes from)"
    )


def _of_memory(error: Exception) -> bool:
    """Of Python, NumPy, and torch on any device."""
    names = ("MemoryError", "OutOfMemoryError", "_ArrayMemoryError")
    return type(error).__name__ in names or "DefaultCPUAllocator" in str(error)
