"""What requests may say, checked by its type before anything is done with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from anyio.to_thread import run_sync
from starlette.requests import Request

from primaps.utils.errors import InputError
from primaps.utils.typed import Range, conform

T = TypeVar("T")
Text = Annotated[str, Range(0, 4000)]
Whole = Annotated[int, Range(0, 10**9)]
Edit = dict[str, str | list[str]]


@dataclass(frozen=True)
class FolderBody:
    """``POST folder``."""

    path: Text


@dataclass(frozen=True)
class FitBody:
    """``POST fit``."""

    classes: Annotated[int, Range(2, 256)] | Literal["auto"]


@dataclass(frozen=True)
class EditsBody:
    """``POST classes``."""

    revision: Text
    edits: Annotated[list[Edit], Range(1, 1000)]


@dataclass(frozen=True)
class CutBody:
    """``POST classes/cut``."""

    revision: Text
    classes: Annotated[int, Range(1, 65535)]


@dataclass(frozen=True)
class RevisionBody:
    """``POST undo`` and ``redo``."""

    revision: Text


@dataclass(frozen=True)
class AuditBody:
    """``POST audit``."""

    answers: Annotated[int, Range(2, 2000)] = 80


@dataclass(frozen=True)
class AnswerBody:
    """``POST audit/answer``; ``done`` is what the person saw."""

    right: bool | None
    done: Whole


@dataclass(frozen=True)
class ExportBody:
    """``POST export``."""

    format: Text
    images: Literal["all", "corrected"] = "all"
    per: Literal["region", "class"] | None = None


@dataclass(frozen=True)
class CorrectionBody:
    """``POST images/N/correction``; ``name`` is sent as ``class``."""

    revision: Text
    name: Text
    runs: Annotated[list[tuple[Whole, Whole]], Range(1, 2_000_000)]


async def body(request: Request, kind: type[T]) -> T:
    """The JSON body of a request.

    Raises:
        InputError: it is no JSON, or not of this type.
    """
    return await run_sync(_read, await request.body(), kind)


def _read(data: bytes, kind: type[T]) -> T:
    """In a thread: the runs of a correction are many."""
    try:
        content: Any = json.loads(data)
        if kind is CorrectionBody and isinstance(content, dict) and "class" in content:
            content["name"] = content.pop("class")
        return conform(content, kind, "the request")
    except RecursionError:
        raise InputError("the request is nested too deeply") from None
    except (ValueError, UnicodeDecodeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the request is no JSON ({error})") from None
