"""The routes of docs/studio.md, compared with the results of the library."""

import contextlib
import hashlib
import json
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import primaps
from primaps.batch import predict_files
from primaps.data import ImageFile, load_image
from primaps.evaluation.audit import Audit
from primaps.exchange.formats import FORMATS
from primaps.exchange.transfer import export_labels, import_labels
from primaps.model import PriMaPsEM
from primaps.persistence import read_legend
from primaps.proposals.principal_masks import propose
from primaps.studio.analysis import cache_key, load_analysis
from primaps.studio.export import next_steps
from primaps.studio.images import DISPLAY_SIDE, display_image, encode_jpeg
from tests.studio.conftest import httpx


def grid(answer):
    """Decode a label map."""
    width, height = np.frombuffer(answer.content[:4], "<u2")
    kind = {"u8": "u1", "u16": "<u2"}[answer.headers["x-values"]]
    return np.frombuffer(answer.content[4:], kind).reshape(height, width)


def model_of(served):
    return PriMaPsEM.from_pretrained(served.studio.workspace.model, device="cpu")


def test_state_and_images(shared):
    state = shared.get("state").json()
    assert (state["folder"], state["images"], state["stage"]) == ("images", 10, "fitted")
    assert state["progress"] is None
    assert state["skipped"] == []
    model = state["model"]
    assert (model["classes"], model["size"], model["patch_size"]) == (3, 64, 8)
    assert state["revision"] == shared.get("classes").json()["revision"]
    images = shared.get("images").json()
    assert images["names"][0] == "a/0.png"
    assert images["width"] == images["height"] == [64] * 10
    assert all(0 <= uncertainty <= 1 for uncertainty in images["uncertainty"])
    assert np.allclose(np.sum(images["shares"], 1), 1, atol=1e-3)
    assert shared.get("folders").json()[0] == {"path": "", "images": 10}


def test_leaf_map_and_cut_equal_predict(shared):
    """One leaf map gives the label map of every number of classes."""
    model = model_of(shared)
    content = shared.get("classes").json()
    tree = content["tree"]
    nodes = [tuple(node["leaves"]) for node in tree["nodes"]]
    assert nodes == model.class_summary_.tree.node_leaves
    assert tree["merges"] == model.class_summary_.tree.merges.tolist()
    for number in (0, 7):
        leaves = grid(shared.get(f"images/{number}/leaves"))
        image = load_image(shared.studio.workspace.file(number).source)
        for classes in (1, 2, 3, content["leaves"]):
            table = model.class_summary_.tree.cut(classes).numpy()
            assert (table[leaves] == model.cut(classes).predict(image).numpy()).all()
        logits = shared.get(f"images/{number}/logits").content
        k, h, w = np.frombuffer(logits[:6], "<u2")
        values = np.frombuffer(logits[6:], "<f2").reshape(k, h, w)
        features = model.segment(image).features
        assert np.abs(values - model.segmenter.logits(features[None])[0].numpy()).max() < 0.02


def test_proposals_equal_the_library(shared):
    from primaps.backbones.backbone import image_features
    from primaps.data import fit_to_patches, to_tensor
    from primaps.proposals.image_size import image_masks

    model = model_of(shared)
    image = display_image(shared.studio.workspace.file(2))
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


def test_an_identical_image_has_the_most_similar_region(served):
    """A file with the same pixels has the most similar region, with cosine 1."""
    served.seen()
    workspace = served.studio.workspace
    one, other = workspace.file(1).source, workspace.file(8).source
    other.write_bytes(one.read_bytes())
    served.studio.images.summaries.pop(8)
    served.studio.images._analyses.put(8, None)
    served.get("images/8/leaves")
    first = served.get("images/1/proposals/1/similar", threshold=0.4).json()[0]
    assert first["image"] == 8
    assert first["similarity"] > 0.999


