"""Shapes that people draw in other tools: which pixels they become, or which sentence."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as pycocotools

from primaps.exchange.labelstudio import encode
from primaps.exchange.transfer import import_labels
from primaps.geometry.shapes import Polygon, paint
from primaps.utils.errors import InputError
from tests.exchange.samples import read_maps

CASES = Path(__file__).parents[1] / "cases" / "exchange"
HEIGHT, WIDTH = 30, 40


def imported(content, name, tmp_path, file="a.json", **options):
    """Import a file that contains a text or JSON; return the label maps and the messages."""
    path = tmp_path / "source" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return import_folder(path.parent, name, tmp_path, **options)


def import_folder(path, name, tmp_path, **options):
    messages = []
    done = import_labels(path, name, tmp_path / "out", log=messages.append, **options)
    maps = read_maps(tmp_path / "out")
    return {key: named(labels, done.classes.names) for key, labels in maps.items()}, messages


def named(labels, names):
    """Return the pixels of each class by its name."""
    assert set(np.unique(labels)) <= {*range(len(names)), 255}
    return {name: labels == k for k, name in enumerate(names)}


def refused(content, name, tmp_path, words, **options):
    with pytest.raises(InputError, match=words) as caught:
        imported(content, name, tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def box(left, top, right, bottom):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def disk(x, y, radius_x, radius_y=None, degrees=0):
    down, across = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    turn = np.exp(-1j * np.radians(degrees)) * ((across - x) + 1j * (down - y))
    return (turn.real / radius_x) ** 2 + (turn.imag / (radius_y or radius_x)) ** 2 <= 1


# The cases


@pytest.mark.parametrize(
    ("name", "tool", "expected"),
    [
        ("coco_overlap.json", "coco", {"a": {"x": 400, "y": 0}}),
        ("ls_rect", "labelstudio", {"a": {"car": 0, "road": 300}}),
        ("ls_bitmask_and_brush", "labelstudio", {"a": {"car": 0, "road": 150}}),
        ("lm_winpath", "labelme", {"json/a": {"car": 150}}),
        ("yo_roboflow", "yolo", {"train/a": {"car": 192}, "val/b": {"car": 192}}),
        ("hf_blankline", "hf", {"a": {"car": 0, "road": 200}}),
    ],
)
def test_cases_are_read(name, tool, expected, tmp_path):
    maps, messages = import_folder(CASES / name, tool, tmp_path)
    found = {key: {k: int(mask.sum()) for k, mask in one.items()} for key, one in maps.items()}
    assert found == expected
    assert not messages


# COCO


def coco(*annotations, categories=("x", "y")):
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 7 * k + 3, "name": name} for k, name in enumerate(categories)],
        "annotations": [
            {"image_id": 1, "category_id": 7 * k + 3, "segmentation": shape, "iscrowd": crowd}
            for k, shape, crowd in annotations
        ],
    }


def ring(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


@pytest.mark.parametrize(
    ("rings", "expected"),
    [
        ([ring(5, 5, 20, 20), ring(15, 10, 30, 25)], box(5, 5, 20, 20) | box(15, 10, 30, 25)),
        ([ring(5, 5, 30, 25), ring(10, 10, 20, 20)], box(5, 5, 30, 25)),  # nested: not a hole
        ([ring(5, 5, 15, 15), ring(15, 5, 25, 15)], box(5, 5, 25, 15)),  # touching
        ([ring(5, 5, 15, 15)] * 2, box(5, 5, 15, 15)),
        ([ring(0, 0, 4, 4), ring(30, 20, 60, 50)], box(0, 0, 4, 4) | box(30, 20, 40, 30)),
    ],
)
def test_polygons_of_an_annotation_are_united(rings, expected, tmp_path):
    maps, _ = imported(coco((0, rings, 0)), "coco", tmp_path)
    np.testing.assert_array_equal(maps["a"]["x"], expected)


points = st.lists(st.tuples(st.floats(-8, 48), st.floats(-8, 38)), min_size=3, max_size=7)


@settings(max_examples=60, deadline=None)
@given(st.lists(points, min_size=1, max_size=3))
def test_polygons_are_filled_as_by_pycocotools(rings):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    paint(labels, Polygon([np.array(one) for one in rings], "coco"), 1)
    flat = [np.array(one).ravel().tolist() for one in rings]
    codes = pycocotools.frPyObjects(flat, HEIGHT, WIDTH)
    np.testing.assert_array_equal(labels, pycocotools.decode(pycocotools.merge(codes)))


def test_a_polygon_far_outside_of_its_image_is_refused_before_its_memory_is_taken(tmp_path):
    shape = [-9e6, 0, 9e6, 5, -9e6, 9]
    refused(coco((0, [shape], 0)), "coco", tmp_path, "length of 36,000,009 pixels")


def test_later_annotations_cover_earlier_ones_also_crowds(tmp_path):
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, 10 * HEIGHT, 30 * HEIGHT]}  # 10 columns
    first = coco((1, crowd, 1), (0, [ring(5, 5, 20, 20)], 0))
    maps, _ = imported(first, "coco", tmp_path)
    np.testing.assert_array_equal(maps["a"]["x"], box(5, 5, 20, 20))
    np.testing.assert_array_equal(maps["a"]["y"], box(0, 0, 10, 30) & ~box(5, 5, 20, 20))
    last = coco((0, [ring(5, 5, 20, 20)], 0), (1, crowd, 1))
    maps, _ = imported(last, "coco", tmp_path)
    np.testing.assert_array_equal(maps["a"]["x"], box(10, 5, 20, 20))
    np.testing.assert_array_equal(maps["a"]["y"], box(0, 0, 10, 30))


# Label Studio


def region(kind, value, **more):
    about = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {"id": "r", "type": kind, "to_name": "image", "value": value, **about, **more}


def task(*result, **more):
    annotations = [{"result": list(result), "was_cancelled": False}]
    return {"data": {"image": "/data/upload/1/abcdef12-a.jpg"}, "annotations": annotations, **more}


def percent(left, top, right, bottom):
    return {
        "x": 100 * left / WIDTH,
        "y": 100 * top / HEIGHT,
        "width": 100 * (right - left) / WIDTH,
        "height": 100 * (bottom - top) / HEIGHT,
    }


def data_url(array):
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def alpha(mask):
    return np.stack([np.zeros(mask.shape, np.uint8)] * 3 + [mask * np.uint8(255)], 2)


AREAS = {
    "rectangle": ("rectangle", percent(4, 3, 24, 18), box(4, 3, 24, 18)),
    # The rotation is clockwise about (x, y), in pixels: a box of 20 x 10 becomes one of 10 x 20.
    "turned": ("rectangle", percent(30, 3, 50, 13) | {"rotation": 90}, box(20, 3, 30, 23)),
    "drawn upwards": ("rectangle", percent(24, 18, 4, 3), box(4, 3, 24, 18)),
    "ellipse": (
        "ellipse",
        {"x": 50, "y": 50, "radiusX": 25, "radiusY": 20},
        disk(20, 15, 10, 6),
    ),
    "ellipse turned": (
        "ellipse",
        {"x": 50, "y": 50, "radiusX": 25, "radiusY": 20, "rotation": 30},
        disk(20, 15, 10, 6, 30),
    ),
    "polygon": ("polygon", {"points": [[10, 10], [60, 10], [60, 60], [10, 60]]}, box(4, 3, 24, 18)),
    "brush": ("brush", {"format": "rle", "rle": encode(box(4, 3, 24, 18))}, box(4, 3, 24, 18)),
    "bitmask": (
        "bitmask",
        {"imageDataURL": data_url(box(4, 3, 24, 18) * np.uint8(255))},
        box(4, 3, 24, 18),
    ),
    "bitmask of black pixels": (
        "bitmask",
        {"imageDataURL": data_url(alpha(box(4, 3, 24, 18)))},
        box(4, 3, 24, 18),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AREAS)
@pytest.mark.parametrize("apart", [False, True])
def test_areas_of_label_studio_are_read(name, apart, tmp_path):
    """With the label inside, or in another entry with the same id, as the tag Labels writes it."""
    kind, value, expected = AREAS[name]
    if apart:
        label = region("labels", {"labels": ["road"]})
        content = task(region(kind, value, hidden=True), label)
    else:
        content = task(region(f"{kind}labels", value | {f"{kind}labels": ["road"]}, hidden=True))
    maps, messages = imported([content], "labelstudio", tmp_path)
    np.testing.assert_array_equal(maps["a"]["road"], expected)
    assert not messages


def rectangle(label, *corners):
    return region("rectanglelabels", percent(*corners) | {"rectanglelabels": [label]})


def test_points_and_answers_of_label_studio_are_counted(tmp_path):
    point = region("keypointlabels", {"x": 5, "y": 5, "width": 1, "keypointlabels": ["car"]})
    answer = region("choices", {"choices": ["good"]})
    content = task(rectangle("road", 0, 0, 5, 5), point, point, answer)
    maps, messages = imported([content], "labelstudio", tmp_path)
    np.testing.assert_array_equal(maps["a"]["road"], box(0, 0, 5, 5))
    assert not maps["a"]["car"].any()
    assert sorted(one.split(": ", 1)[1] for one in messages) == [
        "answers of the type choices, which are not areas and were left out: 1",
        "points, which are not areas and were left out: 2",
    ]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (region("videorectangle", {}), "type 'videorectangle', which is not supported"),
        (region("vectorlabels", {"vectorlabels": ["x"]}), "type 'vectorlabels'"),
        (region("rectangle", percent(0, 0, 5, 5)), "a region must have one label, got 0"),
        (
            region("rectanglelabels", percent(0, 0, 5, 5) | {"rectanglelabels": ["a", "b"]}),
            "a region must have one label, got 2",
        ),
        (rectangle("x", 0, 0, 5, 5) | {"image_rotation": 90}, "rotated by 90 degrees"),
        (rectangle("x", 0, 0, 5, 5) | {"to_name": "image2"}, "regions of several images"),
        (rectangle("x", 0, 0, 5, 5) | {"original_width": 41}, "images of different sizes"),
        (
            region("ellipse", {"x": 1, "y": 1, "radiusX": 0, "radiusY": 1, "ellipselabels": ["x"]})
            | {"type": "ellipselabels"},
            "they must be above 0",
        ),
        (
            region("bitmasklabels", {"imageDataURL": "http://a/b.png", "bitmasklabels": ["x"]}),
            "must be data:image/png;base64",
        ),
        (
            region(
                "bitmasklabels",
                {"imageDataURL": data_url(np.ones((3, 4), np.uint8)), "bitmasklabels": ["x"]},
            ),
            "a bitmask has 4 x 3 pixels, but its image 40 x 30",
        ),
        (region("brushlabels", {"format": "png", "brushlabels": ["x"]}), "format of a brush is"),
    ],
)  # fmt: skip
def test_other_regions_of_label_studio_are_refused(entry, words, tmp_path):
    refused([task(rectangle("y", 9, 9, 12, 12), entry)], "labelstudio", tmp_path, words)


def test_the_annotation_that_counts_is_read(tmp_path):
    """Ground truth before others, the last before earlier ones; never those that were cancelled."""
    one, two = rectangle("x", 0, 0, 5, 5), rectangle("x", 10, 10, 15, 15)

    def annotation(entry, **more):
        return {"result": [entry], "was_cancelled": False, **more}

    several = "tasks with several annotations, of which the last one was read: 1"
    for annotations, expected, words in [
        ([annotation(one), annotation(two)], box(10, 10, 15, 15), several),
        ([annotation(one, ground_truth=True), annotation(two)], box(0, 0, 5, 5), None),
        ([annotation(one), annotation(two, was_cancelled=True)], box(0, 0, 5, 5), None),
    ]:
        content = task(annotations=annotations, predictions=[annotation(two)])
        maps, messages = imported([content], "labelstudio", tmp_path)
        np.testing.assert_array_equal(maps["a"]["x"], expected)
        assert [one.split(": ", 1)[1] for one in messages] == ([words] if words else [])


def test_tasks_without_a_valid_annotation_are_counted(tmp_path):
    entry = rectangle("x", 0, 0, 5, 5)
    cancelled = [{"result": [entry], "was_cancelled": True}]
    size = {"width": WIDTH, "height": HEIGHT}
    tasks = [
        task(entry),
        {"data": {"image": "b.jpg", **size}, "annotations": cancelled, "predictions": cancelled},
        {"data": {"image": "c.jpg", **size}, "annotations": [], "drafts": [{"result": [entry]}]},
        {"data": {"image": "d.jpg"}, "predictions": [{"result": [entry]}]},
        {"data": {"image": "e.jpg"}},
    ]
    maps, messages = imported(tasks, "labelstudio", tmp_path)
    found = {key: int(one["x"].sum()) for key, one in maps.items()}
    assert found == {"a": 25, "b": 0, "c": 0, "d": 25}
    assert sorted(one.split(": ", 1)[1] for one in messages) == [
        "tasks with only a draft, which was left out (submit it in Label Studio): 1",
        "tasks with only cancelled annotations, read without labels: 1",
        "tasks without annotations, whose last prediction was read: 1",
        "tasks without regions and without the size of the image, left out: 1",
    ]


# labelme


def labelme(*shapes, **more):
    about = {"imagePath": "a.jpg", "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH}
    return {"version": "5.4.1", "flags": {"good": True}, "shapes": list(shapes), **about, **more}


def shape(label, kind, *corners, **more):
    about = {"group_id": 1, "flags": {"hard": True}, "description": None}
    return {"label": label, "shape_type": kind, "points": [*map(list, corners)], **about, **more}


def test_shapes_of_labelme_are_read(tmp_path):
    for drawn, expected in [
        (shape("x", "rectangle", (24, 18), (4, 3)), box(4, 3, 24, 18)),
        (shape("x", "rectangle", (4, 3), (24, 3), (24, 18), (4, 18)), box(4, 3, 24, 18)),
        (shape("x", "circle", (20, 15), (26, 23)), disk(20, 15, 10)),
        (shape("x", "polygon", (4, 3), (24, 3), (24, 18), (4, 18)), box(4, 3, 24, 18)),
        (shape("x", None, (4, 3), (24, 3), (24, 18), (4, 18)), box(4, 3, 24, 18)),
        (
            shape("x", "mask", (4, 3), (23, 17), mask=data_url(np.ones((15, 20), np.uint8))[22:]),
            box(4, 3, 24, 18),
        ),
    ]:  # fmt: skip
        maps, messages = imported(labelme(drawn), "labelme", tmp_path)
        np.testing.assert_array_equal(maps["a"]["x"], expected)
        assert not messages


def test_lines_and_points_of_labelme_are_counted(tmp_path):
    lines = [shape("x", "line", (1, 1), (9, 9)), shape("y", "linestrip", (1, 1), (9, 9), (2, 8))]
    marks = [shape("x", "point", (3, 3)), shape("x", "points", (3, 3), (4, 4))]
    area = shape("x", "rectangle", (4, 3), (24, 18))
    maps, messages = imported(labelme(*lines, area, *marks), "labelme", tmp_path)
    np.testing.assert_array_equal(maps["a"]["x"], box(4, 3, 24, 18))
    assert sorted(one.split(": ", 1)[1] for one in messages) == [
        "lines, which are not areas and were left out: 2",
        "points, which are not areas and were left out: 2",
    ]


@pytest.mark.parametrize("listed", [None, "__ignore__\n_background_\nx\n\n"])
def test_special_labels_of_labelme_are_pixels_without_a_label(listed, tmp_path):
    if listed:
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "labels.txt").write_text(listed)
    content = labelme(
        shape("_background_", "rectangle", (0, 0), (40, 30)),
        shape("x", "rectangle", (4, 3), (24, 18)),
        shape("__ignore__", "rectangle", (10, 0), (12, 30)),
    )
    maps, messages = imported(content, "labelme", tmp_path)
    assert list(maps["a"]) == ["x"]
    np.testing.assert_array_equal(maps["a"]["x"], box(4, 3, 24, 18) & ~box(10, 0, 12, 30))
    assert sorted(one.split(": ", 1)[1] for one in messages) == [
        "shapes __ignore__, read as pixels without a label: 1",
        "shapes _background_, read as pixels without a label: 1",
    ]


@pytest.mark.parametrize(
    "path", ["..\\images\\b.jpg", "C:\\data\\b.jpg", "../images/b.jpg", "b.jpg"]
)
def test_the_path_of_the_image_of_labelme_may_be_of_any_system(path, tmp_path):
    area = shape("x", "rectangle", (4, 3), (24, 18))
    maps, _ = imported(labelme(area, imagePath=path), "labelme", tmp_path, file="a.json")
    assert list(maps) == ["a"]  # there is no image beside it
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "source" / "b.jpg")
    maps, _ = imported(labelme(area, imagePath=path), "labelme", tmp_path, file="a.json")
    assert list(maps) == ["b"]


def test_the_image_inside_a_file_of_labelme_has_the_size(tmp_path):
    image = data_url(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).split(",")[1]
    area = shape("x", "rectangle", (4, 3), (24, 18))
    sizes = {"imageHeight": None, "imageWidth": None, "imageData": image}
    maps, _ = imported(labelme(area, **sizes), "labelme", tmp_path)
    np.testing.assert_array_equal(maps["a"]["x"], box(4, 3, 24, 18))


# CVAT


def cvat(*shapes):
    labels = "<labels><label><name>x</name></label></labels>"
    image = f'<image name="a.jpg" width="{WIDTH}" height="{HEIGHT}">{"".join(shapes)}</image>'
    return f"<annotations><meta><task>{labels}</task></meta>{image}</annotations>"


def test_boxes_and_ellipses_of_cvat_are_read(tmp_path):
    for drawn, expected in [
        ('<box label="x" xtl="4" ytl="3" xbr="24" ybr="18"/>', box(4, 3, 24, 18)),
        # The rotation is clockwise about the center.
        ('<box label="x" xtl="4" ytl="8" xbr="24" ybr="18" rotation="90"/>', box(9, 3, 19, 23)),
        ('<ellipse label="x" cx="20" cy="15" rx="10" ry="6"/>', disk(20, 15, 10, 6)),
        (
            '<ellipse label="x" cx="20" cy="15" rx="10" ry="6" rotation="30"/>',
            disk(20, 15, 10, 6, 30),
        ),
    ]:
        maps, messages = imported(cvat(drawn), "cvat", tmp_path, file="a.xml")
        np.testing.assert_array_equal(maps["a"]["x"], expected)
        assert not messages


def test_lines_and_points_of_cvat_are_counted_and_the_rest_refused(tmp_path):
    line = '<polyline label="x" points="1,1;5,5"/>'
    content = cvat(line, '<points label="x" points="1,1"/>', line)
    _, messages = imported(content, "cvat", tmp_path, file="a.xml")
    assert sorted(one.split(": ", 1)[1] for one in messages) == [
        "lines, which are not areas and were left out: 2",
        "points, which are not areas and were left out: 1",
    ]
    with pytest.raises(InputError, match="has a <cuboid>, which is not supported"):
        imported(cvat('<cuboid label="x"/>'), "cvat", tmp_path, file="a.xml")


def test_areas_without_pixels_are_counted(tmp_path):
    content = cvat('<box label="x" xtl="4.6" ytl="3.6" xbr="5.4" ybr="4.4"/>')
    _, messages = imported(content, "cvat", tmp_path, file="a.xml")
    assert messages[0].endswith("areas that cover the center of no pixel: 1")


# YOLO and Roboflow


def yolo(root, splits, yaml, rows="0 0.1 0.1 0.6 0.1 0.6 0.6 0.1 0.6\n"):
    for split, name in splits.items():
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / split / "images" / f"{name}.jpg")
        (root / split / "labels" / f"{name}.txt").write_text(rows)
    for file, text in yaml.items():
        (root / file).write_text(text)
    return root


NAMES = [
    {"data.yaml": "names: [car, no]\nnc: 2\n"},
    {"data.yml": "names: {0: car, 1: no}\n"},
    {"data.yml": "names:\n  '1': no\n  '0': car\n", "other.yaml": "epochs: 3\n"},
    {"classes.txt": "car\r\nno\r\n\r\n\n"},
]


@pytest.mark.parametrize("yaml", NAMES)
def test_splits_of_roboflow_are_kept(yaml, tmp_path):
    rows = "0 0.1 0.1 0.6 0.1 0.6 0.6 0.1 0.6\n\n1 0 0 0 0.05 0.05 0.05\n\n\n"
    splits = {"train": "a", "valid": "a", "test": "c"}
    source = yolo(tmp_path / "export" / "set", splits, yaml, rows)
    maps, messages = import_folder(source.parent, "yolo", tmp_path)
    assert sorted(maps) == ["test/c", "train/a", "val/a"]
    for found in maps.values():
        assert list(found) == ["car", "no"]
        assert found["car"].sum() == 21 * 16
        assert found["no"].any()
    assert not messages


def test_mistakes_of_yolo_are_refused_or_counted(tmp_path):
    source = yolo(tmp_path / "a", {"train": "a"}, {"data.yaml": "names: [car]\nnc: 2\n"})
    with pytest.raises(InputError, match="'nc' is '2', but 'names' has 1 classes"):
        import_folder(source, "yolo", tmp_path)
    (source / "data.yaml").write_text("names: [car]\n")
    (source / "train" / "images" / "a.jpg").rename(source / "train" / "images" / "b.jpg")
    maps, messages = import_folder(source, "yolo", tmp_path)
    assert not maps["train/b"]["car"].any()
    assert messages[0].endswith("label files without an image, left out: 1")
    (source / "data.yml").write_text("names: [car]\n")
    with pytest.raises(InputError, match=r"must have one data.yaml or classes.txt .* has 2"):
        import_folder(source, "yolo", tmp_path)
