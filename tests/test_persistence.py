"""Models are uploaded to a local server that stands in for the hub."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from PIL import Image

from primaps.model import PriMaPsEM
from primaps.persistence import ModelError, push_to_hub
from primaps.utils.errors import InputError

SCORES = {
    "images": 12,
    "options": {"size": 32, "crf": True},
    "accuracy": 0.75,
    "mean_iou": 0.5,
    "iou": {"a|b": 0.5, "c": None},
}


@pytest.fixture
def model(tmp_path, colors):
    fitted = PriMaPsEM(
        2, backbone=colors, patch_size=8, size=32, min_init_steps=2,
        mask_crf=False, device="cpu",
    )  # fmt: skip
    torch.manual_seed(0)
    noise = [Image.effect_noise((48, 40), 90).convert("RGB") for _ in range(4)]
    fitted.fit(noise).save_pretrained(tmp_path / "model")
    names = '{"format": 1, "edits": [{"rename": "0", "to": "x"}, {"rename": "1", "to": "Straße"}]}'
    (tmp_path / "model" / "edits.json").write_text(names, "utf-8")
    (tmp_path / "model" / "private.txt").write_text("mine")
    Image.new("RGB", (8, 8)).save(tmp_path / "model" / "preview.png")
    return tmp_path / "model"


class Hub(BaseHTTPRequestHandler):
    """Accept uploads; files are stored in ``server.files``."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            if self.server.refuse:
                return self.answer({"error": "no"}, 403)
            asked = json.loads(body)
            self.server.asked = asked
            repo = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            return self.answer({"url": f"{self.server.address}/{repo}", "name": repo, "id": "1"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            names = [one["path"] for one in json.loads(body)["files"]]
            files = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    content = base64.b64decode(row["value"]["content"])
                    self.server.files[row["value"]["path"]] = content
            url = f"{self.server.address}/owner/name/commit/1"
            return self.answer({"success": True, "commitOid": "1", "commitUrl": url})
        return self.answer({"error": self.path}, 404)

    def do_GET(self):
        self.answer({"id": "owner/name", "sha": "0", "name": "someone", "siblings": []})

    do_HEAD = do_GET  # noqa: N815

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.refuse = {}, False
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_only_the_model_and_its_card_are_uploaded(model, hub, tmp_path, colors):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    push_to_hub(model, "owner/name", scores=SCORES, token="hf_x", endpoint=hub.address)
    assert sorted(hub.files) == [
        "README.md", "config.json", "edits.json", "history.json", "model.safetensors",
        "preview.png", "tree.safetensors",
    ]  # fmt: skip
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    card = hub.files["README.md"].decode("utf-8")
    for part in ("2 classes", "4 images", "| 1 | Straße |", "accuracy 75.0 %", "preview.png"):
        assert part in card
    (tmp_path / "copy").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "copy" / name).write_bytes(content)
    again = PriMaPsEM.from_pretrained(tmp_path / "copy", backbone=colors, device="cpu")
    assert again.config.classes == 2


def test_a_fitted_model_need_not_be_saved_first(model, hub, colors):
    fitted = PriMaPsEM.from_pretrained(model, backbone=colors, device="cpu")
    push_to_hub(fitted, "owner/name", token="hf_x", endpoint=hub.address)
    assert hub.files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert json.loads(hub.files["edits.json"])["edits"][1]["to"] == "Straße"


def test_the_preview_is_optional(model, hub):
    push_to_hub(model, "owner/name", picture=False, token="hf_x", endpoint=hub.address)
    assert "preview.png" not in hub.files
    assert "preview.png" not in hub.files["README.md"].decode()


def test_errors_are_one_sentence(model, hub, tmp_path):
    hub.refuse = True
    with pytest.raises(InputError, match="the upload to owner/name failed"):
        push_to_hub(model, "owner/name", token="hf_x", endpoint=hub.address)
    with pytest.raises(InputError, match="the upload to"):
        push_to_hub(model, "no such/id/at all", token="hf_x", endpoint=hub.address)
    with pytest.raises(InputError, match="were not written by evaluate"):
        push_to_hub(model, "owner/name", scores={"iou": 3}, token="x", endpoint=hub.address)
    with pytest.raises(ModelError, match="has no config.json"):
        push_to_hub(tmp_path, "owner/name", token="hf_x", endpoint=hub.address)
    assert not hub.files
