"""Messages between page and server: request bodies, parameters, label maps, errors and events."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

import numpy as np
from annotated_types import Interval, Len
from anyio.to_thread import run_sync
from jaxtyping import Integer
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from primaps.studio.edits import ConflictError
from primaps.studio.security import TooLargeError
from primaps.utils.errors import InputError, NotFoundError
from primaps.utils.inputs import parse_json
from primaps.utils.validation import short

T = TypeVar("T")
Text = Annotated[str, Len(0, 4000)]
Natural = Annotated[int, Interval(ge=0, le=10**9)]
Edit = dict[str, str | list[str]]
ChangeId = Annotated[str, Len(0, 64)]
"""Id of a change, which the page sends again if it did not receive the answer."""
MAX_WAITING = 64
"""Events that wait for one tab. A slower tab loses the oldest ones."""
HEARTBEAT = 15.0
"""Interval in seconds between comments that keep an event stream open."""


@dataclass(frozen=True)
class FolderBody:
    """Body of ``POST folder``."""

    path: Text


@dataclass(frozen=True)
class FitBody:
    """Body of ``POST fit``."""

    classes: int | str

    def __post_init__(self) -> None:
        if self.classes == "auto":
            return
        if not isinstance(self.classes, int) or not 2 <= self.classes <= 256:
            raise InputError(
                "the number of classes must be an integer from 2 to 256, or auto, got "
                f"{short(self.classes)}"
            )


@dataclass(frozen=True)
class EditsBody:
    """Body of ``POST classes``."""

    revision: Text
    edits: Annotated[list[Edit], Len(1, 1000)]
    change: ChangeId = ""


@dataclass(frozen=True)
class CutBody:
    """Body of ``POST classes/cut``."""

    revision: Text
    classes: Annotated[int, Interval(ge=1, le=65535)]
    change: ChangeId = ""


@dataclass(frozen=True)
class RevisionBody:
    """Body of ``POST undo`` and ``POST redo``."""

    revision: Text
    change: ChangeId = ""


@dataclass(frozen=True)
class AuditBody:
    """Body of ``POST audit``."""

    answers: Annotated[int, Interval(ge=2, le=2000)] = 80


@dataclass(frozen=True)
class AnswerBody:
    """Body of ``POST audit/answer``; ``done`` is the number of answers that the page showed."""

    right: bool | None
    done: Natural


@dataclass(frozen=True)
class ExportBody:
    """Body of ``POST export``."""

    format: Text
    images: Literal["all", "corrected"] = "all"
    per: Literal["region", "class"] | None = None


@dataclass(frozen=True)
class CorrectionBody:
    """Body of ``POST images/N/correction``; the page sends ``name`` as ``class``.

    ``key`` and ``digest`` are those of the image on which it was painted.
    """

    revision: Text
    key: Text
    digest: Text
    name: Annotated[Text, Field(alias="class")]
    runs: Annotated[list[tuple[Natural, Natural]], Len(1, 2_000_000)]
    change: ChangeId = ""


async def read_body(request: Request, kind: type[T]) -> T:
    """Read and validate the JSON body of a request.

    Raises:
        InputError: The body is not JSON, or not of this type.
    """
    # In a thread: a correction has up to two million runs.
    return await run_sync(parse_json, await request.body(), kind, "the request")


def image_number(request: Request) -> int:
    """Return the image number in the path of a request."""
    return int(request.path_params["n"])


def threshold(request: Request) -> float:
    """Return the mask threshold psi of Eq. 6, in [0, 1)."""
    text = request.query_params.get("threshold", "0.4")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise InputError(f"threshold must be at least 0 and below 1, got {text!r}")
    return value


def box(request: Request) -> tuple[float, float, float, float]:
    """Return the left, top, right and bottom edge of a crop, as fractions of the image."""
    text = request.query_params.get("box", "")
    try:
        left, top, right, bottom = (float(value) for value in text.split(","))
    except ValueError:
        left = top = right = bottom = -1.0
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InputError(f"box must be left,top,right,bottom between 0 and 1, got {text!r}")
    return left, top, right, bottom


def map_response(labels: Integer[np.ndarray, "h w"], key: str = "", digest: str = "") -> Response:
    """Encode a label map: width, height, then 8 or 16 bits per pixel, row by row.

    Args:
        key, digest: Those of the image, for a map that can be corrected.
    """
    dtype = np.dtype("u1") if labels.max(initial=0) < 256 else np.dtype("<u2")
    size = np.array(labels.shape[::-1], "<u2").tobytes()
    data = gzip.compress(size + labels.astype(dtype).tobytes(), 1)
    headers = {"X-Values": f"u{8 * dtype.itemsize}", "Content-Encoding": "gzip"}
    if digest:
        headers |= {"X-Key": quote(key), "X-Digest": digest}
    return Response(data, media_type="application/octet-stream", headers=headers)


def user_error(request: Request, error: Exception) -> Response:
    """Answer with an error that the user can correct, as one sentence."""
    status = {NotFoundError: 404, ConflictError: 409, TooLargeError: 413}
    code = next((code for kind, code in status.items() if isinstance(error, kind)), 400)
    return JSONResponse({"error": str(error)}, code)


def http_error(request: Request, error: Exception) -> Response:
    """Answer a request for an unknown path, or with a method that the path does not support."""
    assert isinstance(error, HTTPException)
    sentence = f"{request.url.path} cannot be served ({error.detail})"
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


def server_error(request: Request, error: Exception) -> Response:
    """Answer with an unexpected error of the program or the machine."""
    return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)


class EventHub:
    """Sends server-sent events from any thread to all tabs."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queues: set[asyncio.Queue[bytes | None]] = set()

    def begin(self) -> None:
        """Remember the running event loop."""
        self._loop = asyncio.get_running_loop()

    def send(self, kind: str, content: Any) -> None:
        """Send an event to all tabs."""
        self._call(_event(kind, content))

    def end(self) -> None:
        """End all streams; the server cannot stop before."""
        self._call(None)

    def _call(self, event: bytes | None) -> None:
        if self._loop is None or self._loop.is_closed():
            return
        try:
            self._loop.call_soon_threadsafe(self._spread, event)
        except RuntimeError:  # closed between the check and the call
            return

    def _spread(self, event: bytes | None) -> None:
        for waiting in self._queues:
            if waiting.full():
                waiting.get_nowait()
            waiting.put_nowait(event)

    async def stream(self, kind: str, content: Any) -> AsyncIterator[bytes]:
        """Yield the events for one tab, after a first event with this kind and content."""
        waiting: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_WAITING)
        self._queues.add(waiting)
        try:
            yield _event(kind, content)
            while True:
                try:
                    event = await asyncio.wait_for(waiting.get(), HEARTBEAT)
                except (TimeoutError, asyncio.TimeoutError):
                    event = b": heartbeat\n\n"
                if event is None:
                    return
                yield event
        finally:
            self._queues.discard(waiting)


def _event(kind: str, content: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(content)}\n\n".encode()
