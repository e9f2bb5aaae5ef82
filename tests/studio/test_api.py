"""The routes of docs/studio.md, against what the rest of the package says of the same images."""

import contextlib
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from primaps.classes.classes_json import read_legend
from primaps.data import load_image
from primaps.evaluation.audit import Audit
from primaps.exchange import export_labels, import_labels
from primaps.label_maps import predict_files
from primaps.model import PriMaPsEM
from primaps.proposals.principal_masks import propose
from primaps.studio.photos import SIDE, jpeg, photo
from tests.studio.conftest import httpx


def grid(answer):
    """A map of whole numbers as it was sent."""
    width, height = np.frombuffer(answer.content[:4], "<u2")
    kind = {"u8": "u1", "u16": "<u2"}[answer.headers["x-values"]]
    return np.frombuffer(answer.content[4:], kind).reshape(height, width)


def model_of(served):
    return PriMaPsEM.from_pretrained(served.studio.workspace.model, device="cpu")


def test_the_state_says_what_there_is(shared):
    state = shared.get("state").json()
    assert (state["folder"], state["images"], state["stage"]) == ("photos", 10, "fitted")
    assert state["progress"] is None
    assert state["problems"] == []
    model = state["model"]
    assert (model["classes"], model["size"], model["grid"]) == (3, 64, 8)
    assert state["revision"] == shared.get("classes").json()["revision"]
    images = shared.get("images").json()
    assert images["names"][0] == "a/0.png"
    assert images["width"] == images["height"] == [64] * 10
    assert all(0 <= doubt <= 1 for doubt in images["doubt"])
    assert np.allclose(np.sum(images["shares"], 1), 1, atol=1e-3)
    assert shared.get("folders").json()[0] == {"path": "", "images": 10}


def test_parts_and_a_table_are_what_predict_says(shared):
    """Every number of classes, from one map: the palette of the page is the whole of a cut."""
    model = model_of(shared)
    content = shared.get("classes").json()
    tree = content["tree"]
    nodes = [tuple(node["parts"]) for node in tree["nodes"]]
    assert nodes == model.inventory_.tree.leaves
    assert tree["merges"] == model.inventory_.tree.merges.tolist()
    for number in (0, 7):
        parts = grid(shared.get(f"images/{number}/parts"))
        image = load_image(shared.studio.workspace.file(number).source)
        for classes in (1, 2, 3, content["parts"]):
            table = model.inventory_.tree.cut(classes).numpy()
            assert (table[parts] == model.cut(classes).predict(image).numpy()).all()
        logits = shared.get(f"images/{number}/logits").content
        k, h, w = np.frombuffer(logits[:6], "<u2")
        values = np.frombuffer(logits[6:], "<f2").reshape(k, h, w)
        features = model.segment(image).features
        assert np.abs(values - model.logits(features[None])[0].numpy()).max() < 0.02


def test_proposals_are_those_of_the_method(shared):
    from primaps.backbones.backbone import image_features
    from primaps.data import fit_to_patches, to_tensor
    from primaps.proposals.image_size import image_masks

    model = model_of(shared)
    image = photo(shared.studio.workspace.file(2).source)
    scaled = to_tensor(fit_to_patches(image, model.size, 8))[None]
    features = image_features(model.backbone, scaled)
    counts = set()
    for threshold in (0.0, 0.3, 0.6, 0.9):
        found = grid(shared.get("images/2/proposals", threshold=threshold))
        assert (found == propose(features, threshold=threshold)[0].numpy()).all()
        counts.add(int(found.max()))
        refined = grid(shared.get("images/2/proposals", threshold=threshold, crf=1))
        assert (refined == image_masks(features, scaled, threshold=threshold)[0].numpy()).all()
    assert len(counts) > 1
    similar = shared.get("images/2/proposals/1/similar", threshold=0.4).json()
    assert 1 <= len(similar) <= 12
    assert [one["similarity"] for one in similar] == sorted(
        (one["similarity"] for one in similar), reverse=True
    )
    assert len({one["image"] for one in similar} - {2}) == len(similar)
    for one in similar:
        left, top, right, bottom = one["box"]
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
    assert shared.get("images/2/proposals/99/similar").json() == []
    for wrong in ("x", "1", "-0.1", "nan"):
        assert shared.get("images/2/proposals", threshold=wrong).status_code == 400


