"""Output of the commands: results on standard output, messages on standard error.

Names of files and classes may contain control characters and markup, and are escaped.
"""

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
    """Escape characters that a terminal would not print.

    Examples:
        >>> visible("a\\x1b[31mb")
        'a\\\\x1b[31mb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def note(text: str) -> None:
    """Print a message."""
    err.print(Text(visible(text)), soft_wrap=True)


def warn(text: str) -> None:
    """Print a sentence about an image that was skipped."""
    say("skipped", "yellow", text)


def say(label: str, color: str, text: str) -> None:
    """Print a sentence after a colored label."""
    err.print(Text.assemble((label, color), f": {visible(text)}"), soft_wrap=True)


def result(text: Any) -> None:
    """Print a result on standard output, escaped if that is a terminal."""
    for line in str(text).split("\n"):
        print(visible(line) if sys.stdout.isatty() else line)


def cell(text: Any) -> Text:
    """Return text for a table cell, escaped and without markup."""
    return Text(visible(str(text)))


def show(table: Table) -> None:
    """Print a table on standard output."""
    Console().print(table)


def summary(done: Any, out: Path) -> None:
    """Print how many files a command wrote, kept and skipped."""
    text = f"{len(done.written)} written"
    text += f", {len(done.kept)} kept from an earlier run" if done.kept else ""
    text += f", {len(done.problems)} skipped" if done.problems else ""
    note(f"{text}: {out}")


def sentence(error: Exception) -> str:
    """Describe an error in one sentence; errors of other libraries include their type."""
    if isinstance(error, PrimapsError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if _is_out_of_memory(error):
        return "not enough memory; reduce --size or the number of --classes"
    return (
        f"{type(error).__name__}: {reason(error)} (unexpected; `primaps --debug ...` shows the "
        "traceback)"
    )


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out in Python, in NumPy, or in torch on any device."""
    names = ("MemoryError", "OutOfMemoryError", "_ArrayMemoryError")
    return type(error).__name__ in names or "DefaultCPUAllocator" in str(error)
