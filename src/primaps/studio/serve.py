"""``primaps studio``: the address, the server and the application."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import hashlib
import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Interval, Len

from primaps.config import Config, check_names, check_used
from primaps.utils.errors import InputError, MissingPackageError
from primaps.utils.files import cache_dir, write_json
from primaps.utils.inputs import read_json
from primaps.utils.validation import validate

if TYPE_CHECKING:
    import uvicorn
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
) -> StudioHandle | None:
    """Serve the studio, a web page to name, correct and export the classes of an image folder.

    Returns when the server is stopped with Ctrl-C. The same call continues where it was stopped.
    In a notebook, whose event loop is running, the studio runs in a thread instead, and the call
    returns at once.

    Args:
        images: Image folder, searched recursively and never written to.
        out: Output folder of the studio; None is ``<name of the folder>-studio`` in the current
            folder.
        model: Folder of an existing model whose classes are edited; None fits a model.
        classes: Number of classes that the page suggests, or ``auto``.
        host: Address to listen on. An address that other machines reach needs ``allow_host``.
        port: Port to listen on; 0 selects the last port of this folder if it is free, else another.
        allow_host: Names under which other machines reach this one, or ``NAME:PORT`` for the local
            end of a forwarded port.
        browser: Open the page in the browser.
        device: ``auto``, ``cpu``, ``cuda``, ...
        log: Called with each line of output, the address among them.
        **options: Options of the model, fields of :class:`primaps.Config`.

    Returns:
        In a notebook, a handle with the address ``url`` and ``stop()``; else None.

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
    if not _is_loopback(host) and not allow_host:
        raise InputError(
            f"--host {host} is reachable from other machines; also give --allow-host NAME, the "
            "name under which they reach this one. Everyone who has the printed address can see "
            "the images and edit the classes, and the connection is not encrypted"
        )
    given = _Given(images, out, model, classes, host, port, tuple(allow_host), device, options)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with _open(given, browser, log) as served, contextlib.suppress(KeyboardInterrupt):
            served.run()
        return None
    return _run_in_thread(given, browser, log)


@dataclass(frozen=True)
class _Given:
    """The arguments of :func:`run_studio`."""

    images: str | Path
    out: str | Path | None
    model: str | Path | None
    classes: int | str
    host: str
    port: int
    allow_host: tuple[str, ...]
    device: str
    options: dict[str, Any]

    @property
    def local(self) -> bool:
        return _is_loopback(self.host)

    @property
    def name(self) -> str:
        """Name of the server in its address."""
        if not self.local:
            return self.allow_host[0]
        return f"[{self.host}]" if ":" in self.host else self.host


@dataclass(frozen=True)
class _Served:
    """An open studio, its server and its address."""

    address: str
    studio: Studio
    server: uvicorn.Server
    listening: socket.socket

    def run(self) -> None:
        """Serve until the server is stopped."""
        handle_exit = self.server.handle_exit

        def end(signal: int, frame: Any) -> None:
            self.studio.events.end()  # uvicorn waits for open event streams
            handle_exit(signal, frame)

        self.server.handle_exit = end  # type: ignore
        self.server.run([self.listening])

    def stop(self) -> None:
        """Stop the server from another thread."""
        self.studio.events.end()
        self.server.should_exit = True


@contextlib.contextmanager
def _open(given: _Given, browser: bool, log: Callable[[str], None]) -> Iterator[_Served]:
    """Lock the folder of a studio, listen, and print the address."""
    import uvicorn

    from primaps.studio.security import WITH_PORT
    from primaps.studio.studio import Studio
    from primaps.studio.workspace import open_workspace

    opened = open_workspace(given.images, given.out, given.options, given.model)
    with opened as workspace:
        token, last_port = read_access(workspace.out)
        with _listen(given.host, given.port, last_port) as listening:
            port = listening.getsockname()[1]
            write_access(workspace.out, token, port)
            studio = Studio(workspace, given.classes, given.device)
            app = create_app(studio, token, port, (given.name, *given.allow_host))
            place = given.name if WITH_PORT.search(given.name) else f"{given.name}:{port}"
            address = f"http://{place}/?token={token}"
            log(f"The studio of {workspace.folder} runs at")
            log(f"    {address}")
            log(f"Its files are in {workspace.out}. Ctrl-C stops it; the same command continues.")
            if not given.local:
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
            yield _Served(address, studio, uvicorn.Server(config), listening)


class StudioHandle:
    """A studio that runs in a thread, as :func:`run_studio` returns it in a notebook.

    Attributes:
        url: Address of the page, with its access token.
    """

    def __init__(self, url: str, stop: Callable[[], None], thread: threading.Thread) -> None:
        self.url, self._stop, self._thread = url, stop, thread
        atexit.register(self.stop)

    def stop(self) -> None:
        """Stop the studio and wait until its folder is closed; later calls do nothing."""
        atexit.unregister(self.stop)
        self._stop()
        self._thread.join()

    def __repr__(self) -> str:
        state = "runs at" if self._thread.is_alive() else "was stopped; it ran at"
        return f"<studio that {state} {self.url}>"


def _run_in_thread(given: _Given, browser: bool, log: Callable[[str], None]) -> StudioHandle:
    """Serve in a thread; errors before the server runs are raised here."""
    ready: Future[_Served] = Future()

    def run() -> None:
        try:
            with _open(given, browser, log) as served:
                ready.set_result(served)
                served.run()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=run, name="primaps-studio", daemon=True)
    thread.start()
    served = ready.result()
    return StudioHandle(served.address, served.stop, thread)


def _access_file(out: Path) -> Path:
    name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    return cache_dir() / "studio" / f"{name}.json"


def read_access(out: Path) -> tuple[str, int]:
    """Return the token and the last port of the studio with this folder.

    An open page works again after a restart, because both stay the same. The file is in the cache,
    not in the folder, which people share.

    Returns:
        A new token and port 0 if there is no such file, or if others could read it.
    """
    path = _access_file(out)
    with contextlib.suppress(OSError, InputError):
        record = read_json(path, _Access)
        status = path.stat()
        if os.name == "nt" or (status.st_uid == os.getuid() and not status.st_mode & 0o077):
            return record.token, record.port
    return secrets.token_urlsafe(24), 0


def write_access(out: Path, token: str, port: int) -> None:
    """Write the token and the port for :func:`read_access`, readable by the owner alone."""
    with contextlib.suppress(OSError):  # a cache that cannot be written
        write_json(_access_file(out), {"token": token, "port": port}, private=True)


@dataclass(frozen=True)
class _Access:
    token: Annotated[str, Len(32, 64)]
    port: Annotated[int, Interval(ge=0, le=65535)]


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
def _listen(host: str, port: int, last_port: int = 0) -> Iterator[socket.socket]:
    """Open a listening socket before anything else starts, which reports a port in use early.

    Clients that connect from now on wait until the server runs.

    Args:
        port: Port to listen on; 0 selects ``last_port`` if it is free, else a free one.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With an explicit protocol asyncio sets TCP_NODELAY, which sends small responses at once.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            try:
                listening.bind((host, port or last_port))
            except OSError:
                if port or not last_port:
                    raise
                listening.bind((host, 0))
            listening.listen(128)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{host}:{port} is not available ({reason})") from None
        yield listening
    finally:
        listening.close()
