"""Rejected requests: other sites, other names, other machines, path traversal."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from primaps.studio.security import HEADERS, MAX_BODY
from primaps.studio.serve import run_studio
from tests.conftest import painted
from tests.studio.conftest import TOKEN


def request(served, target="/api/state", method="GET", host=None, more=(), body=b""):
    """Status and the whole answer of a request written by hand, with the cookie."""
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"Host: {name}" for name in ([f"127.0.0.1:{served.port}"] if host is None else host)]
    lines += [f"Cookie: primaps-{served.port}={TOKEN}", "Connection: close", *more]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    answer = served.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    return int(answer.split(b" ", 2)[1]), answer


@pytest.mark.parametrize(
    "host",
    [
        ["evil.example"], ["evil.example:{port}"], ["127.0.0.1"], ["127.0.0.1:1"], ["localhost"],
        ["127.0.0.1:{port}.evil.example"], ["127.0.0.1:{port}@evil.example"], [""], [],
        ["127.0.0.1:{port}", "evil.example"], ["evil.example", "127.0.0.1:{port}"],
        ["127.0.0.1:{port}, evil.example"], ["0.0.0.0:{port}"], ["127.1:{port}"],
        ["2130706433:{port}"], ["localhost.:{port}"],
    ],
)  # fmt: skip
def test_dns_rebinding_is_rejected(shared, host):
    """DNS rebinding: only the raw Host header tells whose page it is."""
    named = [name.format(port=shared.port) for name in host]
    status, answer = request(shared, host=named)
    assert status in (400, 403), answer
    assert b"folder" not in answer


def test_a_forwarded_port_is_told_about_allow_host(shared):
    status, answer = request(shared, host=["localhost:9000"])
    assert status == 403
    assert b"start it with --allow-host localhost:9000" in answer
    assert b"--allow-host" not in request(shared, host=["<b>:1"])[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_own_names_are_accepted(shared, host):
    assert request(shared, host=[f"{host}:{shared.port}"])[0] == 200


@pytest.mark.parametrize("target", ["http://evil.example/api/state", "//evil.example/api/state"])
def test_absolute_request_targets_are_rejected(shared, target):
    """Absolute form: the target would outvote the Host header."""
    assert request(shared, target)[0] == 400
    own = f"http://127.0.0.1:{shared.port}/api/state"
    assert request(shared, own, host=["evil.example"])[0] in (400, 403)


def test_http_1_0_without_host_is_rejected(shared):
    answer = shared.raw(
        f"GET /api/state HTTP/1.0\r\nCookie: primaps-{shared.port}={TOKEN}\r\n\r\n".encode()
    )
    assert answer.split(b" ", 2)[1] in (b"400", b"403")


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:1", None,
        "https://127.0.0.1:{port}", "http://localhost:{port}", "http://127.0.0.1:{port}.evil.example",
        "http://127.0.0.1:{port}/", "file://",
    ],
)  # fmt: skip
def test_cross_origin_changes_are_rejected(shared, origin):
    """Cross-site POST: foreign, null and missing Origin; also that of another port."""
    before = shared.get("classes").json()
    body = json.dumps({"revision": before["revision"], "edits": [{"hide": "0"}]}).encode()
    more = [] if origin is None else [f"Origin: {origin.format(port=shared.port)}"]
    for kind in ("application/json", "text/plain"):  # forms can send the second one
        status, _ = request(
            shared, "/api/classes", "POST", more=[*more, f"Content-Type: {kind}"], body=body
        )
        assert status == 403
    assert shared.get("classes").json() == before


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_rejected(shared, method):
    more = [f"Origin: http://127.0.0.1:{shared.port}"]
    assert request(shared, "/api/classes", method, more=more)[0] == 405
    assert request(shared, "/api/classes", method)[0] == 403
    assert b"access-control" not in request(shared, "/api/classes", method, more=more)[1].lower()


def test_embedding_by_other_sites_is_rejected(shared):
    """A script or image element of another page on this machine would send the cookie."""
    for site in ("cross-site", "same-site"):
        for target in ("/api/images/0/image.jpg", "/api/state", "/"):
            more = [f"Sec-Fetch-Site: {site}", "Sec-Fetch-Mode: no-cors"]
            assert request(shared, target, more=more)[0] == 403
    own = ["Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"]
    assert request(shared, more=own)[0] == 200


@pytest.mark.parametrize("cookie", ["", "wrong", TOKEN[:-1], TOKEN + "x", "\x00", "ä"])
@pytest.mark.parametrize(
    "target", ["/", "/api/state", "/static/index.html", "/api/images/0/image.jpg", "/nothing"]
)
def test_requests_without_the_token_are_rejected(shared, target, cookie):
    lines = [f"GET {target} HTTP/1.1", f"Host: 127.0.0.1:{shared.port}", "Connection: close"]
    lines += [f"Cookie: primaps-{shared.port}={cookie}", f"Cookie: primaps-1={TOKEN}"]
    answer = shared.raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
    assert answer.split(b" ", 2)[1] in (b"400", b"403")


def test_the_token_becomes_an_http_only_cookie(shared):
    plain = {"Cookie": ""}
    for wrong in ("", "x", TOKEN + "1"):
        found = shared.client.get("/", params={"token": wrong}, headers=plain)
        assert found.status_code == 403
    found = shared.client.get(f"/?token={TOKEN}&token=x", headers=plain)
    assert found.status_code == 403
    found = shared.client.get("/", params={"token": TOKEN}, headers=plain)
    assert (found.status_code, found.headers["location"]) == (303, "/")
    words = {word.strip() for word in found.headers["set-cookie"].split(";")}
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} < words
    assert (
        shared.client.get("/api/state", params={"token": TOKEN}, headers=plain).status_code == 403
    )


SECRET = "what nobody may read"
STEPS = (
    "..",
    "%2e%2e",
    "%2E%2E",
    ".%2e",
    "%252e%252e",
    "..%00",
    "..;",
    "\\..",
    "%5c..",
    "%c0%ae%c0%ae",
)
SLASHES = ("/", "%2f", "%2F", "%252f", "\\", "%5c", "%c0%af", "//")


@pytest.mark.parametrize(
    "start",
    [
        "/",
        "/static/",
        "/api/",
        "/api/images/",
        "/api/images/0/",
        "/api/crops/",
        "/static/css/",
        "/api/classes/",
    ],
)
def test_path_traversal_is_rejected(shared, start):
    """Traversal in every encoding, from every folder, to a file beside the images."""
    (shared.root.parent / "secret.txt").write_text(SECRET)
    (shared.root / "secret.txt").write_text(SECRET)
    targets = [
        start + (step + slash) * times + name
        for step in STEPS
        for slash in SLASHES
        for times in (1, 2, 6)
        for name in ("secret.txt", "etc/passwd")
    ]
    targets += [start + name for name in ("/etc/passwd", "%2fetc%2fpasswd", "file:///etc/passwd")]
    for target in targets:
        status, answer = request(shared, target)
        assert status in (400, 403, 404), (target, answer)
        assert SECRET.encode() not in answer
        assert b"root:" not in answer


@pytest.mark.parametrize(
    "path", ["..", "../images", "/etc", "a/..", "a/../..", "./a", "a/", "\x00", "A" * 300]
)
def test_only_listed_folders_can_be_chosen(folder, path):
    from primaps.studio.workspace import open_workspace
    from tests.studio.conftest import serving

    with (
        open_workspace(folder / "images", folder / "new", {}) as workspace,
        serving(workspace) as served,
    ):
        listed = [one["path"] for one in served.get("folders").json()]
        assert listed == ["", "a", "b"]
        found = served.post("folder", path=path)
        assert found.status_code == 400
        assert "not a folder with images" in found.json()["error"]
        assert served.get("state").json()["images"] == 10
        assert served.post("folder", path="a").json()["images"] == 6


def test_images_are_addressed_by_number(shared):
    for number in (
        "-1",
        "10",
        "99999999999999999999",
        "0x1",
        "1.0",
        "%30%2e%2e",
        "..",
        "a%2f0.png",
    ):
        for end in ("image.jpg", "thumbnail.jpg", "leaves", "logits", "proposals"):
            assert request(shared, f"/api/images/{number}/{end}")[0] == 404, number


SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def test_class_names_are_escaped(served):
    served.seen()
    revision = served.get("classes").json()["revision"]
    name = "</script><img src=x onerror=alert(1)>&\"'"
    answer = served.post("classes", revision=revision, edits=[{"rename": "0", "to": name}])
    assert name in [one["name"] for one in answer.json()["classes"]]
    assert answer.headers["content-type"] == "application/json"
    report = served.get("report.html")
    assert report.status_code == 200
    assert name not in report.text
    assert "&lt;img src=x onerror=alert(1)&gt;" in report.text
    assert "script-src" not in report.headers["content-security-policy"]
    assert "default-src 'none'" in report.headers["content-security-policy"]
    wanted = served.get(f"classes/{name}/crops")
    assert wanted.headers["content-type"] == "application/json"


def test_file_names_are_escaped(folder):
    from primaps.studio.workspace import open_workspace
    from tests.studio.conftest import serving

    odd = SCRIPT.replace("/", "_") + ".png"
    painted(1)[0].save(folder / "images" / odd)
    (folder / "images" / f"damaged{odd}").write_bytes(b"no image")
    with (
        open_workspace(folder / "images", folder / "new", {}) as workspace,
        serving(workspace) as served,
    ):
        found = served.get("images")
        assert odd in found.json()["names"]
        assert found.headers["content-type"] == "application/json"
        state = served.get("state")
        assert any("damaged" in sentence for sentence in state.json()["skipped"])
        number = found.json()["names"].index(odd)
        assert served.get(f"images/{number}/image.jpg").headers["content-type"] == "image/jpeg"


def test_metadata_of_images_is_not_sent(folder):
    """EXIF, comments and XMP: a place, a name, or a script for somebody's viewer."""
    from primaps.studio.workspace import open_workspace
    from tests.studio.conftest import serving

    image = painted(1)[0]
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = SCRIPT, "a secret name"
    path = folder / "images" / "exif.jpg"
    image.save(path, exif=exif, comment=SCRIPT.encode(), xmp=b"<x>" + SCRIPT.encode() + b"</x>")
    assert SCRIPT.encode() in path.read_bytes()
    with (
        open_workspace(folder / "images", folder / "new", {}) as workspace,
        serving(workspace) as served,
    ):
        number = served.get("images").json()["names"].index("exif.jpg")
        for request_ in (f"images/{number}/image.jpg", f"images/{number}/thumbnail.jpg"):
            data = served.get(request_).content
            assert b"alert" not in data
            assert b"secret name" not in data
            assert b"Exif" not in data
        data = served.get(f"crops/{number}.jpg", box="0,0,1,1").content
        assert b"alert" not in data