def test_a_mask_is_most_like_the_same_picture(served):
    """Another file with the same pixels has the most similar mask, with cosine 1."""
    served.seen()
    workspace = served.studio.workspace
    one, other = workspace.file(1).source, workspace.file(8).source
    other.write_bytes(one.read_bytes())
    served.studio.album.summaries.pop(8)
    served.studio.album._looks.put(8, None)
    served.get("images/8/parts")
    first = served.get("images/1/proposals/1/similar", threshold=0.4).json()[0]
    assert first["image"] == 8
    assert first["similarity"] > 0.999


def test_photos_are_upright_and_small(served):
    """What EXIF says is done; a large image is scaled."""
    source = served.studio.workspace.file(0).source
    image = Image.new("RGB", (2000, 1000), (10, 20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(source.with_suffix(".jpg"), exif=exif)
    found = photo(source.with_suffix(".jpg"))
    assert found.size == (SIDE // 2, SIDE)
    assert Image.open(served_file(jpeg(found))).size == (SIDE // 2, SIDE)
    crop = served.get("crops/0.jpg", box="0.25,0.5,0.75,1").content
    assert Image.open(served_file(crop)).size == (32, 32)
    for wrong in ("", "1,2,3", "0,0,2,2", "0.5,0,0.4,1", "nan,0,1,1", "0,0,1,1,1"):
        assert served.get("crops/0.jpg", box=wrong).status_code == 400


def served_file(data):
    import io

    return io.BytesIO(data)


def test_crops_are_of_the_class(shared):
    content = shared.get("classes").json()
    seen = 0
    for one in content["classes"]:
        crops = shared.get(f"classes/{one['id']}/crops").json()
        for crop in [*crops["typical"], *crops["doubtful"]]:
            parts = grid(shared.get(f"images/{crop['image']}/parts"))
            inside = np.isin(parts, one["parts"])
            left, top, right, bottom = (round(64 * side) for side in crop["box"])
            assert inside[top:bottom, left:right].any()
            for edge in (inside[top, left:right], inside[bottom - 1, left:right]):
                assert edge.any()
            seen += 1
        assert one["images"] == sum(
            bool(np.isin(grid(shared.get(f"images/{n}/parts")), one["parts"]).any())
            for n in range(10)
        )
    assert seen >= 6
    node = content["tree"]["nodes"][-1]["id"]  # a number of classes that is only tried
    assert shared.get(f"classes/{node}/crops").json()["typical"]
    assert shared.get("classes/none/crops").json() == {"typical": [], "doubtful": []}


def test_edits_land_in_the_model(served):
    content = served.get("classes").json()
    one, other = content["classes"][0]["id"], content["classes"][1]["id"]
    steps = [
        {"edits": [{"rename": one, "to": "sky"}, {"color": one, "to": "#010203"}]},
        {"edits": [{"merge": [one, other]}]},
        {"edits": [{"split": f"{one}+{other}"}, {"hide": other}]},
    ]
    for step in steps:
        answer = served.post("classes", revision=content["revision"], **step)
        assert answer.status_code == 200, answer.text
        content = answer.json()
        found = read_legend(served.studio.workspace.model, served.studio.inventory.tree)
        assert [c["name"] for c in content["classes"]] == [c.name for c in found.classes]
        assert [c["hidden"] for c in content["classes"]] == [c.hidden for c in found.classes]
    assert content["classes"][0]["color"] == "#010203"
    old = content["revision"]
    content = served.post("classes/cut", revision=old, classes=2).json()
    assert len(content["classes"]) == 2
    stale = served.post("classes/cut", revision=old, classes=3)
    assert (stale.status_code, "another tab" in stale.json()["error"]) == (409, True)
    content = served.post("undo", revision=content["revision"]).json()
    assert (len(content["classes"]), content["redo"]) == (3, "2 classes")
    content = served.post("redo", revision=content["revision"]).json()
    assert len(content["classes"]) == 2
    assert "image" not in content


def test_a_correction_is_painted_counted_and_exported(served, tmp_path):
    served.seen()
    content = served.get("classes").json()
    before = grid(served.get("images/3/parts"))
    shares = served.get("images").json()["shares"][3]
    one = content["classes"][2]
    runs = [[64 * row + 5, 40] for row in range(10, 40)]
    answer = served.post("images/3/correction", **{"class": one["id"], "runs": runs},
                         revision=content["revision"]).json()  # fmt: skip
    assert answer["image"] == 3
    assert answer["undo"] == "correction of a/3"
    painted = before.copy()
    painted[10:40, 5:45] = one["parts"][0]
    assert (grid(served.get("images/3/parts")) == painted).all()
    images = served.get("images").json()
    assert images["corrected"] == [3]
    counts = np.bincount(painted.ravel(), minlength=content["parts"]) / painted.size
    assert np.allclose(images["shares"][3], counts, atol=1e-4)
    assert images["shares"][3] != shares
    # Hide one class, export the corrected image, and read it back with the tool's own reader.
    hidden = content["classes"][0]
    answer = served.post("classes", revision=answer["revision"], edits=[{"hide": hidden["id"]}])
    answer = answer.json()
    folders = []
    for form in ("coco", "voc", "coco"):
        assert served.post("export", format=form, images="corrected").status_code == 200
        while (job := served.get("export").json()["job"])["out"] is None:
            assert not job["error"]
            time.sleep(0.02)
        folders.append(job["out"])
        assert job["next"]
    assert [folder.rsplit("/", 1)[1] for folder in folders] == ["coco-1", "voc-1", "coco-2"]
    assert not list((served.root / "exports").glob(".*"))
    import_labels(folders[1], "voc", tmp_path / "back")
    (file,) = (tmp_path / "back").rglob("*.png")
    back = np.asarray(Image.open(file))
    table = read_legend(served.studio.workspace.model, served.studio.inventory.tree).table()
    assert (back == table.numpy()[painted]).all()
    assert (back == 255).any()
    annotations = json.loads(Path(f"{folders[0]}/annotations.json").read_text())
    assert [image["file_name"] for image in annotations["images"]] == ["a/3.png"]
    # Undone, it is gone from everything.
    answer = served.post("undo", revision=answer["revision"]).json()
    answer = served.post("undo", revision=answer["revision"]).json()
    assert answer["image"] == 3
    assert (grid(served.get("images/3/parts")) == before).all()
    assert served.get("images").json()["corrected"] == []
    assert served.get("images").json()["shares"][3] == shares
    assert served.post("export", format="coco", images="corrected").status_code == 400


def test_an_export_of_all_is_what_predict_and_export_give(served, tmp_path):
    served.seen()
    workspace = served.studio.workspace
    assert served.post("export", format="nonsense").status_code == 400
    served.post("export", format="cvat", per="region")
    while (job := served.get("export").json()["job"])["out"] is None:
        assert not job["error"]
        time.sleep(0.02)
    assert job["done"] == job["total"] == 20
    predict_files(model_of(served), workspace.photos, tmp_path / "maps")
    export_labels(
        tmp_path / "maps", workspace.photos, "cvat", tmp_path / "cvat",
        classes=workspace.model, per="region",
    )  # fmt: skip
    ours = (workspace.out / "exports" / "cvat-1" / "annotations.xml").read_bytes()
    assert ours == (tmp_path / "cvat" / "annotations.xml").read_bytes()


def test_the_audit_goes_on_and_grows_stale(served):
    served.seen()
    assert served.get("audit").json() == {
        "question": None, "done": 0, "total": 0, "estimate": None, "stale": False,
    }  # fmt: skip
    assert served.post("audit/answer", right=True, done=0).status_code == 409
    assert served.post("audit/undo").status_code == 409
    page = served.post("audit", answers=12).json()
    assert (page["done"], page["total"]) == (0, 12)
    answers = []
    while (question := page["question"]) is not None:
        parts = grid(served.get(f"images/{question['image']}/parts"))
        y, x = int(question["y"] * 64), int(question["x"] * 64)
        found = read_legend(served.studio.workspace.model, served.studio.inventory.tree)
        one = found.shown[int(found.table()[int(parts[y, x])])]
        assert question["class"] == one.name
        assert question["color"] == "#" + bytes(one.color).hex()
        answers.append(len(answers) % 4 != 3)
        before, done = page, page["done"]
        page = served.post("audit/answer", right=answers[-1], done=done).json()
        late = served.post("audit/answer", right=answers[-1], done=done)
        assert (late.status_code, "another tab" in late.text or page["done"] == 12) == (409, True)
        if len(answers) == 5:
            assert served.post("audit/undo").json() == before
            assert served.post("audit/answer", right=None, done=done).json()["done"] == done
            assert served.post("audit/undo").json() == before
            page = served.post("audit/answer", right=answers[-1], done=done).json()
    assert page["done"] == 12
    kept = Audit.load(served.root / "audit")
    assert kept.estimate().accuracy == page["estimate"]["accuracy"] == np.mean(answers)
    assert page["estimate"]["low"] < page["estimate"]["accuracy"] < page["estimate"]["high"]
    # `primaps audit` goes on with it: the same model, the same names.
    from primaps.evaluation.audit_questions import about

    assert kept.record.about == about(model_of(served))
    revision = served.get("classes").json()["revision"]
    served.post("classes", revision=revision, edits=[{"rename": "0", "to": "sky"}])
    assert served.get("audit").json()["stale"]
    assert served.post("audit", answers=5).json()["done"] == 0
    assert Audit.load(served.root / "audit-1").progress == (12, 12)


def test_an_audit_that_is_refused_leaves_the_one_before(served):
    served.seen()
    assert served.post("audit", answers=5).json()["total"] == 5
    content = served.get("classes").json()
    edits = [{"hide": one["id"]} for one in content["classes"]]
    served.post("classes", revision=content["revision"], edits=edits)
    assert served.post("audit", answers=7).status_code == 400
    assert served.get("audit").json()["total"] == 5
    assert not (served.root / "audit-1").exists()


def test_photos_are_kept_for_as_long_as_they_have_their_number(folder):
    from primaps.studio.workspace import opened
    from tests.studio.conftest import serving

    def kept(served, of):
        names = ("images/0/photo.jpg", "images/0/thumb.jpg", "crops/0.jpg")
        found = [served.get(name, of=of, box="0,0,1,1") for name in names]
        return {"max-age" in answer.headers["cache-control"] for answer in found}

    with opened(folder / "photos", folder / "out", {}) as workspace, serving(workspace) as served:
        first = served.get("state").json()["collection"]
        assert kept(served, first) == {True}
        whole = served.get("images/0/photo.jpg", of=first).content
        second = served.post("folder", path="b").json()["collection"]
        assert second != first
        assert (kept(served, first), kept(served, second)) == ({False}, {True})
        assert served.get("images/0/photo.jpg", of=second).content != whole
        workspace.begin(3)
    with opened(folder / "photos", folder / "out", {}) as again:
        third = again.collection
    with opened(folder / "photos", folder / "out", {}) as again:
        assert again.collection == third


def test_a_fit_is_of_the_whole_folder_that_is_being_chosen(folder, monkeypatch):
    """And no plan, which follows a choice, ends it."""
    from primaps.studio import workspace as module
    from primaps.studio.studio import Studio

    begun, go_on, calls = threading.Event(), threading.Event(), []
    given = folder / "photos", folder / "out", {}
    with module.opened(*given) as workspace:
        studio = Studio(workspace, 3, "cpu")
        monkeypatch.setattr(studio.fitting, "plan", lambda task: calls.append("plan"))
        monkeypatch.setattr(
            studio.fitting, "fit", lambda task, done: calls.append(len(task["images"]))
        )
        size = module.image_size

        def slow(path):
            begun.set()
            assert go_on.wait(20)
            return size(path)

        monkeypatch.setattr(module, "image_size", slow)
        choosing = threading.Thread(target=studio.choose, args=("b",))
        fitting = threading.Thread(target=studio.fit, args=(3,))
        choosing.start()
        assert begun.wait(20)
        assert len(workspace.images) == 10  # whole at any moment
        fitting.start()
        fitting.join(0.3)
        go_on.set()
        choosing.join(20)
        fitting.join(20)
        assert calls == ["plan", 4]
        assert len(workspace.record.images) == 4


def test_tabs_hear_of_edits_and_of_the_end(served):
    served.seen()
    events, begun = [], threading.Event()

    def listen():
        stream = served.client.stream("GET", "/api/events")
        with contextlib.suppress(httpx.ReadError), stream as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                events.append(line)
                begun.set()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert begun.wait(10)
    assert events[0] == "event: state"
    revision = served.get("classes").json()["revision"]
    new = served.post("classes", revision=revision, edits=[{"rename": "0", "to": "sky"}]).json()
    # And of another program's.
    from primaps.classes.classes_json import change_edits

    tree = served.studio.inventory.tree
    change_edits(served.studio.workspace.model, tree, lambda edits: [*edits, {"hide": "1"}])
    newest = served.get("classes").json()["revision"]
    wanted = [f'data: {{"revision": "{one}"}}' for one in (new["revision"], newest)]
    for _ in range(200):
        if set(wanted) <= set(events):
            break
        time.sleep(0.05)
    assert set(wanted) <= set(events), events
    assert "event: classes" in events


def test_an_image_that_vanishes_is_named_and_the_others_go_on(folder):
    from primaps.studio.workspace import opened
    from tests.conftest import painted
    from tests.studio.conftest import serving

    (folder / "photos" / "a" / "damaged.png").write_bytes(b"no image")
    given = folder / "photos", folder / "out", {}, folder / "model"
    with opened(*given) as workspace, serving(workspace) as served:
        served.seen()
        state = served.get("state").json()
        assert [one for one in state["problems"] if "damaged.png" in one]
        assert state["images"] == 11
        number = served.get("images").json()["names"].index("a/damaged.png")
        for kind in ("photo.jpg", "thumb.jpg", "parts", "proposals"):
            answer = served.get(f"images/{number}/{kind}")
            assert answer.status_code == 400
            assert "damaged.png" in answer.json()["error"]
        assert served.get("images").json()["doubt"][number] is None
        assert served.post("export", format="coco").json()["images"] == 10
        # One that vanishes meanwhile is left out of the report, and one that is mended comes back.
        (folder / "photos" / "a" / "1.png").write_bytes(b"no image")
        served.studio.album._looks.put(1, None)
        assert served.get("report.html").status_code == 200
        painted(3)[0].save(folder / "photos" / "a" / "damaged.png")
        assert served.get(f"images/{number}/parts").status_code == 200
        assert served.studio.album.seen == 11
        assert not [one for one in served.studio.album.lost if one == number]
        served.studio.album.clear()
        assert served.get("images/2/thumb.jpg").status_code == 200
        served.studio.album.clear()
        (folder / "photos" / "a" / "2.png").unlink()
        assert served.get("images/2/thumb.jpg").status_code == 400
    (folder / "photos" / "b" / "7.png").unlink()
    with opened(*given) as workspace, serving(workspace) as served:
        served.seen()
        assert any("7.png is not there" in one for one in served.get("state").json()["problems"])


def test_looks_are_kept_and_found_anew_if_the_image_changed(folder):
    from tests.conftest import painted
    from tests.studio.conftest import model_served

    with model_served(folder) as served:
        before = [grid(served.seen().get(f"images/{n}/parts")) for n in (0, 1)]
    times = {path: path.stat().st_mtime_ns for path in (folder / "out" / "looks").rglob("*.npz")}
    assert len(times) == 10
    painted(77)[0].save(folder / "photos" / "a" / "0.png")
    with model_served(folder) as served:
        after = [grid(served.seen().get(f"images/{n}/parts")) for n in (0, 1)]
        image = load_image(folder / "photos" / "a" / "0.png")
        tree = served.studio.inventory.tree
        whole = torch.from_numpy(after[0].astype(np.int64))
        assert torch.equal(tree.cut(3)[whole], model_of(served).predict(image).long())
    assert (before[1] == after[1]).all()
    changed = [path for path, at in times.items() if path.stat().st_mtime_ns != at]
    assert [path.name for path in changed] == ["0.npz"]


@pytest.mark.parametrize("name", ["state", "folders", "images", "classes", "audit", "export"])
def test_answers_are_json_for_a_page(shared, name):
    answer = shared.get(name)
    assert answer.headers["content-type"] == "application/json"
    json.loads(answer.content.decode("utf-8"), parse_constant=lambda text: pytest.fail(text))
