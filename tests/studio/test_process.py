"""The command: started, killed at any moment, started again."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from primaps.studio.workspace import open_workspace
from primaps.utils.errors import NotFoundError
from tests.cli.test_cli import call
from tests.studio.conftest import httpx, serving
from tests.studio.test_api import grid

START = (
    "import sys; from primaps.studio.serve import run_studio; "
    "run_studio(sys.argv[1], sys.argv[2], model=sys.argv[3] or None, backbone=sys.argv[4], "
    "size=64, classes=3, min_init_steps=int(sys.argv[5]), mask_crf=False, browser=False, "
    "device='cpu')"
)


class Running:
    """The command in a process of its own, and a client that has its cookie."""

    def __init__(self, folder, model="", backbone="", steps=40):
        command = [sys.executable, "-c", START, folder / "images", folder / "out", model, backbone]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [*map(str, command), str(steps)], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.said = ""
        while not (found := re.search(r"(http://\S+)/\?token=(\S+)\s", self.said)):
            line = self.process.stdout.readline()
            assert line, self.said
            self.said += line
        base = found[1]
        self.client = httpx.Client(base_url=base, headers={"Origin": base}, timeout=60)
        assert self.client.get("/", params={"token": found[2]}).status_code == 303

    def get(self, path):
        return self.client.get(f"/api/{path}").json()

    def post(self, path, /, **content):
        return self.client.post(f"/api/{path}", json=content)

    def wait(self, reached):
        """Wait for a state."""
        for _ in range(3000):
            state = self.get("state")
            if reached(state):
                return state
            assert state["stage"] != "failed", state
            time.sleep(0.02)
        raise AssertionError(state)

    def children(self):
        task = Path(f"/proc/{self.process.pid}/task")
        found = [one for path in task.glob("*/children") for one in path.read_text().split()]
        return [Path("/proc") / one for one in found]

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.client.close()


@contextmanager
def running(*arguments, **options):
    found = Running(*arguments, **options)
    try:
        yield found
    finally:
        found.kill()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_a_fit_resumes_after_a_stop_and_after_a_kill(vit, folder, own_cache):
    """The process of the fit ends with the server, whatever ended it."""
    with running(folder, backbone=vit, steps=2000) as first:
        state = first.wait(lambda state: state["stage"] == "ready")
        assert state["model"] is None
        assert first.post("classes/cut", revision="", classes=2).status_code == 409
        assert not (folder / "out" / "studio.json").exists()
        assert first.post("fit", classes=3).json()["stage"] == "fitting"
        assert first.post("fit", classes=3).status_code == 409
        assert first.post("folder", path="a").status_code == 400
        state = first.wait(lambda s: (s["progress"] or {}).get("stage") == "k-means")
        assert state["progress"]["total"] == 2000
        assert first.post("stop").json()["stage"] == "ready"
        assert not first.children()
        first.post("fit", classes=3)
        saved = folder / "out" / "model" / "training-k-means.safetensors"
        first.wait(lambda s: saved.is_file())
        (worker,) = first.children()
        first.kill()
        for _ in range(2000):
            if not worker.exists() or "State:\tZ" in (worker / "status").read_text():
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the process of the fit outlived its server")
    at = saved.stat().st_mtime_ns
    with running(folder, backbone=vit, steps=2000) as again:
        state = again.wait(
            lambda s: s["stage"] == "fitting" and s["progress"]["stage"] == "k-means"
        )
        assert state["requested"] == 3
        assert state["progress"]["done"] > 1 or saved.stat().st_mtime_ns > at


@pytest.mark.slow
def test_saved_changes_survive_a_kill(folder, vit, own_cache):
    """A fit, a cut and a correction, each followed at once by SIGKILL."""
    with running(folder, backbone=vit) as one:
        one.wait(lambda state: state["stage"] == "ready")
        one.post("fit", classes=3)
        one.wait(lambda state: state["stage"] == "fitted")
        revision = one.get("classes")["revision"]
        edits = [{"rename": "0", "to": "sky"}]
        revision = one.post("classes", revision=revision, edits=edits).json()["revision"]
        answer = one.post("classes/cut", revision=revision, classes=2)
        one.kill()
    assert answer.status_code == 200
    with running(folder) as one:
        one.wait(lambda state: state["stage"] == "fitted")
        content = one.get("classes")
        assert [c["id"] for c in content["classes"]] == [c["id"] for c in answer.json()["classes"]]
        leaves = grid(one.client.get("/api/images/4/leaves"))
        name, runs = content["classes"][1]["id"], [[0, 64], [640, 9]]
        answer = one.client.get("/api/images/4/leaves")
        own = {"key": "a/4", "digest": answer.headers["x-digest"], "class": name}
        answer = one.post("images/4/correction", **own, revision=content["revision"], runs=runs)
        one.kill()
    with running(folder) as one:
        one.wait(lambda state: state["stage"] == "fitted")
        content = one.get("classes")
        assert content["undo"] == answer.json()["undo"] == "corrected a/4"
        found = grid(one.client.get("/api/images/4/leaves"))
        changed = leaves.copy()
        changed.ravel()[np.r_[0:64, 640:649]] = content["classes"][1]["leaves"][0]
        assert (found == changed).all()
        one.post("undo", revision=content["revision"])
        assert (grid(one.client.get("/api/images/4/leaves")) == leaves).all()
        assert one.get("classes")["redo"] == "corrected a/4"
    shown = call("classes", folder / "out" / "model")
    assert "sky" in shown.output


def in_event_loop(coroutine):
    """Run a coroutine in a thread: the browser of other tests has an event loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def test_a_folder_keeps_its_token_and_port(folder, monkeypatch, tmp_path):
    """An open page works again after a restart."""
    from primaps.studio import serve

    monkeypatch.setenv("PRIMAPS_CACHE", str(tmp_path / "cache"))
    said = []
    options = {"browser": False, "log": said.append}

    async def restarted(out, **more):
        handle = serve.run_studio(folder / "images", out, **options, **more)
        handle.stop()
        return handle.url

    def run(out, **more):
        return in_event_loop(restarted(folder / out, **more))

    first = run("out")
    assert first == run("out")
    assert not (folder / "out").exists()
    (file,) = (tmp_path / "cache" / "studio").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert first.split("=")[1] in file.read_text()
    assert run("other").split("=")[1] != first.split("=")[1]
    with socket.socket() as taken:  # another program has the port: the token stays
        taken.bind(("127.0.0.1", int(re.search(r":(\d+)/", first)[1])))
        taken.listen()
        moved = run("out")
    assert moved.split("/?")[0] != first.split("/?")[0]
    assert moved.split("=")[1] == first.split("=")[1]
    file.chmod(0o644)  # others could read it: a new token
    assert run("out").split("=")[1] != first.split("=")[1]
    file.write_text("{")
    assert len(run("out").split("=")[1]) >= 32


