"""Who may ask: one browser of this machine, from the studio's own page, with its token.

A page of another site can make a browser send requests to 127.0.0.1, and a name of that site can be
turned to 127.0.0.1 (DNS rebinding). So the raw Host header has to be the server's own; the token of
the printed address becomes a cookie that no script reads and no other site sends; and whatever
changes something has to come from the server's own origin.
"""

from __future__ import annotations

import hmac
import html
import json
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from primaps.utils.errors import PrimapsError

LARGEST_BODY = 8 << 20
"""Bytes of a request: a correction of a whole image in runs is a tenth of it."""
READING = ("GET", "HEAD")
OWN = ("same-origin", "none")
"""``Sec-Fetch-Site`` of requests from the page itself, and from the address bar."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
"""Of every answer; a route's own value of a header stays."""
PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>primaps studio</title></head>
<body><main><h1>primaps studio</h1><p>{}</p></main></body>
</html>
"""
"""A refusal, for who typed the address."""


class TooLargeError(PrimapsError):
    """A body has more than :data:`LARGEST_BODY` bytes."""

    def __init__(self) -> None:
        super().__init__(f"a request may have {LARGEST_BODY} bytes, not more")


class Guard:
    """An ASGI application that lets through what the page of this server asks for.

    Args:
        app: answers what is let through.
        token: of the printed address.
        port: of the server.
        names: of the server, as a Host header gives them, without the port.
    """

    def __init__(self, app: ASGIApp, token: str, port: int, names: Iterable[str]) -> None:
        self.app, self.token = app, token
        self.hosts = {f"{name}:{port}".lower().encode() for name in names}
        if port == 80:
            self.hosts |= {name.lower().encode() for name in names}
        self.cookie = f"primaps-{port}"
        """Cookies do not know ports: two studios on one machine have two."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the studio has no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        typed = _header(scope, b"sec-fetch-mode") == [b"navigate"]
        if (refusal := self._refusal(scope)) is not None:
            await _answer(_with_headers(send), *refusal, typed)
            return
        if (given := parse_qs(scope["query_string"]).get(b"token")) and scope["path"] == "/":
            await self._enter(given, _with_headers(send), typed)
            return
        if not self._has_cookie(scope):
            sentence = "open the address that `primaps studio` printed: it has the key to this page"
            await _answer(_with_headers(send), 403, sentence, typed)
            return
        stated = [int(text) for text in _header(scope, b"content-length") if text.isdigit()]
        if any(length > LARGEST_BODY for length in stated):
            await _answer(_with_headers(send), 413, str(TooLargeError()))
            return
        await self.app(scope, _counted(receive), _with_headers(send))

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence for a request that is not of this server's page."""
        target, method = scope["raw_path"], scope["method"]
        if not target.startswith(b"/") or target.startswith(b"//"):
            return 400, "the address of a request is a path"
        host = _header(scope, b"host")
        if len(host) != 1 or host[0].lower() not in self.hosts:
            return 403, "this server answers under its own name only"
        origin = _header(scope, b"origin")
        if method not in READING and origin != [b"http://" + host[0]]:
            return 403, "changes are taken from the page of this server only"
        if origin and origin != [b"http://" + host[0]]:
            return 403, "another site asks"
        site = _header(scope, b"sec-fetch-site")
        entering = scope["path"] == "/" and _header(scope, b"sec-fetch-mode") == [b"navigate"]
        if any(one.decode("latin-1") not in OWN for one in site) and not entering:
            return 403, "another site asks"
        return None

    def _has_cookie(self, scope: Scope) -> bool:
        for header in _header(scope, b"cookie"):
            try:
                jar = SimpleCookie(header.decode("latin-1"))
            except CookieError:
                continue
            if self.cookie in jar and self._fits(jar[self.cookie].value.encode()):
                return True
        return False

    def _fits(self, given: bytes) -> bool:
        return hmac.compare_digest(given, self.token.encode())

    async def _enter(self, given: list[bytes], send: Send, typed: bool) -> None:
        """The token of the address becomes a cookie, so that it does not stay in the history."""
        if len(given) != 1 or not self._fits(given[0]):
            sentence = "this address is of another run: open the one printed last"
            await _answer(send, 403, sentence, typed)
            return
        cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _counted(receive: Receive) -> Receive:
    """Stop reading a body that turns out to be too large."""
    read = 0

    async def receiving() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > LARGEST_BODY:
            raise TooLargeError
        return message

    return receiving


def _header(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key.lower() == name]


def _with_headers(send: Send) -> Send:
    """Add :data:`HEADERS` to the answer."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {key.lower() for key, _ in message["headers"]}
            more = [(key, value) for key, value in HEADERS.items() if key not in present]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sending


async def _answer(send: Send, status: int, sentence: str, page: bool = False) -> None:
    body = json.dumps({"error": sentence}).encode()
    kind = b"application/json"
    if page:
        body = PAGE.format(html.escape(sentence[0].upper() + sentence[1:])).encode()
        kind = b"text/html; charset=utf-8"
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