def test_images_are_upright_and_scaled_down(served):
    """The EXIF orientation is applied, and a large image is scaled down."""
    source = served.studio.workspace.file(0).source
    image = Image.new("RGB", (2000, 1000), (10, 20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(source.with_suffix(".jpg"), exif=exif)
    found = display_image(ImageFile(source.with_suffix(".jpg"), "a"))
    assert found.size == (DISPLAY_SIDE // 2, DISPLAY_SIDE)
    assert Image.open(served_file(encode_jpeg(found))).size == (DISPLAY_SIDE // 2, DISPLAY_SIDE)
    crop = served.get("crops/0.jpg", box="0.25,0.5,0.75,1").content
    assert Image.open(served_file(crop)).size == (32, 32)
    for wrong in ("", "1,2,3", "0,0,2,2", "0.5,0,0.4,1", "nan,0,1,1", "0,0,1,1,1"):
        assert served.get("crops/0.jpg", box=wrong).status_code == 400


def served_file(data):
    import io

    return io.BytesIO(data)


def test_crops_contain_the_class(shared):
    content = shared.get("classes").json()
    seen = 0
    for one in content["classes"]:
        crops = shared.get(f"classes/{one['id']}/crops").json()
        for crop in [*crops["typical"], *crops["uncertain"]]:
            leaves = grid(shared.get(f"images/{crop['image']}/leaves"))
            inside = np.isin(leaves, one["leaves"])
            left, top, right, bottom = (round(64 * side) for side in crop["box"])
            assert inside[top:bottom, left:right].any()
            for edge in (inside[top, left:right], inside[bottom - 1, left:right]):
                assert edge.any()
            seen += 1
        assert one["images"] == sum(
            bool(np.isin(grid(shared.get(f"images/{n}/leaves")), one["leaves"]).any())
            for n in range(10)
        )
    assert seen >= 6
    node = content["tree"]["nodes"][-1]["id"]  # a number of classes that is only tried
    assert shared.get(f"classes/{node}/crops").json()["typical"]
    assert shared.get("classes/none/crops").json() == {"typical": [], "uncertain": []}


def test_edits_are_saved_in_the_model(served):
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
        found = read_legend(served.studio.workspace.model, served.studio.class_summary.tree)
        assert [c["name"] for c in content["classes"]] == [c.name for c in found.classes]
        assert [c["hidden"] for c in content["classes"]] == [c.hidden for c in found.classes]
    assert content["classes"][0]["color"] == "#010203"
    old = content["revision"]
    content = served.post("classes/cut", revision=old, classes=2).json()
    assert len(content["classes"]) == 2
    stale = served.post("classes/cut", revision=old, classes=3)
    assert (stale.status_code, "another tab" in stale.json()["error"]) == (409, True)
    content = served.post("undo", revision=content["revision"]).json()
    assert (len(content["classes"]), content["redo"]) == (3, "changed to 2 classes")
    content = served.post("redo", revision=content["revision"]).json()
    assert len(content["classes"]) == 2
    assert "image" not in content


def test_a_correction_is_painted_counted_and_exported(served, tmp_path):
    served.seen()
    content = served.get("classes").json()
    before = grid(served.get("images/3/leaves"))
    shares = served.get("images").json()["shares"][3]
    one = content["classes"][2]
    runs = [[64 * row + 5, 40] for row in range(10, 40)]
    answer = served.correct(3, one["id"], runs, content["revision"]).json()
    assert answer["image"] == 3
    assert answer["undo"] == "corrected a/3"
    painted = before.copy()
    painted[10:40, 5:45] = one["leaves"][0]
    assert (grid(served.get("images/3/leaves")) == painted).all()
    images = served.get("images").json()
    assert images["corrected"] == [3]
    counts = np.bincount(painted.ravel(), minlength=content["leaves"]) / painted.size
    assert np.allclose(images["shares"][3], counts, atol=1e-4)
    assert images["shares"][3] != shares
    # Hide a class, export the corrected image, and import it again.
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
    table = read_legend(served.studio.workspace.model, served.studio.class_summary.tree).table()
    assert (back == table.numpy()[painted]).all()
    assert (back == 255).any()
    annotations = json.loads(Path(f"{folders[0]}/annotations.json").read_text())
    assert [image["file_name"] for image in annotations["images"]] == ["a/3.png"]
    # After undo the correction is gone everywhere.
    answer = served.post("undo", revision=answer["revision"]).json()
    answer = served.post("undo", revision=answer["revision"]).json()
    assert answer["image"] == 3
    assert (grid(served.get("images/3/leaves")) == before).all()
    assert served.get("images").json()["corrected"] == []
    assert served.get("images").json()["shares"][3] == shares
    assert served.post("export", format="coco", images="corrected").status_code == 400


def test_a_correction_of_another_image_is_rejected(served):
    """Its map was painted over in the page while the next image was opened."""
    served.seen()
    revision = served.get("classes").json()["revision"]
    runs = [[0, 64]]
    wrong = served.correct(3, "1", runs, revision, key="a/4")
    assert (wrong.status_code, "painted on a/4, not on a/3" in wrong.text) == (409, True)
    digest = served.get("images/4/leaves").headers["x-digest"]
    wrong = served.correct(3, "1", runs, revision, digest=digest)
    assert (wrong.status_code, "was replaced after" in wrong.text) == (409, True)
    content = {"class": "1", "runs": runs, "revision": revision}
    assert served.post("images/3/correction", **content).status_code == 400
    # The file is replaced: the correction of the old image is rejected, the new one is analyzed.
    before = grid(served.get("images/3/leaves"))
    digest = served.get("images/3/leaves").headers["x-digest"]
    source = served.studio.workspace.file(3).source
    source.write_bytes(served.studio.workspace.file(7).source.read_bytes())
    assert served.correct(3, "1", runs, revision, digest=digest).status_code == 409
    assert (grid(served.get("images/3/leaves")) != before).any()
    assert served.get("images").json()["corrected"] == []
    assert served.correct(3, "1", runs, revision).status_code == 200
    line = json.loads((served.root / "history.jsonl").read_text())
    assert line["digest"] == hashlib.sha256(source.read_bytes()).hexdigest()


def test_a_change_that_is_sent_again_is_made_once(served):
    """The page sends a change again if the server was killed before it answered."""
    served.seen()
    revision = served.get("classes").json()["revision"]
    sent = {"revision": revision, "edits": [{"rename": "0", "to": "sky"}], "change": "one"}
    first = served.post("classes", **sent)
    assert served.post("classes", **sent).json() == first.json()
    assert served.post("classes", **{**sent, "change": "two"}).status_code == 409
    undo = {"revision": first.json()["revision"], "change": "three"}
    back = served.post("undo", **undo).json()
    assert served.post("undo", **undo).json() == back
    assert back["redo"] == "renamed class 0 to sky"
    painted = [
        served.correct(3, "1", [[0, 64]], back["revision"], change="four").json() for _ in range(2)
    ]
    assert painted[0] == painted[1]


def test_an_export_of_all_images_equals_predict_and_export(served, tmp_path):
    served.seen()
    workspace = served.studio.workspace
    assert served.post("export", format="nonsense").status_code == 400
    served.post("export", format="cvat", per="region")
    while (job := served.get("export").json()["job"])["out"] is None:
        assert not job["error"]
        time.sleep(0.02)
    assert job["done"] == job["total"] == 20
    predict_files(model_of(served), workspace.folder, tmp_path / "maps")
    export_labels(
        tmp_path / "maps", workspace.folder, "cvat", tmp_path / "cvat",
        classes=workspace.model, per="region",
    )  # fmt: skip
    ours = (workspace.out / "exports" / "cvat-1" / "annotations.xml").read_bytes()
    assert ours == (tmp_path / "cvat" / "annotations.xml").read_bytes()


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("voc", ["a-b", "background (class 1)", "# "]),
        ("cvat-mask", ["a-b", "background (class 1)", "# "]),
        ("labelme", ["a:b", "background", "__ignore__ (class 2)"]),
        ("coco", ["a:b", "background", "__ignore__"]),
    ],
)
def test_names_that_a_format_does_not_support_are_exported(served, form, names):
    served.seen()
    revision = served.get("classes").json()["revision"]
    typed = ["a:b", "background", "__ignore__"]
    edits = [{"rename": str(k), "to": name} for k, name in enumerate(typed)]
    assert served.post("classes", revision=revision, edits=edits).status_code == 200
    assert served.post("export", format=form).status_code == 200
    while (job := served.get("export").json()["job"])["out"] is None:
        assert not job["error"], job
        time.sleep(0.02)
    expected = [new if new != "# " else "__ignore__" for new in names]
    changed = [new for new, old in zip(expected, typed, strict=True) if new != old]
    assert len(job["notes"]) == len(changed)
    for new, note in zip(changed, job["notes"], strict=True):
        assert f"It is {new} there." in note


def test_next_steps_are_sentences():
    """A command stays as it is typed; only sentences begin with a capital letter."""
    for form in FORMATS:
        for step in next_steps(form, "/out", ["sky", "a; b"]):
            first = step.split("`")[0].split(" ")[0]
            assert first == "/out" or first.istitle() or first == "CVAT", step
            assert first.lower() not in ("labelme", "yolo", "datasets.load_dataset('/out')")
    assert [step for step in next_steps("cvat", "/out", ["sky", "a; b"]) if "a; b" in step]


@pytest.mark.parametrize("classes", [1, 0, 257, 999, "", "many", 2.5, None])
def test_a_wrong_number_of_classes_is_one_sentence(shared, classes):
    answer = shared.post("fit", classes=classes)
    assert answer.status_code == 400
    sentence = answer.json()["error"]
    assert "the number of classes must be" in sentence or "integer or a string" in sentence
    assert "request.classes" not in sentence


def test_unknown_later_stages_are_not_part_of_the_time_left():
    """The time left does not jump when a stage begins that the plan does not know, or is slow."""
    from primaps.studio.fitting import Fitting

    fitting = Fitting(lambda: None)
    fitting._automatic = True
    fitting.planned = {"features": 100.0, "k-means": 50.0}
    fitting._stage = ("features", 0.0, 0)
    assert fitting._seconds_left("features", 10, 100, 10.0) == 90.0
    assert fitting._left[0] == "features"
    fitting._stage = ("k-means", 100.0, 0)
    assert fitting._seconds_left("k-means", 50, 100, 110.0) == 10.0
    assert fitting._left[0] == "fit"
    assert fitting._seconds_left("k-means", 51, 100, 130.0) == 28.8  # slower: the speed counts
    fitting._left = ("fit", 5.0, 130.0)
    assert fitting._seconds_left("k-means", 52, 100, 131.0) == 6.0  # at most a second per second


def test_analyses_are_read_by_several_threads(shared):
    """np.load is not thread-safe on Python 3.11 before 3.11.8: no file of ours needs it."""
    from concurrent.futures import ThreadPoolExecutor

    images = shared.studio.images
    paths = sorted((shared.root / "analysis").rglob("*.safetensors"))
    assert len(paths) == 10
    keys = [cache_key(images.network.digest(), images.workspace.file(n).source) for n in range(10)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(load_analysis, paths * 20, keys * 20))
    assert None not in found
    source = Path(primaps.__file__).parent
    assert not [
        path for path in source.rglob("*.py") if re.search(r"np\.(load|savez)\(", path.read_text())
    ]


def test_an_audit_can_be_continued_and_becomes_stale(served):
    served.seen()
    assert served.get("audit").json() == {
        "question": None, "done": 0, "total": 0, "estimate": None, "stale": False, "earlier": None,
    }  # fmt: skip
    assert served.post("audit/answer", right=True, done=0).status_code == 409
    assert served.post("audit/undo").status_code == 409
    page = served.post("audit", answers=12).json()
    assert (page["done"], page["total"]) == (0, 12)
    answers = []
    while (question := page["question"]) is not None:
        leaves = grid(served.get(f"images/{question['image']}/leaves"))
        y, x = int(question["y"] * 64), int(question["x"] * 64)
        found = read_legend(served.studio.workspace.model, served.studio.class_summary.tree)
        one = found.shown[int(found.table()[int(leaves[y, x])])]
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
    loaded = Audit.load(served.root / "audit")
    assert loaded.estimate().accuracy == page["estimate"]["accuracy"] == np.mean(answers)
    assert page["estimate"]["low"] < page["estimate"]["accuracy"] < page["estimate"]["high"]
    # `primaps audit` can continue it: model and classes agree.
    from primaps.evaluation.audit import audit_subject

    assert loaded.record.subject == audit_subject(model_of(served))
    report = served.get("report.html").text
    assert f"<b>{page['estimate']['accuracy']:.0%}</b> of all pixels have the correct" in report
    revision = served.get("classes").json()["revision"]
    edits = [{"rename": one, "to": f"name {one}"} for one in "012"]
    revision = served.post("classes", revision=revision, edits=edits).json()["revision"]
    assert served.get("audit").json() == page  # names change no pixel
    question = served.post("audit/undo").json()["question"]
    assert question["class"].startswith("name ")
    served.post("audit/answer", right=answers[-1], done=11)
    served.post("classes", revision=revision, edits=[{"merge": ["0", "1"]}])
    assert served.get("audit").json()["stale"]
    assert "of all pixels have the correct" not in served.get("report.html").text
    # The earlier answers are kept and can be restored.
    again = served.post("audit", answers=5).json()
    assert (again["done"], again["earlier"]) == (0, {"done": 12, "total": 12})
    assert Audit.load(served.root / "audit-1").progress == (12, 12)
    assert served.post("audit", answers=6).json()["earlier"] == {"done": 12, "total": 12}
    restored = served.post("audit/restore").json()
    assert (restored["done"], restored["stale"], restored["earlier"]) == (12, True, None)
    assert served.post("audit/restore").status_code == 409
    assert sorted(path.name for path in served.root.glob("audit*")) == [
        "audit", "audit-1", "audit-2",
    ]  # fmt: skip


def test_a_rejected_audit_keeps_the_earlier_one(served):
    served.seen()
    assert served.post("audit", answers=5).json()["total"] == 5
    content = served.get("classes").json()
    edits = [{"hide": one["id"]} for one in content["classes"]]
    served.post("classes", revision=content["revision"], edits=edits)
    assert served.post("audit", answers=7).status_code == 400
    assert served.get("audit").json()["total"] == 5
    assert not (served.root / "audit-1").exists()


def test_browsers_cache_images_of_one_collection(folder):
    from primaps.studio.workspace import open_workspace
    from tests.studio.conftest import serving

    def cacheable(served, of):
        names = ("images/0/image.jpg", "images/0/thumbnail.jpg", "crops/0.jpg")
        found = [served.get(name, of=of, box="0,0,1,1") for name in names]
        return {"max-age" in answer.headers["cache-control"] for answer in found}

    with (
        open_workspace(folder / "images", folder / "out", {}) as workspace,
        serving(workspace) as served,
    ):
        first = served.get("state").json()["collection"]
        assert cacheable(served, first) == {True}
        whole = served.get("images/0/image.jpg", of=first).content
        second = served.post("folder", path="b").json()["collection"]
        assert second != first
        assert (cacheable(served, first), cacheable(served, second)) == ({False}, {True})
        assert served.get("images/0/image.jpg", of=second).content != whole
        workspace.begin(3)
    with open_workspace(folder / "images", folder / "out", {}) as again:
        third = again.collection
    with open_workspace(folder / "images", folder / "out", {}) as again:
        assert again.collection == third


def test_a_fit_waits_for_the_choice_of_a_folder(folder, monkeypatch):
    """The estimate that follows the choice does not end the fit."""
    from primaps.studio import workspace as module
    from primaps.studio.studio import Studio

    begun, go_on, calls = threading.Event(), threading.Event(), []
    given = folder / "images", folder / "out", {}
    with module.open_workspace(*given) as workspace:
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


def test_tabs_receive_events_of_edits(served):
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
    # Edits by another program are announced as well.
    from primaps.persistence import change_edits

    tree = served.studio.class_summary.tree
    change_edits(served.studio.workspace.model, tree, lambda edits: [*edits, {"hide": "1"}])
    newest = served.get("classes").json()["revision"]
    wanted = [f'data: {{"revision": "{one}"}}' for one in (new["revision"], newest)]
    for _ in range(2000):
        if set(wanted) <= set(events):
            break
        time.sleep(0.05)
    assert set(wanted) <= set(events), events
    assert "event: classes" in events


def test_unreadable_images_are_skipped(folder):
    from primaps.studio.workspace import open_workspace
    from tests.conftest import painted
    from tests.studio.conftest import serving

    (folder / "images" / "a" / "damaged.png").write_bytes(b"no image")
    given = folder / "images", folder / "out", {}, folder / "model"
    with open_workspace(*given) as workspace, serving(workspace) as served:
        served.seen()
        state = served.get("state").json()
        assert [one for one in state["skipped"] if "damaged.png" in one]
        assert state["images"] == 11
        number = served.get("images").json()["names"].index("a/damaged.png")
        for kind in ("image.jpg", "thumbnail.jpg", "leaves", "proposals"):
            answer = served.get(f"images/{number}/{kind}")
            assert answer.status_code == 400
            assert "damaged.png" in answer.json()["error"]
        assert served.get("images").json()["uncertainty"][number] is None
        assert served.post("export", format="coco").json()["images"] == 10
        # The report skips an image that became unreadable; a repaired image is analyzed.
        (folder / "images" / "a" / "1.png").write_bytes(b"no image")
        served.studio.images._analyses.put(1, None)
        assert served.get("report.html").status_code == 200
        painted(3)[0].save(folder / "images" / "a" / "damaged.png")
        assert served.get(f"images/{number}/leaves").status_code == 200
        assert served.studio.images.analyzed == 11
        assert not [one for one in served.studio.images.unreadable if one == number]
        served.studio.images.clear()
        assert served.get("images/2/thumbnail.jpg").status_code == 200
        served.studio.images.clear()
        (folder / "images" / "a" / "2.png").unlink()
        assert served.get("images/2/thumbnail.jpg").status_code == 400
    (folder / "images" / "b" / "7.png").unlink()
    (folder / "images" / "a" / "damaged.png").write_bytes(b"no image")
    with open_workspace(*given) as workspace, serving(workspace) as served:
        served.seen()
        skipped = served.get("state").json()["skipped"]
        assert any("7.png no longer exists" in one for one in skipped)
        assert len([one for one in skipped if "damaged.png" in one]) == 1


def test_analyses_are_cached_until_the_image_changes(folder):
    from tests.conftest import painted
    from tests.studio.conftest import model_served

    with model_served(folder) as served:
        before = [grid(served.seen().get(f"images/{n}/leaves")) for n in (0, 1)]
    times = {
        path: path.stat().st_mtime_ns
        for path in (folder / "out" / "analysis").rglob("*.safetensors")
    }
    assert len(times) == 10
    painted(77)[0].save(folder / "images" / "a" / "0.png")
    with model_served(folder) as served:
        after = [grid(served.seen().get(f"images/{n}/leaves")) for n in (0, 1)]
        image = load_image(folder / "images" / "a" / "0.png")
        tree = served.studio.class_summary.tree
        whole = torch.from_numpy(after[0].astype(np.int64))
        assert torch.equal(tree.cut(3)[whole], model_of(served).predict(image).long())
    assert (before[1] == after[1]).all()
    changed = [path for path, at in times.items() if path.stat().st_mtime_ns != at]
    assert [path.name for path in changed] == ["0.safetensors"]


@pytest.mark.parametrize("name", ["state", "folders", "images", "classes", "audit", "export"])
def test_responses_are_json(shared, name):
    answer = shared.get(name)
    assert answer.headers["content-type"] == "application/json"
    json.loads(answer.content.decode("utf-8"), parse_constant=lambda text: pytest.fail(text))