def test_a_notebook_gets_a_handle(folder):
    """In a running event loop the studio runs in a thread."""
    from primaps.studio.serve import run_studio

    async def cell():
        given = folder / "images", folder / "out"
        handle = run_studio(*given, model=folder / "model", browser=False, log=lambda _: None)
        base, query = handle.url.split("/?")
        with httpx.Client(base_url=base, timeout=60) as client:
            for _ in range(500):
                if client.get(f"/?{query}").status_code == 303:
                    break
                time.sleep(0.02)
            assert client.get("/api/state").json()["images"] == 10
        assert "runs at" in repr(handle)
        handle.stop()
        handle.stop()
        assert "was stopped" in repr(handle)
        with pytest.raises(httpx.ConnectError):
            httpx.get(base)
        with pytest.raises(NotFoundError, match="is not a folder"):
            run_studio(folder / "none", browser=False)
        with open_workspace(*given, {}, folder / "model"):
            pass  # the folder is unlocked

    in_event_loop(cell())


@pytest.mark.slow
def test_a_second_studio_on_the_folder_waits(folder):
    with running(folder, folder / "model") as first:
        first.wait(lambda state: state["stage"] == "fitted")
        with subprocess.Popen(
            [sys.executable, "-m", "primaps", "studio", str(folder / "images"), "--no-browser",
             "--out", str(folder / "out"), "--model", str(folder / "model")],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ) as second:  # fmt: skip
            line = second.stderr.readline()
            assert "waiting for another run that writes to" in line
            first.kill()
            assert "The studio of" in second.stderr.readline()
            second.send_signal(signal.SIGINT)
            assert second.wait(120) in (0, 130)  # before the server listens it is any command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{images}/none"], "is not a folder; give the folder of the images"),
        (["{images}", "--out", "{images}/a/out"], "is inside the image folder"),
        (["{images}", "--out", "{images}"], "is inside the image folder"),
        (["{images}", "--out", "{images}/../model"], "is not empty and not the folder of a studio"),
        (["{images}", "--host", "0.0.0.0"], "also give --allow-host NAME"),
        (["{images}", "--classes", "many"], "classes is 'many'"),
        (["{images}", "--classes", "1"], "classes is 1"),
        (["{images}", "--port", "99999"], "port is 99999"),
        (["{images}", "--recipe", "best"], "'best' is not one of"),
    ],
)
def test_errors_are_one_sentence(folder, arguments, words, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    given = [one.format(images=folder / "images") for one in arguments]
    done = call("studio", *given, "--no-browser")
    assert done.exit_code in (1, 2), done.output
    assert words in " ".join(done.output.replace("│", " ").split())
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("host", ["127.0.0.2", "[::1]"])
def test_other_loopback_addresses(folder, host, monkeypatch):
    """A client that connects before the server runs is not rejected."""
    import uvicorn

    from primaps.studio import serve

    said, opened = [], threading.Event()
    monkeypatch.setattr(serve.webbrowser, "open", lambda address: opened.set())

    def connect(server, sockets):
        found = re.search(r"http://(\S+):(\d+)/\?token=(\S+)", " ".join(said))
        assert found[1] == host
        socket.create_connection((host.strip("[]"), int(found[2])), timeout=5).close()
        guard = server.config.app
        assert f"{host}:{found[2]}".encode() in guard.hosts
        assert opened.wait(5)

    monkeypatch.setattr(uvicorn.Server, "run", connect)
    try:
        serve.run_studio(folder / "images", folder / "out", host=host, log=said.append)
    except ValueError as error:
        if "is not available" not in str(error):
            raise
        pytest.skip(f"this machine has no {host}")


def test_a_studio_of_other_images_is_rejected(folder):
    with open_workspace(folder / "images", folder / "out", {}) as workspace:
        workspace.begin(3)
    with (
        pytest.raises(ValueError, match="belongs to the images in .*, not to"),
        open_workspace(folder / "images" / "a", folder / "out", {}),
    ):
        pass
    path = folder / "out" / "studio.json"
    path.write_text(path.read_text().replace('"path": "a/0.png"', '"path": "../../secret.png"'))
    with (
        pytest.raises(ValueError, match="not a path inside the image folder"),
        open_workspace(folder / "images", folder / "out", {}),
    ):
        pass


def test_a_model_without_a_tree_is_rejected(folder):
    (folder / "model" / "tree.safetensors").unlink()
    given = folder / "images", folder / "out", {}, folder / "model"
    with open_workspace(*given) as workspace, serving(workspace) as served:
        for _ in range(5000):
            state = served.get("state").json()
            if state["stage"] == "failed":
                break
            time.sleep(0.02)
        assert "has no class tree, which the studio needs" in state["error"]


def test_missing_packages_are_named(folder, monkeypatch):
    from primaps.studio import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'primaps\[studio\]'"):
        serve.run_studio(folder / "images", folder / "out", browser=False)
