"""The errors of this package, all of one kind: what users can mend, in one sentence."""

from __future__ import annotations


class PrimapsError(Exception):
    """What was given cannot be used; the message is one sentence: what, where and what to do."""


class InputError(PrimapsError, ValueError):
    """An argument or option is outside its range, or arguments do not go together."""


class NotFoundError(PrimapsError, FileNotFoundError):
    """A file or folder that was named is not there."""


class MissingPackageError(PrimapsError, ImportError):
    """An optional part needs a package that is not installed; the message says how to get it."""
