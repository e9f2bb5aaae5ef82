"""Folders, files and names of exports of any format."""

import gc
import json
import re
import weakref

import numpy as np
import pytest
from PIL import Image

from primaps.data.collection import read_protocol
from primaps.exchange.classes import Classes, read_classes
from primaps.exchange.formats import FORMATS
from primaps.exchange.labeled import LabeledImage
from primaps.exchange.transfer import export_labels, import_labels
from primaps.utils.errors import InputError, PrimapsError
from tests.exchange.samples import blocks, collection


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rejected(data, match, name="coco", out=None, **options):
    """The export raises one sentence and changes no file."""
    out = out or data.root / "out"
    before = content(data.root)
    options.setdefault("images", data.images)
    with pytest.raises(PrimapsError, match=match) as caught:
        export_labels(data.result, options.pop("images"), name, out, **options)
    assert "\n" not in str(caught.value)
    assert content(data.root) == before
    assert not list(data.root.glob(".writing-*"))


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_labels_give_the_same_bytes(street, name, monkeypatch):
    import time

    export_labels(street.result, street.images, name, street.root / "one")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    export_labels(street.result, street.images, name, street.root / "two")
    assert content(street.root / "one") == content(street.root / "two")


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_an_image_is_released_after_it_is_written(name, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 40)).save(path)
    alive = []

    def images():
        for i in range(6):
            image = LabeledImage(f"{i}.png", str(i), blocks(i, 40, 40, 3), path)
            alive.append(weakref.ref(image))
            yield image
            del image
            gc.collect()
            assert sum(one() is not None for one in alive) <= 1

    (tmp_path / "out").mkdir()
    FORMATS[name].write(images(), Classes(("a", "b", "c")), tmp_path / "out", "class")
    assert len(alive) == 6


@pytest.mark.parametrize("name", FORMATS)
def test_the_next_step_names_files_that_exist(street, name):
    done = export_labels(street.result, street.images, name, street.root / "out")
    assert str(street.root / "out") in done.next
    for word in re.sub("['`),]", " ", done.next).split():
        word = word.removeprefix("data=").rstrip(";:")
        if word.startswith(str(street.root)):
            assert (street.root / word).exists(), word


def test_a_folder_with_files_of_the_user_is_left_alone(street):
    (street.root / "out").mkdir()
    (street.root / "out" / "mine.txt").write_text("mine")
    rejected(street, "out is not empty")
    rejected(street, "is a file", out=street.result / "primaps.json")
    rejected(street, "images is not empty", out=street.images)


def test_an_earlier_export_is_replaced_unless_someone_worked_on_it(street):
    out = street.root / "out"
    export_labels(street.result, street.images, "coco", out)
    export_labels(street.result, street.images, "cvat", out)
    assert not (out / "annotations.json").exists()
    assert (out / "annotations.xml").exists()
    with (out / "annotations.xml").open("a") as file:
        file.write("<!-- corrected -->")
    rejected(street, "was changed since primaps wrote it", "coco")
    export_labels(street.result, street.images, "labelme", street.root / "other")
    (street.root / "other" / "new.json").write_text("{}")
    rejected(street, "was changed since primaps wrote it", out=street.root / "other")


def test_an_interrupted_export_leaves_the_earlier_one(street):
    export_labels(street.result, street.images, "coco", street.root / "out")

    def stop(stage, done, total, metrics):
        if done == 2:
            raise KeyboardInterrupt

    before = content(street.root)
    with pytest.raises(KeyboardInterrupt):
        export_labels(street.result, street.images, "hf", street.root / "out", progress=stop)
    assert content(street.root) == before


def test_maps_without_their_images_are_rejected(street):
    (street.images / "val" / "ring.png").unlink()
    rejected(street, "1 label maps of .* have no image, first val/ring.png")
    rejected(street, "have no image", images=street.images / "train")


def test_images_without_a_map_are_named_and_left_out(street):
    Image.new("RGB", (4, 4)).save(street.images / "new.png")
    messages = []
    done = export_labels(
        street.result, street.images, "coco", street.root / "out", log=messages.append
    )
    assert done.images == 4
    assert "1 of 5 images have no label map" in messages[0]
    assert "new.png" in messages[0]


def test_maps_of_another_size_are_rejected(street):
    Image.new("RGB", (7, 9)).save(street.images / "val" / "ring.png")
    rejected(street, r"ring.png has 30 x 24 pixels, but .*ring.png 7 x 9")


def test_the_exif_orientation_is_applied(tmp_path):
    data = collection(tmp_path, {"a.jpg": blocks(0, 30, 20, 2)}, Classes(("a", "b")))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(data.images / "a.jpg", exif=exif)
    export_labels(data.result, data.images, "coco", tmp_path / "out")
    (image,) = json.loads((tmp_path / "out" / "annotations.json").read_text())["images"]
    assert (image["width"], image["height"]) == (20, 30)


def test_values_that_are_not_classes_are_rejected(street):
    (street.root / "two.json").write_text('{"classes": ["a", "b"]}')
    rejected(street, r"value [2-7] is not a class \(0 to 1\)", classes=street.root / "two.json")


