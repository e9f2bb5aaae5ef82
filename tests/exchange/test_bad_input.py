"""Malformed files: an import reads labels, or raises one sentence and writes nothing."""

import copy
import json
import tempfile
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from primaps.exchange.classes import Classes
from primaps.exchange.formats import FORMATS
from primaps.exchange.transfer import export_labels, import_labels
from primaps.utils.errors import InputError, PrimapsError
from tests.exchange.samples import blocks, collection

JSON = {
    "coco": "annotations.json",
    "coco-panoptic": "panoptic.json",
    "labelstudio": "tasks.json",
    "labelme": "a.json",
    "hf": "data/metadata.jsonl",
}
ANY_READ = [name for name, row in FORMATS.items() if row.read]


def rejected(path, name, out, match=None, **options):
    """The import raises one sentence and leaves nothing."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(PrimapsError, match=match) as caught:
        import_labels(path, name, out, **options)
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.iterdir()) == before


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """One small image in every format that can be read."""
    root = tmp_path_factory.mktemp("exported")
    data = collection(root, {"a.png": blocks(0, 12, 14, 3, block=4)}, Classes(("x", "y", "z")))
    for name in ANY_READ:
        export_labels(data.result, data.images, name, root / name)
    return root


values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10), st.just(10**12), st.just(-(2**70)),
    st.floats(allow_nan=False), st.sampled_from(["", "x", "../a.png", "/a.png", "0" * 9]),
    st.just([]), st.just({}), st.just([[1, 2], [3, "a"]]),
)  # fmt: skip


def places(content, path=()):
    """Paths of all values in JSON, except the many numbers of a code."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content)
    if isinstance(content, dict) or (isinstance(content, list) and len(content) < 9):
        for key, value in items:
            yield from (
                places(value, (*path, key)) if isinstance(value, dict | list) else [(*path, key)]
            )


@pytest.mark.parametrize("name", JSON)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_foreign_json_is_read_or_rejected_in_one_sentence(exported, name, data):
    content = json.loads((exported / name / JSON[name]).read_text("utf-8"))
    place = data.draw(st.sampled_from(list(places(content))))
    value = data.draw(values)
    changed = copy.deepcopy(content)
    if not place:
        changed = value
    else:
        at = changed
        for key in place[:-1]:
            at = at[key]
        if data.draw(st.booleans()):
            at[place[-1]] = value
        else:
            del at[place[-1]]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        zipped_copy(exported / name, source, {JSON[name]: json.dumps(changed)})
        try:
            import_labels(source, name, Path(folder) / "out")
        except PrimapsError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert not (Path(folder) / "out").exists()
        assert {path.name for path in Path(folder).iterdir()} <= {"source", "out"}


def zipped_copy(folder, target, instead):
    """A copy of a folder with some files changed."""
    for path in folder.rglob("*"):
        place = target / path.relative_to(folder)
        if path.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            text = instead.get(path.relative_to(folder).as_posix())
            place.write_bytes(path.read_bytes() if text is None else text.encode())


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_foreign_xml_is_read_or_rejected_in_one_sentence(exported, data):
    root = ET.fromstring((exported / "cvat" / "annotations.xml").read_text("utf-8"))
    element = data.draw(st.sampled_from(list(root.iter())))
    texts = st.sampled_from(
        ["", "x", "-1", "1e999", "nan", "99999999999", "1,2", "../a", "polygon"]
    )
    if element.attrib and data.draw(st.booleans()):
        element.set(data.draw(st.sampled_from(sorted(element.attrib))), data.draw(texts))
    elif data.draw(st.booleans()):
        element.tag = data.draw(st.sampled_from(["polygon", "box", "image", "mask", "other"]))
    else:
        element.text, element.attrib = data.draw(texts), {}
    with tempfile.TemporaryDirectory() as folder:
        (source := Path(folder) / "a.xml").write_bytes(ET.tostring(root, "utf-8"))
        try:
            import_labels(source, "cvat", Path(folder) / "out")
        except PrimapsError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert not (Path(folder) / "out").exists()


