"""Annotations from label maps, the studio and files of other tools."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from primaps.classes.stability import ClassStability
from primaps.classes.summary import ClassSummary
from primaps.classes.tree import Tree
from primaps.data.collection import find_images
from primaps.exchange.annotations import load_annotations
from primaps.exchange.labelstudio import encode
from primaps.exchange.transfer import export_labels
from primaps.persistence import change_edits, write_class_summary
from primaps.teach.annotations import (
    Annotation,
    annotation_mask,
    append_annotations,
    expand_label_maps,
)
from primaps.utils.errors import InputError, NotFoundError

HEIGHT, WIDTH = 20, 30


@pytest.fixture
def images(tmp_path):
    for name in ("a.jpg", "sub/b.png", "sub/c.jpg", "other/c.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), "gray").save(path)
    return find_images(tmp_path / "images")


def rectangle(top, bottom, left, right):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


SQUARE = rectangle(4, 10, 5, 11)
CORNERS = [[5, 4], [11, 4], [11, 10], [5, 10]]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def coco(tmp_path):
    flat = [float(n) for corner in CORNERS for n in corner]
    mask = {"size": [HEIGHT, WIDTH], "counts": counts(SQUARE)}
    listed = [{"segmentation": [flat]}, {"segmentation": mask}, {"bbox": [5, 4, 6, 6]}]
    more = {"image_id": 7, "category_id": 3}
    return write(tmp_path / "coco.json", {
        "images": [{"id": 7, "file_name": "b.png", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 3, "name": "leaf"}],
        "annotations": [{"id": i, **more, **one} for i, one in enumerate(listed)],
    })  # fmt: skip


def counts(mask):
    down = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(down)) + 1
    return np.diff([0, *edges, down.size]).tolist()


def cvat(tmp_path):
    points = ";".join(f"{x},{y}" for x, y in CORNERS)
    lengths = ", ".join(["0", "36"])
    return write(
        tmp_path / "cvat.xml",
        f"""<annotations><meta><task><labels>
        <label><name>leaf</name></label></labels></task></meta>
        <image id="0" name="sub/b.png" width="{WIDTH}" height="{HEIGHT}">
        <polygon label="leaf" points="{points}" z_order="0"/>
        <mask label="leaf" rle="{lengths}" left="5" top="4" width="6" height="6" z_order="0"/>
        <box label="leaf" xtl="5" ytl="4" xbr="11" ybr="10" z_order="0"/>
        <polyline label="leaf" points="1,1;9,1" z_order="1"/>
        <points label="leaf" points="3,2;7.5,8" z_order="2"/></image></annotations>""",
    )


def labelme(tmp_path):
    content = io.BytesIO()
    Image.fromarray(np.full((6, 6), 255, np.uint8)).save(content, "PNG")
    shapes = [
        {"shape_type": "polygon", "points": CORNERS},
        {"shape_type": "mask", "points": [[5, 4], [10, 9]],
         "mask": base64.b64encode(content.getvalue()).decode()},
        {"shape_type": "rectangle", "points": [[11, 10], [5, 4]]},
        {"shape_type": "linestrip", "points": [[1, 1], [9, 1]]},
        {"shape_type": "point", "points": [[3, 2]]},
        {"shape_type": "point", "points": [[7.5, 8]]},
    ]  # fmt: skip
    shapes = [{"label": "leaf", **shape} for shape in shapes]
    content = {"imagePath": "b.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
    return write(tmp_path / "labelme" / "b.json", content).parent


def labelstudio(tmp_path):
    def region(kind, **value):
        return {"type": kind, "original_width": WIDTH, "original_height": HEIGHT,
                "value": {**value, kind: ["leaf"]}}  # fmt: skip

    scale = np.array([100 / WIDTH, 100 / HEIGHT])
    percent = (np.array(CORNERS) * scale).tolist()
    x, y, w, h = (np.array([5, 4, 6, 6]) * np.tile(scale, 2)).tolist()
    point = [region("keypointlabels", x=px * scale[0], y=py * scale[1], width=0.5)
             for px, py in ([3, 2], [7.5, 8])]  # fmt: skip
    brush = region("brushlabels", format="rle", rle=encode(SQUARE))
    box = region("rectanglelabels", x=x, y=y, width=w, height=h, rotation=0)
    result = [region("polygonlabels", points=percent), brush, box, *point]
    task = {"data": {"image": "/data/upload/1/12345678-b.png"}, "annotations": [{"result": result}]}
    return write(tmp_path / "tasks.json", [task])


SHAPES = {coco: "", cvat: "line points", labelme: "line points", labelstudio: "points"}


@pytest.mark.parametrize("make", SHAPES)
def test_shapes_of_every_tool_become_annotations_at_their_places(make, images, tmp_path):
    found = load_annotations(make(tmp_path), images, log=pytest.fail)
    assert {one.image for one in found} == {"sub/b"}
    assert {one.name for one in found} == {"leaf"}
    assert {one.source for one in found} == {make.__name__}
    assert [one.kind for one in found[:3]] == ["polygon", "mask", "box"]
    for one in found[:3]:
        assert (annotation_mask(one, HEIGHT, WIDTH) == SQUARE).all(), one.kind
    rest = found[3:]
    if "line" in SHAPES[make]:
        line = rest.pop(0)
        assert line.kind == "scribble"
        assert line.geometry["points"] == [[1, 1], [9, 1]]
    points = [one.geometry for one in rest]
    assert np.allclose(points, [[3, 2], [7.5, 8]] if "points" in SHAPES[make] else points)
    assert len(points) == (2 if "points" in SHAPES[make] else 0)
    assert all(one.kind == "point" for one in rest)


def test_a_folder_of_partial_label_maps(images, tmp_path):
    labels = np.full((HEIGHT, WIDTH), 255, np.uint8)
    labels[:5], labels[10:12, 3:9] = 1, 0
    folder = tmp_path / "labels"
    write(folder / "classes.json", {"classes": ["rust", "leaf", "sky"], "ignore_index": 254})
    Image.fromarray(labels).save(folder / "a.png")
    (folder / "sub").mkdir()
    Image.fromarray(np.full_like(labels, 254)).save(folder / "sub" / "b.png")
    Image.fromarray(labels).save(folder / "spare.png")
    said = []
    (one,) = load_annotations(folder, images, log=said.append)
    assert (one.image, one.kind) == ("a", "label_map")
    masks = {part.name: annotation_mask(part, HEIGHT, WIDTH) for part in expand_label_maps([one])}
    assert masks.keys() == {"rust", "leaf"}
    assert (masks["rust"] == (labels == 0)).all()
    assert (masks["leaf"] == (labels == 1)).all()
    assert len(said) == 2
    assert "1 label maps have no labeled pixel" in said[0]
    assert "1 of 2 annotations are of 1 images that the collection does not have" in said[1]
    assert "the first is spare" in said[1]


@pytest.mark.parametrize(
    "name", ["voc", "yolo-semantic", "hf", "coco-panoptic", "cvat-mask", "yolo"]
)
def test_exports_of_every_format_are_recognized(name, images, tmp_path):
    labels = np.full((HEIGHT, WIDTH), 255, np.uint8)
    labels[:5], labels[10:14, 3:9] = 1, 0
    write(tmp_path / "maps" / "classes.json", {"classes": ["rust", "leaf"]})
    for key in ("a", "sub/b"):
        (tmp_path / "maps" / key).parent.mkdir(exist_ok=True)
        Image.fromarray(labels).save(tmp_path / "maps" / f"{key}.png")
    pytest.importorskip("yaml")
    export_labels(
        tmp_path / "maps", tmp_path / "images", name, tmp_path / "out", log=lambda _: None
    )
    found = list(expand_label_maps(load_annotations(tmp_path / "out", images, log=pytest.fail)))
    assert {one.image for one in found} == {"a", "sub/b"}
    for k, label in enumerate(["rust", "leaf"]):
        for one in (one for one in found if one.name == label):
            assert (annotation_mask(one, HEIGHT, WIDTH) == (labels == k)).all()


def test_predictions_are_not_annotations(tmp_path, images):
    write(tmp_path / "maps" / "classes.json", {"classes": ["rust"]})
    write(tmp_path / "maps" / "primaps.json", {"primaps": "1", "command": "predict"})
    with pytest.raises(InputError, match="has results of predict, not annotations; copy the label"):
        load_annotations(tmp_path / "maps", images)


def test_the_corrections_of_a_studio(images, tmp_path):
    """Three leaves: rust and leaf have names, and the third one has none."""
    tree = Tree(
        torch.eye(3), torch.tensor([5, 4, 3]), torch.tensor([[1, 2], [0, 3]]),
        torch.tensor([0.1, 0.2]), classes=3,
    )  # fmt: skip
    out = tmp_path / "studio"
    (out / "model").mkdir(parents=True)
    each = ClassStability(0.9, 0.3, 2, -1, 0.0)
    write_class_summary(out / "model", ClassSummary(tree, (each,) * 3, (1 / 3,) * 3))
    names = [{"rename": "0", "to": "rust"}, {"rename": "2", "to": "leaf"}]
    change_edits(out / "model", tree, lambda edits: [*edits, *names])
    listed = [
        {"key": file.key, "path": file.key, "width": WIDTH, "height": HEIGHT} for file in images
    ]
    write(out / "studio.json", {"format": 1, "images": listed, "model": ""})
    leaves = np.full((HEIGHT, WIDTH), 65535, np.uint16)
    leaves[SQUARE], leaves[:2], leaves[18:] = 2, 0, 1
    (out / "corrections" / "sub").mkdir(parents=True)
    Image.fromarray(leaves).save(out / "corrections" / "sub" / "b.png")
    said = []
    (one,) = load_annotations(out, images, log=said.append)
    assert (one.image, one.source) == ("sub/b", "studio")
    masks = {part.name: annotation_mask(part, HEIGHT, WIDTH) for part in expand_label_maps([one])}
    assert masks.keys() == {"rust", "leaf"}
    assert (masks["leaf"] == SQUARE).all()
    assert (masks["rust"] == rectangle(0, 2, 0, WIDTH)).all()
    assert len(said) == 1
    assert "corrections of class 1 were left out, because a class without a name" in said[0]
    leaves[0, 0] = 7
    Image.fromarray(leaves).save(out / "corrections" / "sub" / "b.png")
    with pytest.raises(InputError, match="refers to the class 7, but the model has 3"):
        load_annotations(out, images)


def test_images_are_found_by_key_path_and_unique_name(images, tmp_path):
    def point(image):
        return Annotation(image, None, "point", "rust", [1, 1], (HEIGHT, WIDTH))

    names = {"sub/b": "sub/b", "sub/b.png": "sub/b", "b.PNG": "sub/b", "x/y/b.tif": "sub/b",
             "a": "a", "images/a.jpg": "a", "other/c.jpg": "other/c"}  # fmt: skip
    path = tmp_path / "annotations.jsonl"
    append_annotations(path, map(point, names))
    assert [one.image for one in load_annotations(path, images)] == list(names.values())
    said = []
    append_annotations(path, [point("c.jpg"), point("d.jpg")])
    assert len(load_annotations(path, images, log=said.append)) == len(names)
    assert len(said) == 1
    assert (
        "2 of 9 annotations are of 2 images that the collection does not have, or has several"
        in said[0]
    )
    other = tmp_path / "other.jsonl"
    append_annotations(other, [point("c.jpg")])
    with pytest.raises(
        InputError, match="1 of 1 annotations .* give the images that were annotated"
    ):
        load_annotations(other, images)


def test_a_wrong_size_is_one_sentence(images, tmp_path):
    path = tmp_path / "annotations.jsonl"
    append_annotations(path, [Annotation("a", None, "point", "rust", [1, 1], (WIDTH, HEIGHT))])
    with pytest.raises(InputError) as raised:
        load_annotations(path, images)
    assert (
        "the image a has 30 x 20 pixels, but was annotated with 20 x 30 (was the image rotated?)"
        in str(raised.value)
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("annotations.jsonl", "", "has no annotations; annotate some images first"),
        ("a.json", '{"images": [], "annotations": [], "categories": []}',
         "a.json: the number of classes must be between 1 and 255, got 0"),
        ("a.json", '{"some": "thing"}', "has no annotations that are recognized"),
        ("a.json", '{"images": ', "is not JSON"),
        ("a.txt", "hello", "has no annotations that are recognized"),
        ("a.xml", "<html/>", "has no <labels> of CVAT"),
    ],
)  # fmt: skip
def test_files_without_annotations_are_one_sentence(name, content, words, images, tmp_path):
    with pytest.raises(InputError) as raised:
        load_annotations(write(tmp_path / "in" / name, content), images)
    assert words in str(raised.value)
    assert name in str(raised.value)
    with pytest.raises(NotFoundError, match="does not exist"):
        load_annotations(tmp_path / "none", images)


def test_a_shape_outside_of_its_image_and_a_name_that_no_class_may_have(images, tmp_path):
    content = json.loads(coco(tmp_path).read_text())
    content["annotations"][2]["bbox"] = [31, 4, 6, 6]
    with pytest.raises(InputError) as raised:
        load_annotations(write(tmp_path / "far.json", content), images)
    assert "far.json, b.png: a box at x 31, y 4 is outside the image of 30 x 20" in str(
        raised.value
    )
    content["categories"][0]["name"] = "class 1"
    with pytest.raises(InputError, match="b.png: class name: 'class 1' is not allowed as a name"):
        load_annotations(write(tmp_path / "name.json", content), images)
