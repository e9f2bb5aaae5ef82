"""The errors of this package, all of one kind: what users can mend, in one sentence."""

from __future__ import annotations


class PrimapsError(Exception):
    """What was given cannot be used; the message is one sentence: what, where and what to do.

    It is one line, whatever names of files and fields are in it.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


def reason(error: BaseException) -> str:
    """What an error of another library says, as part of a sentence: its first line, not too long.

    Examples:
        >>> reason(ValueError("no such device.\\n  at line 7\\n  at line 8"))
        'no such device'
        >>> reason(MemoryError())
        'MemoryError'
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    text = next((line for line in lines if line), type(error).__name__).rstrip(".:;")
    return text if len(text) <= 200 else f"{text[:197]}..."


class InputError(PrimapsError, ValueError):
    """An argument or option is outside its range, or arguments do not go together."""


class NotFoundError(PrimapsError, FileNotFoundError):
    """A file or folder that was named is not there."""


class MissingPackageError(PrimapsError, ImportError):
    """An optional part needs a package that is not installed; the message says how to get it."""