@pytest.mark.parametrize("name", ANY_READ)
def test_files_that_are_cut_off_are_rejected(exported, name, tmp_path):
    """Each file of an export in turn loses its last third."""
    for path in (exported / name).rglob("*"):
        relative = path.relative_to(exported / name).as_posix()
        about_pixels = path.suffix in (".json", ".jsonl", ".xml", ".png", ".zip", ".txt")
        if path.is_dir() or relative.startswith(".") or not about_pixels:
            continue
        if relative.startswith(
            ("images/", "data/images/", "JPEGImages/", "ImageSets", "SegmentationObject")
        ):
            continue
        if relative in ("labels.json", "labels.txt", "a.png"):  # not read, or cut between lines
            continue
        target = tmp_path / name / relative.replace("/", "_") / "source"
        zipped_copy(exported / name, target, {})
        content = (target / relative).read_bytes()
        (target / relative).write_bytes(content[: 2 * len(content) // 3])
        if relative.startswith("labels/"):  # lines of numbers: fewer of them may be labels too
            continue
        rejected(target, name, target.parent / "out")


@pytest.mark.parametrize("name", ANY_READ)
def test_files_of_other_kinds_are_rejected(name, tmp_path):
    rejected(tmp_path / "absent", name, tmp_path / "out", "does not exist")
    (empty := tmp_path / "empty").mkdir()
    rejected(empty, name, tmp_path / "out")
    for file, content in {
        "a.json": b"\xff\xfe\0",
        "a.zip": b"PK\3\4",
        "a.xml": b"<a",
        "b": b"",
    }.items():
        (tmp_path / file).write_bytes(content)
        rejected(tmp_path / file, name, tmp_path / "out")


def test_paths_that_leave_the_folder_are_rejected(exported, tmp_path):
    content = json.loads((exported / "coco" / "annotations.json").read_text("utf-8"))
    for bad in ("../a.png", "/etc/a.png", "a/../../b.png", "C:\\a.png", "..\\a.png", ""):
        content["images"][0]["file_name"] = bad
        (tmp_path / "a.json").write_text(json.dumps(content))
        rejected(
            tmp_path / "a.json", "coco", tmp_path / "out", "is outside of its folder|a file name is"
        )


def test_names_that_no_file_can_have_are_rejected(exported, tmp_path):
    content = json.loads((exported / "coco" / "annotations.json").read_text("utf-8"))
    long = "is too long"
    for bad, words in (("0" * 300, long), ("a/" * 3000 + "a.png", long), ("a\nb", "rename it")):
        content["images"][0]["file_name"] = bad
        (tmp_path / "a.json").write_text(json.dumps(content))
        rejected(tmp_path / "a.json", "coco", tmp_path / "out", words)


def test_a_zip_file_that_leaves_its_folder_is_rejected(exported, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("../labelmap.txt", "x:1,2,3::")
    rejected(tmp_path / "a.zip", "cvat-mask", tmp_path / "out", "is outside of its folder")


def test_a_zip_file_with_a_file_of_no_name_is_rejected(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("x", b"")
    data = (tmp_path / "a.zip").read_bytes()
    at = data.index(b"PK\1\2")  # the name in the directory goes, its length with it
    data = data[: at + 28] + b"\0\0" + data[at + 30 : at + 46] + data[at + 47 :]
    size_of_directory = data.index(b"PK\5\6") + 12
    data = data[:size_of_directory] + b"\x2e" + data[size_of_directory + 1 :]
    (tmp_path / "a.zip").write_bytes(data)
    rejected(tmp_path / "a.zip", "cvat-mask", tmp_path / "out", "a file name is ''")


def test_a_zip_file_of_an_unknown_version_is_rejected(exported, tmp_path):
    data = bytearray((exported / "cvat-mask" / "masks.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 255
    (tmp_path / "a.zip").write_bytes(data)
    rejected(tmp_path / "a.zip", "cvat-mask", tmp_path / "out", "is not a zip file, or cut off")


def test_links_out_of_the_folder_are_not_followed(exported, tmp_path):
    zipped_copy(exported / "voc", tmp_path / "in", {})
    (tmp_path / "secret.txt").write_text("x:1,2,3::\n")
    (tmp_path / "in" / "labelmap.txt").unlink()
    (tmp_path / "in" / "labelmap.txt").symlink_to(tmp_path / "secret.txt")
    rejected(tmp_path / "in", "voc", tmp_path / "out", "labelmap.txt")


def test_a_zip_bomb_is_rejected_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as packed:
        packed.writestr("labelmap.txt", b"#" * ((1 << 26) + 1))
    rejected(tmp_path / "a.zip", "cvat-mask", tmp_path / "out", "zip bomb")


def test_images_of_too_many_pixels_are_rejected_unread(exported, tmp_path):
    content = json.loads((exported / "coco" / "annotations.json").read_text("utf-8"))
    content["images"][0] |= {"width": 1_000_000, "height": 1_000_000}
    (tmp_path / "a.json").write_text(json.dumps(content))
    rejected(tmp_path / "a.json", "coco", tmp_path / "out", "at most 178,956,970 pixels")


def test_a_document_type_with_entities_is_rejected(tmp_path):
    text = '<!DOCTYPE a [<!ENTITY b "c">]><annotations><image name="&b;"/></annotations>'
    (tmp_path / "a.xml").write_text(text)
    rejected(tmp_path / "a.xml", "cvat", tmp_path / "out", "document type")


def test_names_that_are_not_classes_are_rejected(exported, tmp_path):
    (tmp_path / "classes.json").write_text('{"classes": ["z", "x"]}')
    options = {"classes": tmp_path / "classes.json"}
    rejected(exported / "coco", "coco", tmp_path / "out", "'y' is not one of z, x", **options)


def test_values_follow_the_given_classes(exported, tmp_path):
    wanted = Classes(("new", "z", "y", "x"))
    done = import_labels(exported / "coco", "coco", tmp_path / "out", classes=wanted)
    assert done.classes == wanted
    labels = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    before = np.asarray(Image.open(exported / "result" / "a.png"))
    for old, new in ((0, 3), (1, 2), (2, 1), (255, 255)):
        assert (labels[before == old] == new).all()


def test_two_label_maps_of_one_image_are_rejected(exported, tmp_path):
    content = json.loads((exported / "coco" / "annotations.json").read_text("utf-8"))
    content["images"].append({**content["images"][0], "id": 9})
    (tmp_path / "a.json").write_text(json.dumps(content))
    rejected(tmp_path / "a.json", "coco", tmp_path / "out", "two label maps of a.png")


def test_an_undeclared_color_is_rejected(exported, tmp_path):
    zipped_copy(exported / "voc", tmp_path / "in", {})
    Image.new("RGB", (3, 3), (1, 2, 3)).save(tmp_path / "in" / "SegmentationClass" / "a.png")
    rejected(tmp_path / "in", "voc", tmp_path / "out", "does not declare the color 1,2,3")


def test_a_format_without_import_names_the_others(tmp_path):
    with pytest.raises(InputError, match="import format must be one of coco, .* got 'gpkg'"):
        import_labels(tmp_path, "gpkg", tmp_path / "out")


def test_addresses_of_images_in_label_studio(exported, tmp_path):
    (task,) = json.loads((exported / "labelstudio" / "tasks.json").read_text("utf-8"))
    del task["data"]["name"]
    for address, key in [
        ("/data/local-files/?d=b%20c/a%2Cb.png", "b c/a,b"),
        ("/data/upload/3/0a1b2c3d-a.jpg", "a"),
        ("https://host/x/a.png", "x/a"),
        ("s3://bucket/a.png", "a"),
    ]:
        task["data"]["image"] = address
        (tmp_path / "a.json").write_text(json.dumps([task]))
        import_labels(tmp_path / "a.json", "labelstudio", tmp_path / "out")
        assert (tmp_path / "out" / f"{key}.png").is_file()


def test_polygons_of_all_tools_are_read(tmp_path):
    """A square of the pixels 1..3, as a polygon, in every tool that has them."""
    square = [[1, 1], [4, 1], [4, 4], [1, 4]]
    flat = [x for point in square for x in point]
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 6, "height": 5}],
        "categories": [{"id": 7, "name": "x"}],
        "annotations": [{"image_id": 1, "category_id": 7, "segmentation": [flat]}],
    }
    plain = copy.deepcopy(coco)
    counts = [6, 3, 2, 3, 2, 3, 11]
    plain["annotations"][0]["segmentation"] = {"size": [5, 6], "counts": counts}
    points = ";".join(f"{x},{y}" for x, y in square)
    cvat = (
        "<annotations><meta><job><labels><label><name>x</name></label></labels></job></meta>"
        f'<image name="a.png" width="6" height="5"><polygon label="x" points="{points}"/></image>'
        "</annotations>"
    )
    shape = {"label": "x", "points": square, "shape_type": "polygon"}
    labelme = {"shapes": [shape], "imagePath": "a.png", "imageWidth": 6, "imageHeight": 5}
    value = {"points": [[100 * x / 6, 20 * y] for x, y in square], "polygonlabels": ["x"]}
    region = {"type": "polygonlabels", "original_width": 6, "original_height": 5, "value": value}
    studio = [
        {
            "data": {"image": "a.png"},
            "annotations": [{"result": [], "was_cancelled": True}, {"result": [region]}],
            "predictions": [{"result": []}],
        }
    ]
    for name, file, text in [
        ("coco", "a.json", json.dumps(coco)),
        ("coco", "a.json", json.dumps(plain)),
        ("cvat", "a.xml", cvat),
        ("labelme", "a.json", json.dumps(labelme)),
        ("labelstudio", "a.json", json.dumps(studio)),
    ]:
        (source := tmp_path / "source").mkdir(exist_ok=True)
        for old in source.iterdir():
            old.unlink()
        (source / file).write_text(text)
        import_labels(source, name, tmp_path / "out")
        labels = np.asarray(Image.open(tmp_path / "out" / "a.png"))
        expected = np.full((5, 6), 255)
        expected[1:4, 1:4] = 0
        np.testing.assert_array_equal(labels, expected)
