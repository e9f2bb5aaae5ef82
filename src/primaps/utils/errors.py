"""Errors of this package. The message is one sentence about what the user can correct."""

from __future__ import annotations


class PrimapsError(Exception):
    """Base class of the errors; the message says what is wrong, where, and what to do.

    The message is one line, even if names of files or fields contain line breaks.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


class InputError(PrimapsError, ValueError):
    """An argument or option is outside of its range, or contradicts another one."""


class NotFoundError(PrimapsError, FileNotFoundError):
    """A file or folder does not exist."""


class MissingPackageError(PrimapsError, ImportError):
    """An optional package is not installed; the message says how to install it."""


def reason(error: BaseException) -> str:
    """Return the message of an error of another library as part of a sentence.

    This is its first line, at most 200 characters long.

    Examples:
        >>> reason(ValueError("no such device.\\n  at line 7\\n  at line 8"))
        'no such device'
        >>> reason(MemoryError())
        'MemoryError'
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    text = next((line for line in lines if line), type(error).__name__).rstrip(".:;")
    return text if len(text) <= 200 else f"{text[:197]}..."