def test_every_response_has_the_security_headers(shared):
    wanted = {name.decode(): value.decode() for name, value in HEADERS.items()}
    for answer in (
        shared.client.get("/"),
        shared.client.get("/static/nothing.js"),
        shared.client.get("/nothing"),
        shared.get("state"),
        shared.get("images/0/thumbnail.jpg"),
        shared.get("images/99/thumbnail.jpg"),
        shared.post("classes", nonsense=1),
        shared.client.get("/", params={"token": "wrong"}),
        shared.client.get("/", params={"token": TOKEN}),
        shared.client.get("/api/state", headers={"Host": "evil.example"}),
    ):
        for name, value in wanted.items():
            if name != "cache-control":
                assert answer.headers[name] == value, answer.url
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
    policy = wanted["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?:|\*", policy)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"), (b"{", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[]", "it must be"),
        (b"null", "it must be"), (b"{}", 'field "revision" is missing'),
        (b'{"revision": 1, "edits": []}', '"revision" is 1'),
        (b'{"revision": "", "edits": []}', "it must be at least 1"),
        (b'{"revision": "", "edits": [1]}', "it must be an object"),
        (b'{"revision": "", "edits": [{"hide": 3}]}', "it must be a string or a list"),
        (b'{"revision": "", "edits": [{"hide": "0"}], "more": 1}', "is unknown"),
        (b'{"revision": "", "edits": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deeply"),
        (b'{"revision": NaN, "edits": [{"hide": "0"}]}', "NaN is not a valid JSON number"),
        (b'{"revision": "' + b"9" * 5000 + b'", "edits": [{"hide": "0"}]}', "has the length 5000"),
    ],
)  # fmt: skip
def test_invalid_requests_get_one_sentence(shared, body, words):
    headers = {"Content-Type": "application/json"}
    found = shared.client.post("/api/classes", content=body, headers=headers)
    assert found.status_code == 400
    assert words in found.json()["error"]
    assert "\n" not in found.json()["error"]


