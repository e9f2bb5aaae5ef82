"""The Typer application: registration of commands, error reporting and exit status."""

from __future__ import annotations

import _thread
import copy
import errno
import functools
import inspect
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from typer.core import TyperGroup
from typer.models import ParameterInfo

from primaps.cli.console import err, note, result, say, sentence
from primaps.utils.files import user_path
from primaps.utils.validation import range_text, validate_options

ORDER = (
    "demo", "studio", "propose", "fit", "predict", "ask", "teach", "find", "classes", "name",
    "report", "audit", "measure", "export", "import", "push", "evaluate", "oracle", "probe", "data",
    "project", "projection", "reproduce",
)  # fmt: skip
"""Order of the commands in ``primaps --help``: that of a typical workflow."""


class _Primaps(TyperGroup):
    """A group that lists its commands in :data:`ORDER` and reports errors as one sentence."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        with reporting():
            found = super().invoke(ctx)
            sys.stdout.flush()  # detects a full disk before the exit status is decided
        return found


app = typer.Typer(
    cls=_Primaps,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find and segment the classes of an image collection **without a single label**.",
)

# Panels of `primaps --help`.
IMAGES = "Images without labels"
TEACH = "Teach"
CLASSES = "Classes"
EXCHANGE = "Exchange with other tools"
SCORES = "Evaluation with labels"
DATA = "Labeled data sets"
PAPER = "Experiments of the paper"

_USAGE: Any = (
    typer.Exit,
    typer.Abort,
    next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"),
)
"""Exceptions that typer itself handles."""

_OUTPUT_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)
"""Errors of standard output: an OSError of a file has a file name."""

debugging = False
"""Whether unexpected errors are shown with a traceback."""


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of unexpected errors.")
    ] = False,
) -> None:
    global debugging
    debugging = debug
    if version:
        from primaps.version import VERSION

        result(VERSION)
        raise typer.Exit


def command(group: typer.Typer, *args: Any, **kwargs: Any) -> Callable[[Callable[..., None]], Any]:
    """Register a command as ``group.command`` does, with options declared by their types.

    A parameter is annotated with its type and its help text: ``Annotated[int, Ge(1), "Text."]``.
    Positional arguments and options with other flags have a ``typer.Argument`` or ``typer.Option``.
    ``--help`` shows the range of the type. Values are validated before any work starts. ``~`` in a
    path is replaced by the home folder.
    """

    def decorate(function: Callable[..., None]) -> Any:
        signature = inspect.signature(function, eval_str=True)
        types = {name: one.annotation for name, one in signature.parameters.items()}

        @functools.wraps(function)
        def wrapper(**given: Any) -> None:
            values = {name: _parsed(value, types[name]) for name, value in given.items()}
            function(**validate_options(types, values, lambda name: _flag(name, types[name])))

        parameters = [
            one.replace(annotation=_typer_annotation(one.annotation))
            for one in signature.parameters.values()
        ]
        wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {one.name: one.annotation for one in parameters}
        return group.command(*args, **kwargs)(wrapper)

    return decorate


def _flag(name: str, kind: Any) -> str:
    """Return the flag of an option."""
    for info in getattr(kind, "__metadata__", ()):
        if isinstance(info, ParameterInfo) and isinstance(info.default, str):
            return info.default  # typer stores the first flag here
    return f"--{name.replace('_', '-')}"


def _typer_annotation(kind: Any) -> Any:
    """Return the annotation for typer: a type that it can parse, and the complete help text."""
    given = [note for note in get_args(kind)[1:] if isinstance(note, ParameterInfo)]
    info = copy.copy(given[-1]) if given else typer.Option()
    info.help = info.help or next(_descriptions(kind))
    if text := range_text(kind):
        head, bracket, default = info.help.partition(" [default")
        info.help = f"{head} [range: {text}]{bracket}{default}"
    return Annotated[_plain(kind), info]


def _descriptions(kind: Any) -> Iterator[str]:
    """Yield the descriptions in an annotated type, which are its strings."""
    if get_origin(kind) in (Annotated, Union, UnionType):
        for part in get_args(kind):
            yield from (part,) if isinstance(part, str) else _descriptions(part)


def _plain(kind: Any) -> Any:
    """Return a type without annotations, or str for a union that typer cannot parse."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _plain(parts[0])
    if origin in (Union, UnionType):
        types = dict.fromkeys(_plain(part) for part in parts if part is not NoneType)
        one = next(iter(types)) if len(types) == 1 else str
        return one | None if NoneType in parts else one
    return kind