def test_damaged_maps_and_records_are_rejected(street):
    path = street.result / "val" / "ring.png"
    good = path.read_bytes()
    path.write_bytes(good[:-30])
    rejected(street, "ring.png is damaged")
    Image.new("RGB", (30, 24)).save(path)
    rejected(street, "ring.png is not a label map")
    path.write_bytes(good)
    (street.result / "primaps.json").write_text("[1]")
    rejected(street, "it must be an object; run predict or propose again")
    rejected(street, "got 'tiff'", "tiff")
    rejected(street, "got 'pixel'", per="pixel")
    rejected(street, "hf does not support regions", "hf", per="class")
    (street.result / "primaps.json").unlink()
    (street.result / "classes.json").unlink()
    rejected(street, "has no class names")


def test_the_ignore_index_is_no_label(tmp_path):
    labels = np.array([[0, 1, 2, 11, 255]], np.uint8)
    data = collection(tmp_path, {"a.png": labels}, Classes(("a", "b", "c")))
    classes = Classes(("a", "b", "c"), ignore_index=11)
    export_labels(data.result, data.images, "hf", tmp_path / "out", classes=classes)
    found = np.asarray(Image.open(tmp_path / "out" / "data" / "labels" / "a.png"))
    assert found.tolist() == [[0, 1, 2, 255, 255]]


def test_names_come_from_what_predict_recorded_or_from_a_model(street):
    (street.result / "classes.json").unlink()
    done = export_labels(street.result, street.images, "cvat", street.root / "out")
    assert street.classes.names[0] in done.next
    (model := street.root / "model").mkdir()
    (model / "config.json").write_text('{"config": {"classes": 8}}')
    done = export_labels(street.result, street.images, "cvat", street.root / "out", classes=model)
    assert "class 7" in done.next


def test_a_list_of_a_million_classes_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    (tmp_path / "labels").mkdir()
    path = tmp_path / "labels" / "classes.json"
    path.write_text(json.dumps({"classes": [f"c{k}" for k in range(10**6)]}))
    monkeypatch.setattr(json, "loads", None)
    for read in (read_classes, read_protocol):
        with pytest.raises(InputError, match="a list of classes has at most 4,096 names") as caught:
            read(path.parent)
        assert str(path) in str(caught.value)


def test_a_file_of_a_million_categories_is_refused_at_once(tmp_path):
    listed = [{"id": k, "name": str(k)} for k in range(10**5)]
    content = {"images": [], "annotations": [], "categories": listed}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="between 1 and 255, got 100000"):
        import_labels(tmp_path / "a.json", "coco", tmp_path / "out")


def test_classes_json_is_checked(tmp_path):
    path = tmp_path / "classes.json"
    for text, match in [
        ("{", "not? JSON"),
        ("[]", "only the names are required"),
        ('{"classes": "ab"}', "only the names are required"),
        ('{"classes": []}', "has the length 0"),
        ('{"classes": ["a", "a"]}', "two classes have the name 'a'"),
        ('{"classes": ["a\\n"]}', "is empty or has spaces"),
        ('{"classes": ["a"], "colors": [[1, 2, 300]]}', "only the names are required"),
        ('{"classes": ["a"], "colors": [[1, 2, 3], [4, 5, 6]]}', "2 colors for 1 classes"),
        ('{"classes": ["a"], "ignore_index": "x"}', "only the names are required"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=match):
            read_classes(path)
    with pytest.raises(InputError, match="has no classes.json"):
        read_classes(tmp_path / "absent")
    path.write_text('{"classes": ["a", "b"], "ignore_index": 7, "colors": [[1, 2, 3], [4, 5, 6]]}')
    classes = read_classes(tmp_path)
    assert (classes.names, classes.ignore_index) == (("a", "b"), 7)
    assert classes.colors.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_what_predict_and_propose_write_is_exported(colors, painted_folder, tmp_path):
    from primaps.backbones.load import load_backbone
    from primaps.batch import predict_files, propose_files
    from primaps.model import PriMaPsEM

    images = painted_folder / "images"
    network = load_backbone(colors, device="cpu", patch_size=8)
    quick = {"size": 64, "min_init_steps": 2, "mask_crf": False}
    model = PriMaPsEM(3, backbone=network, **quick).fit(images)
    predict_files(model, images, tmp_path / "classes", names=["r", "g", "b"])
    propose_files(images, tmp_path / "masks", backbone=network, size=64)
    for result, names in (("classes", ["r", "g", "b"]), ("masks", ["proposal"])):
        export_labels(tmp_path / result, images, "coco", tmp_path / "coco")
        found = json.loads((tmp_path / "coco" / "annotations.json").read_text())
        assert [one["name"] for one in found["categories"]] == names
        assert {one["file_name"] for one in found["images"]} == {f"{i}.png" for i in range(8)}
        areas = sum(one["area"] for one in found["annotations"])
        maps = [np.asarray(Image.open(tmp_path / result / f"{i}.png")) for i in range(8)]
        labeled = 64 * 64 * 8 if result == "classes" else sum((one > 0).sum() for one in maps)
        assert areas == labeled