def test_large_requests_are_rejected(shared):
    found = shared.client.post("/api/classes", content=b"x" * (MAX_BODY + 1))
    assert found.status_code == 413
    assert "bytes" in found.json()["error"]

    def pieces():
        for _ in range(MAX_BODY // (1 << 20) + 1):
            yield b" " * (1 << 20)

    assert shared.client.post("/api/classes", content=pieces()).status_code == 413


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_machines_need_allow_host(folder, host):
    with pytest.raises(ValueError, match="also give --allow-host NAME.*not encrypted"):
        run_studio(folder / "images", folder / "new", host=host, browser=False)
    assert not Path(folder / "new").exists()


def test_only_allowed_names_are_accepted(folder):
    from primaps.studio.serve import create_app
    from primaps.studio.studio import Studio
    from primaps.studio.workspace import open_workspace

    with open_workspace(folder / "images", folder / "new", {}) as workspace:
        names = ["desk.example", "localhost:9000", "[::2]", "[::3]:9000"]
        guard = create_app(Studio(workspace, 3, "cpu"), TOKEN, 8080, names)
        assert b"desk.example:8080" in guard.hosts
        assert {b"localhost:9000", b"[::2]:8080", b"[::3]:9000"} < guard.hosts
        assert b"other.example:8080" not in guard.hosts