def _parsed(value: Any, kind: Any) -> Any:
    """Expand ``~`` in a path, and convert the integer of a union that typer parses as str."""
    if isinstance(value, Path):
        return user_path(value)
    if isinstance(value, str) and _accepts_int(kind) and re.fullmatch("-?[0-9]{1,18}", value):
        return int(value)
    return value


def _accepts_int(kind: Any) -> bool:
    """Return whether a type, or a member of a union, is int."""
    parts = get_args(kind)
    if get_origin(kind) is Annotated:
        return _accepts_int(parts[0])
    return kind is int or (get_origin(kind) in (Union, UnionType) and any(map(_accepts_int, parts)))


@contextmanager
def running(bars: bool = True) -> Iterator[Any]:
    """Show progress and log messages on the terminal; yield the progress callback.

    Args:
        bars: show progress bars. Without them, a command can ask questions on the terminal.
    """
    from primaps.utils.progress import ProgressDisplay, silent

    logger = logging.getLogger("primaps")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(_ConsoleHandler())
    display = ProgressDisplay(err) if bars else nullcontext(silent)
    with warnings.catch_warnings(), display as progress:
        if not debugging and not sys.warnoptions:  # warnings of libraries address developers
            warnings.simplefilter("ignore")
            logging.lastResort = logging.NullHandler()
        yield progress


@contextmanager
def reporting() -> Iterator[None]:
    """Report every error as one sentence with exit status 1, and Ctrl-C with exit status 130."""
    try:
        yield
    except BaseException as error:
        if is_interruption(error):
            note("stopped; the same command continues from here")
            raise typer.Exit(130) from None
        if not isinstance(error, Exception) or isinstance(error, _USAGE):
            raise
        text = sentence(error)
        if isinstance(error, OSError) and not error.filename and error.errno in _OUTPUT_ERRORS:
            text = f"standard output: {text}"
            # Python flushes standard output once more at exit, which would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):  # the reader has closed the pipe, as `head` does
                raise typer.Exit(1) from None
        if debugging:
            traceback.print_exc()
        say("error", "red", text)
        raise typer.Exit(1) from None


def is_interruption(error: BaseException | None) -> bool:
    """Return whether an error is Ctrl-C or was caused by it.

    Compiled code that is interrupted may raise another error with Ctrl-C as its cause.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    """Repeat a Ctrl-C that Python dropped because it came in a destructor or a callback.

    This is the ``sys.unraisablehook`` of the command line.
    """
    if not is_interruption(lost.exc_value):
        sys.__unraisablehook__(lost)
        return
    later = threading.Timer(0.05, _thread.interrupt_main)
    later.daemon = True
    later.start()


class _ConsoleHandler(logging.Handler):
    """Print log messages of the package as plain lines."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


class _Messages:
    """Standard error, to which writing never fails: without a reader, messages are dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _dropping_messages():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _dropping_messages():
            self._stream.flush()


@contextmanager
def _dropping_messages() -> Iterator[None]:
    try:
        yield
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _open_standard_streams() -> None:
    """Open the standard streams that the caller closed, and let messages be lost.

    The next file that is opened would get the number of a closed stream, and what libraries print
    would be written to it. Writing to standard output still fails: its reader misses the result.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            found = os.open(os.devnull, mode)
            if found != number:
                os.dup2(found, number)
                os.close(found)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.stderr = _Messages(sys.stderr)


def run() -> int:
    """Run the command line and return the exit status."""
    _open_standard_streams()
    sys.unraisablehook = interrupt_again
    status: Any = 1
    try:
        with reporting():
            try:
                app()
            except SystemExit as end:
                status = end.code
            sys.stdout.flush()
    except typer.Exit as end:
        status = end.exit_code
    return status if isinstance(status, int) else 0 if status is None else 1
