"""What requests say in their address, and how answers are written."""

from __future__ import annotations

import gzip

import numpy as np
from jaxtyping import Integer
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from primaps.studio.edited import ConflictError
from primaps.studio.security import TooLargeError
from primaps.utils.errors import InputError, NotFoundError


def number(request: Request) -> int:
    """Of an image, from the path."""
    return int(request.path_params["n"])


def threshold(request: Request) -> float:
    """Psi of Eq. 6."""
    text = request.query_params.get("threshold", "0.4")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise InputError(f"threshold is {text!r}; it must be at least 0 and below 1")
    return value


def box(text: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom in 0..1."""
    try:
        left, top, right, bottom = (float(value) for value in text.split(","))
    except ValueError:
        left = top = right = bottom = -1.0
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InputError(f"box is {text!r}; it must be left,top,right,bottom in 0..1")
    return left, top, right, bottom


def labels(found: Integer[np.ndarray, "h w"]) -> Response:
    """A map of whole numbers: width, height, then 8 or 16 bits a pixel, row after row."""
    kind = np.dtype("u1") if found.max(initial=0) < 256 else np.dtype("<u2")
    size = np.array(found.shape[::-1], "<u2").tobytes()
    data = gzip.compress(size + found.astype(kind).tobytes(), 1)
    headers = {"X-Values": f"u{8 * kind.itemsize}", "Content-Encoding": "gzip"}
    return Response(data, media_type="application/octet-stream", headers=headers)


def refused(request: Request, error: Exception) -> Response:
    """What a person can mend, as one sentence."""
    status = 404 if isinstance(error, NotFoundError) else 400
    status = 409 if isinstance(error, ConflictError) else status
    status = 413 if isinstance(error, TooLargeError) else status
    return JSONResponse({"error": str(error)}, status)


def missing(request: Request, error: Exception) -> Response:
    """An address that there is not, or a method that it does not know."""
    assert isinstance(error, HTTPException)
    sentence = f"there is nothing at {request.url.path} ({error.detail})"
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


def failed(request: Request, error: Exception) -> Response:
    """A defect of ours or of the machine."""
    return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)
