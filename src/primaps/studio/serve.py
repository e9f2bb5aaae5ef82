"""``primaps studio``: the application, its address, and the server."""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primaps.config import Config, check_names, check_used
from primaps.utils.errors import InputError, MissingPackageError
from primaps.utils.typed import conform

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from primaps.studio.studio import Studio

logger = logging.getLogger("primaps")
STATIC = Path(__file__).parent / "static"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def run_studio(
    photos: str | Path,
    out: str | Path | None = None,
    *,
    model: str | Path | None = None,
    classes: int | str = "auto",
    host: str = "127.0.0.1",
    port: int = 0,
    allow_host: Sequence[str] = (),
    browser: bool = True,
    device: str = "auto",
    told: Callable[[str], None] = print,
    **options: Any,
) -> None:
    """Serve a page on which a folder of photos becomes named, corrected, exported classes.

    Returns when the server is stopped (Ctrl-C). Everything is kept in ``out``: the same call goes
    on where it was, whatever stopped it.

    Args:
        photos: folder of images, searched recursively; nothing is written there.
        out: folder of the studio; None is ``<name of the folder>-studio`` here.
        model: folder of a model that is there already: its classes.json is edited; None fits one.
        classes: number of classes that the page proposes, or ``auto``.
        host: address to listen on. Others than this machine's own need ``allow_host``.
        port: 0 takes a free one.
        allow_host: names under which other machines reach this one.
        browser: open the page in the browser.
        told: called with the address and what else there is to say.
        **options: of the model, fields of :class:`primaps.Config`.

    Raises:
        MissingPackageError: Starlette or uvicorn is not installed.
        NotFoundError: there is no such folder.
        InputError: options do not go together, or ``out`` is of another studio.
    """
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise MissingPackageError("the studio needs its packages: pip install 'primaps[studio]'")
    check_names(options)
    check_used(Config(2 if classes == "auto" else conform(classes, int, "classes"), **options))
    host = host.strip("[]")
    local = _is_loopback(host)
    if not local and not allow_host:
        raise InputError(
            f"--host {host} lets other machines ask: name this one with --allow-host NAME, as they "
            "reach it; whoever has the address that is printed then sees these photos and can "
            "edit, and what is sent is not encrypted"
        )
    import uvicorn

    from primaps.studio.studio import Studio
    from primaps.studio.workspace import opened

    with opened(photos, out, options, model) as workspace, _listening(host, port) as listening:
        port = listening.getsockname()[1]
        token = secrets.token_urlsafe(24)
        desk = Studio(workspace, classes, device)
        name = (f"[{host}]" if ":" in host else host) if local else allow_host[0]
        app = application(desk, token, port, (name, *allow_host))
        address = f"http://{name}:{port}/?token={token}"
        told(f"The studio of {workspace.photos} is at")
        told(f"    {address}")
        told(f"Everything is kept in {workspace.out}. Ctrl-C ends it; the same command goes on.")
        if not local:
            told(
                "Whoever has this address sees these photos and can edit; what is sent is not "
                "encrypted."
            )
        if browser:
            # Some browsers keep who opens them waiting until they have the page, or are closed.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        config = uvicorn.Config(
            app, http="h11", ws="none", log_level="warning", server_header=False,
            proxy_headers=False, timeout_graceful_shutdown=2,
        )  # fmt: skip
        server = uvicorn.Server(config)
        ending = server.handle_exit

        def end(signal: int, frame: Any) -> None:
            desk.hub.end()  # a stream of events would be waited for
            ending(signal, frame)

        server.handle_exit = end  # type: ignore
        with contextlib.suppress(KeyboardInterrupt):
            server.run([listening])


def application(
    studio: Studio, token: str, port: int, allow_host: Sequence[str] = ()
) -> Callable[..., Any]:
    """The application behind its guard.

    Args:
        token: of the address.
        port: that the server listens on.
        allow_host: names that it answers under besides those of this machine itself.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import FileResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    from primaps.studio.api import Api
    from primaps.studio.responses import failed, missing, refused
    from primaps.studio.security import Guard
    from primaps.utils.errors import PrimapsError

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        studio.begin()
        yield
        studio.close()

    async def page(request: Any) -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app = Starlette(
        routes=[
            Route("/", page),
            *Api(studio).routes(),
            Mount("/static", StaticFiles(directory=STATIC, check_dir=False)),
        ],
        exception_handlers={PrimapsError: refused, HTTPException: missing, Exception: failed},
        lifespan=lifespan,
    )
    return Guard(app, token, port, (*LOOPBACK, *allow_host))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def _listening(host: str, port: int) -> Any:
    """A socket on an address, so that a port that is taken is said before anything begins; who
    connects from now on waits until the server answers."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends small answers at once (TCP_NODELAY).
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(128)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{host}:{port} cannot be listened on ({reason})") from None
        yield listening
    finally:
        listening.close()
