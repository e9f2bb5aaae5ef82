"""A small model, its images, and a studio on a real port."""

import os
import shutil
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest
from filelock import FileLock

from primaps.model import PriMaPsEM
from primaps.utils.files import cache_dir
from tests.classes.conftest import made, tree  # noqa: F401 (fixtures)
from tests.conftest import painted

pytest.importorskip("starlette")
httpx = pytest.importorskip("httpx2")

MODEL = {"size": 64, "recipe": "orthogonal", "min_init_steps": 10, "mask_crf": False}
TOKEN = "the-token-of-this-test"
ARGUMENTS = (
    "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-background-networking",
)  # fmt: skip


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """A feature cache for one test, with the shared cache of compiled functions."""
    compiled = cache_dir() / "compiled"
    compiled.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "compiled").symlink_to(compiled)
    monkeypatch.setenv("PRIMAPS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def prepared(vit, tmp_path_factory) -> Path:
    """``images`` in two folders, and a ``model`` fitted to them; tests do not write to it.

    All workers of a test run share it.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "studio"
    root.mkdir(exist_ok=True)
    with FileLock(root / "lock"):
        if not (root / "model").is_dir():
            for seed in range(10):
                place = root / "images" / ("a" if seed < 6 else "b")
                place.mkdir(parents=True, exist_ok=True)
                painted(seed)[0].save(place / f"{seed}.png")
            model = PriMaPsEM(3, backbone=vit, device="cpu", **MODEL)
            model.fit(root / "images", cache=None).save_pretrained(root / "model")
    return root


@pytest.fixture(scope="session")
def browser():
    """Chromium of the system, one for all tests of a worker."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield found
        found.close()


@pytest.fixture
def folder(prepared, tmp_path) -> Path:
    """A copy of the images and the model, for one test."""
    for name in ("images", "model"):
        shutil.copytree(prepared / name, tmp_path / name)
    return tmp_path


@dataclass
class Served:
    """A running studio and its client."""

    client: "httpx.Client"
    port: int
    studio: object
    root: Path

    def get(self, path, /, **query):
        return self.client.get(f"/api/{path}", params=query)

    def post(self, path, /, **content):
        return self.client.post(f"/api/{path}", json=content)

    def raw(self, text: bytes) -> bytes:
        """Send raw bytes and return the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(text)
            found = b""
            while block := connection.recv(1 << 16):
                found += block
        return found

    def correct(self, number, name, runs, revision, **more):
        """Assign pixels of an image to a class, as painted on its present map."""
        answer = self.get(f"images/{number}/leaves")
        own = {"key": unquote(answer.headers["x-key"]), "digest": answer.headers["x-digest"]}
        content = {"class": name, "runs": runs, "revision": revision, **own, **more}
        return self.post(f"images/{number}/correction", **content)

    def seen(self):
        """Wait until all images were analyzed."""
        images = self.studio.images
        for _ in range(5000):
            if images.analyzed == len(images.workspace.images) and self.studio.editor is not None:
                return self
            time.sleep(0.05)
        raise AssertionError(self.studio.state())


@contextmanager
def serving(workspace, classes=3):
    """A studio on a free port, with a client that has its cookie."""
    import uvicorn

    from primaps.studio.serve import create_app
    from primaps.studio.studio import Studio

    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    studio = Studio(workspace, classes, "cpu")
    app = create_app(studio, TOKEN, port)
    config = uvicorn.Config(
        app, http="h11", ws="none", log_level="critical", server_header=False,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    base = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=base, headers={"Origin": base}, timeout=60) as client:
        assert client.get("/", params={"token": TOKEN}).status_code == 303
        yield Served(client, port, studio, workspace.out)
    server.should_exit = True
    thread.join(20)
    listening.close()


@contextmanager
def model_served(folder):
    """A studio with an existing model."""
    from primaps.studio.workspace import open_workspace

    given = folder / "images", folder / "out", {}, folder / "model"
    with open_workspace(*given) as workspace, serving(workspace) as found:
        for _ in range(5000):
            if found.studio.editor is not None:
                break
            time.sleep(0.05)
        yield found


@pytest.fixture
def served(folder):
    """A studio for one test."""
    with model_served(folder) as found:
        yield found


@pytest.fixture(scope="session")
def shared(prepared, tmp_path_factory):
    """A studio for tests that do not change it."""
    root = tmp_path_factory.mktemp("shared")
    for name in ("images", "model"):
        shutil.copytree(prepared / name, root / name)
    with model_served(root) as found:
        yield found.seen()
