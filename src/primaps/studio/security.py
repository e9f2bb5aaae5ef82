"""Access control: requests must come from the studio's own page, with its token.

A page of another site can make a browser send requests to 127.0.0.1, and can resolve its own name
to 127.0.0.1 (DNS rebinding). The raw Host header must therefore be the server's own. The token of
the printed address becomes a cookie that scripts cannot read and other sites cannot send. Requests
that change something must come from the server's own origin.
"""

from __future__ import annotations

import hmac
import html
import json
import re
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from primaps.utils.errors import PrimapsError

MAX_BODY = 8 << 20
"""Maximum size of a request body in bytes, ten times that of a correction of a whole image."""
SAFE_METHODS = ("GET", "HEAD")
TRUSTED_SITES = ("same-origin", "none")
"""Values of ``Sec-Fetch-Site`` for requests of the page itself, and of the address bar."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HOST = re.compile(r"([A-Za-z0-9._-]{1,200}|\[[0-9A-Fa-f:.]{2,45}\])(:\d{1,5})?")
WITH_PORT = re.compile(r"^[^:]*:\d{1,5}$|\]:\d{1,5}$")
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
"""Default headers of every response."""
ERROR_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>primaps studio</title></head>
<body><main><h1>primaps studio</h1><p>{}</p></main></body>
</html>
"""
"""Response to a rejected request from the address bar."""


class TooLargeError(PrimapsError):
    """A request body is larger than :data:`MAX_BODY`."""

    def __init__(self) -> None:
        super().__init__(f"a request body may have at most {MAX_BODY} bytes")


class Guard:
    """ASGI middleware that rejects every request which the page of this server did not send.

    Args:
        app: Application behind the guard.
        token: Token of the printed address.
        port: Port of the server.
        names: Names of the server, as in a Host header with or without the port.
    """

    def __init__(self, app: ASGIApp, token: str, port: int, names: Iterable[str]) -> None:
        self.app, self.token = app, token
        names = [name.lower() for name in names]
        self.hosts = {
            (name if WITH_PORT.search(name) else f"{name}:{port}").encode() for name in names
        }
        if port == 80:
            self.hosts |= {name.encode() for name in names}
        self.cookie = f"primaps-{port}"
        """Cookies ignore the port: each studio on a machine needs its own name."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the studio has no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        from_address_bar = _header(scope, b"sec-fetch-mode") == [b"navigate"]
        send = _with_headers(send)
        if (rejection := self._rejection(scope)) is not None:
            await _respond(send, *rejection, from_address_bar)
            return
        if (tokens := parse_qs(scope["query_string"]).get(b"token")) and scope["path"] == "/":
            await self._set_cookie(tokens, send, from_address_bar)
            return
        if not self._has_cookie(scope):
            sentence = "open the address that `primaps studio` printed, which has the access token"
            await _respond(send, 403, sentence, from_address_bar)
            return
        lengths = [int(text) for text in _header(scope, b"content-length") if text.isdigit()]
        if any(length > MAX_BODY for length in lengths):
            await _respond(send, 413, str(TooLargeError()))
            return
        await self.app(scope, _limited(receive), send)

    def _rejection(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and sentence for a request that the page of this server did not send."""
        target, method = scope["raw_path"], scope["method"]
        if not target.startswith(b"/") or target.startswith(b"//"):
            return 400, "the request target must be a path"
        host = _header(scope, b"host")
        if len(host) != 1 or host[0].lower() not in self.hosts:
            return 403, _unknown_host(host)
        origin = _header(scope, b"origin")
        if method not in SAFE_METHODS and origin != [b"http://" + host[0]]:
            return 403, "cross-origin change rejected"
        if origin and origin != [b"http://" + host[0]]:
            return 403, "cross-origin request rejected"
        site = _header(scope, b"sec-fetch-site")
        entering = scope["path"] == "/" and _header(scope, b"sec-fetch-mode") == [b"navigate"]
        if any(one.decode("latin-1") not in TRUSTED_SITES for one in site) and not entering:
            return 403, "cross-origin request rejected"
        return None

    def _has_cookie(self, scope: Scope) -> bool:
        for header in _header(scope, b"cookie"):
            try:
                jar = SimpleCookie(header.decode("latin-1"))
            except CookieError:
                continue
            if self.cookie in jar and self._is_token(jar[self.cookie].value.encode()):
                return True
        return False

    def _is_token(self, given: bytes) -> bool:
        return hmac.compare_digest(given, self.token.encode())

    async def _set_cookie(self, tokens: list[bytes], send: Send, from_address_bar: bool) -> None:
        """Turn the token of the address into a cookie, which keeps it out of the history."""
        if len(tokens) != 1 or not self._is_token(tokens[0]):
            sentence = "this address is from an earlier run; open the address that was printed last"
            await _respond(send, 403, sentence, from_address_bar)
            return
        cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _unknown_host(host: list[bytes]) -> str:
    """Return the sentence for a Host header that is not a name of the server."""
    given = host[0].decode("latin-1") if len(host) == 1 else ""
    if not HOST.fullmatch(given):
        return "the Host header is not a name of this server"
    return (
        f"the studio does not know the name {given}; if you forwarded its port to this address "
        f"yourself, start it with --allow-host {given}"
    )


def _limited(receive: Receive) -> Receive:
    """Stop reading a body that is too large."""
    size = 0

    async def limited() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MAX_BODY:
            raise TooLargeError
        return message

    return limited


def _header(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key.lower() == name]


def _with_headers(send: Send) -> Send:
    """Add the :data:`HEADERS` that a response does not set itself."""

    async def extended(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {key.lower() for key, _ in message["headers"]}
            missing = [(key, value) for key, value in HEADERS.items() if key not in present]
            message = {**message, "headers": [*message["headers"], *missing]}
        await send(message)

    return extended


async def _respond(send: Send, status: int, sentence: str, page: bool = False) -> None:
    body, media_type = json.dumps({"error": sentence}).encode(), b"application/json"
    if page:
        body = ERROR_PAGE.format(html.escape(sentence[0].upper() + sentence[1:])).encode()
        media_type = b"text/html; charset=utf-8"
    headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
