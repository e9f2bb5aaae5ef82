"""The command that the others hang on, and how every one of them reports and fails."""

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
    "demo", "studio", "propose", "fit", "predict", "classes", "name", "report", "audit", "export",
    "import", "push", "evaluate", "oracle", "probe", "data", "project", "projection", "reproduce",
)  # fmt: skip
"""Of the commands in `primaps --help`: that in which a person needs them."""


class _Primaps(TyperGroup):
    """Commands in the order of :data:`ORDER`; whatever goes wrong in one is a sentence."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        with reporting():
            found = super().invoke(ctx)
            sys.stdout.flush()  # a full disk is noticed here, not after the end
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
IMAGES = "Your images"
CLASSES = "Classes"
EXCHANGE = "Out and in"
SCORES = "With labels"
DATA = "Labeled data sets"
PAPER = "The paper, and features of other methods"

_USAGE: Any = (
    typer.Exit,
    typer.Abort,
    next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"),
)
"""What typer itself has a way to end by."""

_OF_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EIO)
"""Of errors that name no file, as those of all files that are written do."""

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

        result(VERSION)
        raise typer.Exit


def command(group: typer.Typer, *args: Any, **kwargs: Any) -> Callable[[Callable[..., None]], Any]:
    """Register a command, as ``group.command`` does, whose options are declared by their types.

    Help texts get the range of the type. Values are validated before any work, and ``~`` in a path
    is the home folder.
    """

    def decorate(function: Callable[..., None]) -> Any:
        signature = inspect.signature(function, eval_str=True)
        types = {name: one.annotation for name, one in signature.parameters.items()}

        @functools.wraps(function)
        def wrapper(**given: Any) -> None:
            read = {name: parsed(value, types[name]) for name, value in given.items()}
            function(**validate_options(types, read))

        parameters = [
            one.replace(annotation=typer_annotation(one.annotation))
            for one in signature.parameters.values()
        ]
        wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {one.name: one.annotation for one in parameters}
        return group.command(*args, **kwargs)(wrapper)

    return decorate


def typer_annotation(kind: Any) -> Any:
    """The annotation of an option for typer: a type that it can parse, and a complete help text."""
    plain, *notes = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    shown = []
    for info in notes:
        if isinstance(info, ParameterInfo):
            info = copy.copy(info)
            info.help = info.help or next(_texts(kind))
            if text := range_text(kind):
                head, bracket, default = info.help.partition(" [default")
                info.help = f"{head} [range: {text}]{bracket}{default}"
            shown.append(info)
    return Annotated[(_plain(plain), *shown)] if shown else _plain(plain)


def _texts(kind: Any) -> Iterator[str]:
    """The strings in an annotated type, which describe it."""
    if get_origin(kind) in (Annotated, Union, UnionType):
        for part in get_args(kind):
            yield from (part,) if isinstance(part, str) else _texts(part)


def _plain(kind: Any) -> Any:
    """A type without annotations, or str for a union that typer cannot parse."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _plain(parts[0])
    if origin in (Union, UnionType):
        types = dict.fromkeys(_plain(part) for part in parts if part is not NoneType)
        one = next(iter(types)) if len(types) == 1 else str
        return one | None if NoneType in parts else one
    return kind


def parsed(value: Any, kind: Any) -> Any:
    """A value from typer, with ``~`` expanded and the integer of a union with other types."""
    if isinstance(value, Path):
        return user_path(value)
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    integers = get_origin(plain) in (Union, UnionType) and int in map(_plain, get_args(plain))
    if integers and isinstance(value, str) and re.fullmatch("-?[0-9]{1,18}", value):
        return int(value)
    return value


@contextmanager
def running(bars: bool = True) -> Iterator[Any]:
    """Progress on the terminal, and what the package and its libraries have to say on the way.

    Without ``bars`` the terminal is left alone, so that a person can be asked on it.
    """
    from primaps.utils.progress import ProgressDisplay, silent

    logger = logging.getLogger("primaps")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(_Sentences())
    with warnings.catch_warnings(), ProgressDisplay(err) if bars else nullcontext(silent) as told:
        if not debugging and not sys.warnoptions:  # warnings of libraries are for programmers
            warnings.simplefilter("ignore")
            logging.lastResort = logging.NullHandler()
        yield told


@contextmanager
def reporting() -> Iterator[None]:
    """Every error becomes one sentence and exit status 1; Ctrl-C is exit status 130.

    What is wrong with the input is said as it is. Anything else is a defect of ours or of the
    machine: its kind is named, and ``--debug`` shows where it comes from.
    """
    try:
        yield
    except BaseException as error:
        if interrupted(error):
            note("stopped: the same command goes on where it stopped")
            raise typer.Exit(130) from None
        if not isinstance(error, Exception) or isinstance(error, _USAGE):
            raise
        text = sentence(error)
        if isinstance(error, OSError) and not error.filename and error.errno in _OF_OUTPUT:
            text = f"standard output: {text}"
            # What could not be written is not tried again at the end of the process.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):  # a reader who has gone, as `head` does
                raise typer.Exit(1) from None
        if debugging:
            traceback.print_exc()
        say("error", "red", text)
        raise typer.Exit(1) from None


def interrupted(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C, or comes of it: compiled code that it falls into says so by
    another error."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    """Ctrl-C that comes amid a destructor or a callback, where Python drops it: as a hook for what
    is dropped, it has Ctrl-C come once more as soon as that is over."""
    if not interrupted(lost.exc_value):
        sys.__unraisablehook__(lost)
        return
    later = threading.Timer(0.05, _thread.interrupt_main)
    later.daemon = True
    later.start()


class _Sentences(logging.Handler):
    """What the package has to say, as plain lines."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def run() -> int:
    """Run the command line; returns the exit status once everything is written."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
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
