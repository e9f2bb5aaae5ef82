"""``primaps studio``: the address, the server and the application."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primaps.config import Config, check_names, check_used
from primaps.utils.errors import InputError, MissingPackageError
from primaps.utils.validation import validate

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from primaps.studio.studio import Studio

STATIC = Path(__file__).parent / "static"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def run_studio(
    images: str | Path,
    out: str | Path | None = None,
    *,
    model: str | Path | None = None,
    classes: int | str = "auto",
    host: str = "127.0.0.1",
    port: int = 0,
    allow_host: Sequence[str] = (),
    browser: bool = True,
    device: str = "auto",
    log: Callable[[str], None] = print,
    **options: Any,
) -> None:
    """Serve the studio, a web page to name, correct and export the classes of an image folder.

    Returns when the server is stopped with Ctrl-C. The same call continues where it was stopped.

    Args:
        images: Image folder, searched recursively and never written to.
        out: Output folder of the studio; None is ``<name of the folder>-studio`` in the current
            folder.
        model: Folder of an existing model whose classes are edited; None fits a model.
        classes: Number of classes that the page suggests, or ``auto``.
        host: Address to listen on. An address that other machines reach needs ``allow_host``.
        port: Port to listen on; 0 selects a free one.
        allow_host: Names under which other machines reach this one.
        browser: Open the page in the browser.
        device: ``auto``, ``cpu``, ``cuda``, ...
        log: Called with each line of output, the address among them.
        **options: Options of the model, fields of :class:`primaps.Config`.

    Raises:
        MissingPackageError: Starlette or uvicorn is not installed.
        NotFoundError: The image folder does not exist.
        InputError: An option is invalid, or ``out`` belongs to another studio.
    """
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise MissingPackageError("the studio needs its extra: pip install 'primaps[studio]'")
    check_names(options)
    check_used(Config(2 if classes == "auto" else validate(classes, int, "classes"), **options))
    host = host.strip("[]")
    local = _is_loopback(host)
    if not local and not allow_host:
        raise InputError(
            f"--host {host} is reachable from other machines; also give --allow-host NAME, the "
            "name under which they reach this one. Everyone who has the printed address can see "
            "the images and edit the classes, and the connection is not encrypted"
        )
    import uvicorn

    from primaps.studio.studio import Studio
    from primaps.studio.workspace import open_workspace

    with open_workspace(images, out, options, model) as workspace, _listen(host, port) as listening:
        port = listening.getsockname()[1]
        token = secrets.token_urlsafe(24)
        studio = Studio(workspace, classes, device)
        name = (f"[{host}]" if ":" in host else host) if local else allow_host[0]
        app = create_app(studio, token, port, (name, *allow_host))
        address = f"http://{name}:{port}/?token={token}"
        log(f"The studio of {workspace.folder} runs at")
        log(f"    {address}")
        log(f"Its files are in {workspace.out}. Ctrl-C stops it; the same command continues.")
        if not local:
            log(
                "Everyone who has this address can see the images and edit the classes. The "
                "connection is not encrypted."
            )
        if browser:
            # webbrowser.open blocks in some browsers until the page is loaded or closed.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        config = uvicorn.Config(
            app, http="h11", ws="none", log_level="warning", server_header=False,
            proxy_headers=False, timeout_graceful_shutdown=2,
        )  # fmt: skip
        server = uvicorn.Server(config)
        handle_exit = server.handle_exit

        def end(signal: int, frame: Any) -> None:
            studio.events.end()  # uvicorn waits for open event streams
            handle_exit(signal, frame)

        server.handle_exit = end  # type: ignore
        with contextlib.suppress(KeyboardInterrupt):
            server.run([listening])


def create_app(
    studio: Studio, token: str, port: int, allow_host: Sequence[str] = ()
) -> Callable[..., Any]:
    """Create the ASGI application of a studio, behind its access control.

    Args:
        token: Token of the address.
        port: Port of the server.
        allow_host: Names of the server besides those of the loopback interface.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import HTMLResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    from primaps.studio.api import Api
    from primaps.studio.messages import http_error, server_error, user_error
    from primaps.studio.security import Guard
    from primaps.utils.errors import PrimapsError

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        studio.begin()
        yield
        studio.close()

    page = page_html()

    async def index(request: Any) -> HTMLResponse:
        return HTMLResponse(page)

    app = Starlette(
        routes=[
            Route("/", index),
            *Api(studio).routes(),
            Mount("/static", StaticFiles(directory=STATIC, check_dir=False)),
        ],
        exception_handlers={
            PrimapsError: user_error,
            HTTPException: http_error,
            Exception: server_error,
        },
        lifespan=lifespan,
    )
    return Guard(app, token, port, (*LOOPBACK, *allow_host))


def page_html() -> str:
    """Return ``index.html`` with links that load all modules at once, not import after import."""
    paths = (path.relative_to(STATIC).as_posix() for path in sorted((STATIC / "js").rglob("*.js")))
    links = [f'<link rel="modulepreload" href="/static/{path}" />' for path in paths]
    return (STATIC / "index.html").read_text("utf-8").replace("<!-- modules -->", "\n".join(links))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """Open a listening socket before anything else starts, which reports a port in use early.

    Clients that connect from now on wait until the server runs.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With an explicit protocol asyncio sets TCP_NODELAY, which sends small responses at once.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(128)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{host}:{port} is not available ({reason})") from None
        yield listening
    finally:
        listening.close()
