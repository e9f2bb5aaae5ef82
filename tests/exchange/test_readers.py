"""Every format is read by its target tool, pixel by pixel; needs the extra ``interop``."""

import json
import shutil
import xml.etree.ElementTree as ET
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from primaps.exchange.classes import Classes
from primaps.exchange.transfer import export_labels
from primaps.exchange.voc import instance_colors
from tests.exchange.samples import blocks, collection, key_of

PER = pytest.mark.parametrize("per", ["class", "region"])


def export(data, name, **options):
    export_labels(data.result, data.images, name, data.root / "out", **options)
    return data.root / "out"


def expected(data, name):
    """Return the label map of an image by its file name."""
    return data.maps[name]


@PER
def test_pycocotools_reads_coco(street, per):
    coco = pytest.importorskip("pycocotools.coco")
    found = coco.COCO(export(street, "coco", per=per) / "annotations.json")
    assert [one["name"] for one in found.loadCats(found.getCatIds())] == list(street.classes.names)
    assert len(found.imgs) == len(street.maps)
    for image in found.imgs.values():
        labels = np.full((image["height"], image["width"]), 255)
        for annotation in found.imgToAnns[image["id"]]:
            mask = found.annToMask(annotation).astype(bool)
            assert annotation["area"] == mask.sum()
            rows, columns = np.nonzero(mask)
            left, top, width, height = annotation["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
            labels[mask] = annotation["category_id"] - 1
        np.testing.assert_array_equal(labels, expected(street, image["file_name"]))


def test_pycocotools_reads_each_proposal(masks):
    coco = pytest.importorskip("pycocotools.coco")
    found = coco.COCO(export(masks, "coco") / "annotations.json")
    for image in found.imgs.values():
        numbers = masks.maps[image["file_name"]]
        annotations = found.imgToAnns[image["id"]]
        assert len(annotations) == len(np.unique(numbers[numbers > 0]))
        for value, annotation in zip(np.unique(numbers[numbers > 0]), annotations, strict=True):
            np.testing.assert_array_equal(found.annToMask(annotation) == 1, numbers == value)


@PER
def test_datumaro_reads_coco_panoptic(street, per):
    pytest.importorskip("datumaro")
    from datumaro.components.annotation import AnnotationType
    from datumaro.components.dataset import Dataset

    out = export(street, "coco-panoptic", per=per)
    # The layout of the published data set: annotations/panoptic_NAME.json, and the folder beside.
    (root := street.root / "panoptic" / "annotations").mkdir(parents=True)
    (out / "panoptic.json").rename(root / "panoptic_train.json")
    (out / "panoptic").rename(root / "panoptic_train")
    shutil.copytree(street.images, root.parent / "images")  # which datumaro requires
    found = Dataset.import_from(str(root.parent), "coco_panoptic")
    assert [one.name for one in found.categories()[AnnotationType.label]] == list(
        street.classes.names
    )
    items = list(found)
    assert len(items) == len(street.maps)
    for item in items:
        labels = expected(street, f"{item.id}.png")
        painted = np.full(labels.shape, 255)
        for annotation in item.annotations:
            painted[annotation.image.astype(bool)] = annotation.label
        np.testing.assert_array_equal(painted, labels)


@PER
def test_datumaro_reads_cvat(street, per):
    pytest.importorskip("datumaro")
    from datumaro.components.annotation import AnnotationType
    from datumaro.components.dataset import Dataset

    out = export(street, "cvat", per=per)
    shutil.copytree(street.images, out / "images")  # which datumaro requires
    found = Dataset.import_from(str(out), "cvat")
    assert [one.name for one in found.categories()[AnnotationType.label]] == list(
        street.classes.names
    )
    items = list(found)
    assert len(items) == len(street.maps)
    for item in items:
        labels = expected(street, f"{item.id}.png")
        painted = np.full(labels.shape, 255)
        for annotation in item.annotations:
            painted[annotation.image.astype(bool)] = annotation.label
        np.testing.assert_array_equal(painted, labels)


def test_the_sdk_of_cvat_decodes_the_masks(street):
    masks = pytest.importorskip("cvat_sdk.masks")
    root = ET.parse(export(street, "cvat") / "annotations.xml").getroot()
    for image in root.findall("image"):
        labels = expected(street, image.get("name"))
        painted = np.full(labels.shape, 255)
        for mask in image:
            left, top, width, height = (
                int(mask.get(one)) for one in ("left", "top", "width", "height")
            )
            code = [int(one) for one in mask.get("rle").split(",")]
            code += [left, top, left + width - 1, top + height - 1]
            size = {"image_width": labels.shape[1], "image_height": labels.shape[0]}
            k = street.classes.names.index(mask.get("label"))
            painted[masks.decode_mask(code, **size)] = k
            assert masks.encode_mask(painted == k) == code
        np.testing.assert_array_equal(painted, labels)


@pytest.mark.parametrize("name", ["voc", "cvat-mask"])
def test_datumaro_reads_voc_and_segmentation_masks(street, name):
    pytest.importorskip("datumaro")
    from zipfile import ZipFile

    from datumaro.components.annotation import AnnotationType
    from datumaro.components.dataset import Dataset
    from datumaro.plugins.data_formats.voc.format import VocInstColormap

    out = export(street, name)
    if name == "cvat-mask":
        ZipFile(out / "masks.zip").extractall(out)
    found = Dataset.import_from(str(out), "voc_segmentation")
    names = [one.name for one in found.categories()[AnnotationType.label]]
    assert [one for one in names if one != "background"] == list(street.classes.names)
    np.testing.assert_array_equal(list(VocInstColormap.values())[:256], np.array(instance_colors()))
    items = list(found)
    assert len(items) == len(street.maps)
    for item in items:
        labels = expected(street, f"{item.id}.png")
        painted = np.full(labels.shape, 255)
        for annotation in item.annotations:
            # A task of CVAT has no label "background": an annotation of it stops the upload.
            value = street.classes.names.index(names[annotation.label])
            painted[annotation.image.astype(bool)] = value
        np.testing.assert_array_equal(painted, labels)


def test_indices_of_voc_are_the_classes(street):
    out = export(street, "voc")
    for name, labels in street.maps.items():
        file = Image.open(out / "SegmentationClass" / f"{key_of(name, street.maps)}.png")
        assert file.mode == "P"
        np.testing.assert_array_equal(np.asarray(file), labels)
    lists = sorted((out / "ImageSets" / "Segmentation").iterdir())
    assert [path.name for path in lists] == ["train.txt", "val.txt"]


def test_label_studio_decodes_the_brushes(street):
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    out = export(street, "labelstudio")
    tasks = json.loads((out / "tasks.json").read_text("utf-8"))
    config = interface.LabelInterface((out / "labeling_config.xml").read_text("utf-8"))
    control = config.get_control("label")
    assert list(control.labels) == list(street.classes.names)
    assert len(tasks) == len(street.maps)
    for task in tasks:
        assert config.validate_task({"data": task["data"]})
        folder, name = unquote(task["data"]["image"].split("?d=")[1]).split("/", 1)
        assert (street.root / folder / name).is_file()
        painted = np.full(expected(street, name).shape, 255)
        (prediction,) = task["predictions"]
        assert config.validate_prediction(prediction)
        for region in prediction["result"]:
            value = region["value"]
            flat = brush.decode_rle(value["rle"])
            mask = flat.reshape(region["original_height"], region["original_width"], 4)[..., 3]
            painted[mask > 0] = street.classes.names.index(value["brushlabels"][0])
        np.testing.assert_array_equal(painted, expected(street, name))


@PER
def test_labelme_reads_its_files(street, per):
    labelme = pytest.importorskip("labelme._label_file")
    out = export(street, "labelme", per=per)
    assert (out / "labels.txt").read_text("utf-8").splitlines() == list(street.classes.names)
    for name, labels in street.maps.items():
        found = labelme.read_label_file(str(out / f"{key_of(name, street.maps)}.json"))
        painted = np.full(labels.shape, 255)
        for shape in found.shapes:
            (left, top), (right, bottom) = np.array(shape["points"]).astype(int)
            part = painted[top : bottom + 1, left : right + 1]
            assert shape["mask"].shape == part.shape
            part[shape["mask"]] = street.classes.names.index(shape["label"])
        np.testing.assert_array_equal(painted, labels)
        assert (out / key_of(name, street.maps)).parent.joinpath(found.image_path).is_file()


@pytest.fixture
def ultralytics(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    return pytest.importorskip("ultralytics.data.dataset")


def yolo_data(out):
    from ultralytics.data.utils import check_det_dataset

    return check_det_dataset(str(out / "data.yaml"))


def test_ultralytics_reads_the_index_maps(street, ultralytics):
    out = export(street, "yolo-semantic")
    data = yolo_data(out)
    assert list(data["names"].values()) == list(street.classes.names)
    seen = 0
    for split in ("train", "val"):
        found = ultralytics.SemanticDataset(
            img_path=data[split], data=data, task="semantic", augment=False, imgsz=64
        )
        for i, label in enumerate(found.labels):
            image = label["im_file"]
            name = image.split("/images/", 1)[1]
            labels = expected(street, name)
            mask = found.load_mask(i, image_shape=labels.shape)
            np.testing.assert_array_equal(mask, labels)
            seen += 1
    assert seen == len(street.maps)


def test_ultralytics_fills_the_polygons(street, ultralytics):
    from ultralytics.data.utils import add_polygon_background

    out = export(street, "yolo")
    data = yolo_data(out)
    wrong = total = seen = 0
    for split in ("train", "val"):
        settings = add_polygon_background(dict(data)) or data
        found = ultralytics.PolygonSemanticDataset(
            img_path=data[split], data=settings, task="semantic", augment=False, imgsz=64
        )
        for i, label in enumerate(found.labels):
            labels = expected(street, label["im_file"].split("/images/", 1)[1])
            mask = found.load_mask(i, image_shape=labels.shape)
            labels = np.where(labels == 255, mask.max(), labels)
            wrong += (mask != labels).sum()
            total += labels.size
            seen += 1
    assert seen == len(street.maps)
    assert wrong <= 0.01 * total


def test_datasets_loads_image_and_label(street):
    datasets = pytest.importorskip("datasets")
    out = export(street, "hf")
    found = datasets.load_dataset(str(out), cache_dir=str(street.root / "cache"))
    assert list(found) == ["train", "validation"]
    rows = [row for split in found.values() for row in split]
    assert len(rows) == len(street.maps)
    for (_, labels), row in zip(sorted(street.maps.items()), rows, strict=True):
        assert list(row) == ["image", "label"]
        np.testing.assert_array_equal(np.asarray(row["label"]), labels)
        assert row["image"].size == labels.shape[::-1]


def test_datasets_does_not_guess_splits_from_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    maps = {f"{name}.png": blocks(i, 9, 9, 2) for i, name in enumerate(("dev/a", "test 1", "x"))}
    data = collection(tmp_path, maps, Classes(("a", "b")))
    found = datasets.load_dataset(str(export(data, "hf")), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"]
    for (_, labels), row in zip(sorted(maps.items()), found["train"], strict=True):
        np.testing.assert_array_equal(np.asarray(row["label"]), labels)


def rasterized(shapes, size, to_pixels):
    """Return the label map of polygons: the class whose polygon contains the center of a pixel."""
    shapely = pytest.importorskip("shapely")
    labels = np.full(size, 255)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    for k, polygon in shapes:
        assert polygon.is_valid
        assert polygon.exterior.is_ccw or to_pixels is None
        labels[shapely.contains_xy(polygon, *(to_pixels(x, y)))] = k
    return labels


def test_gdal_reads_geojson_in_pixels(street):
    pyogrio = pytest.importorskip("pyogrio")
    shapely = pytest.importorskip("shapely")
    out = export(street, "geojson")
    for name, labels in street.maps.items():
        path = out / f"{key_of(name, street.maps)}.geojson"
        if (labels == 255).all():
            assert pyogrio.read_info(path)["features"] == 0
            continue
        _, _, geometry, (k, names, colors) = pyogrio.raw.read(
            path, columns=["class", "name", "color"]
        )
        shapes = list(zip(k, shapely.from_wkb(geometry), strict=True))
        np.testing.assert_array_equal(
            rasterized(shapes, labels.shape, lambda x, y: (x, -y)), labels
        )
        assert [street.classes.names[one] for one in k] == list(names)
        assert [street.classes.hex_colors[one] for one in k] == list(colors)


def geotiff(path, labels, code, point_keys=False):
    """A GeoTIFF of 0.5 m pixels whose upper left corner lies at 500,000 / 5,500,000."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    tags.tagtype.update({33550: 12, 33922: 12, 34735: 3})
    shift = 0.25 if point_keys else 0.0
    tags[33550] = (0.5, 0.5, 0.0)
    tags[33922] = (0.0, 0.0, 0.0, 500000.0 + shift, 5500000.0 - shift, 0.0)
    tags[34735] = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 2 if point_keys else 1, 3072, 0, 1, code)
    Image.fromarray(np.zeros((*labels.shape, 3), np.uint8)).save(path, tiffinfo=tags)


def test_gdal_reads_both_map_formats_in_the_crs_of_the_image(tmp_path):
    pyogrio = pytest.importorskip("pyogrio")
    shapely = pytest.importorskip("shapely")
    maps = {f"{name}.tif": blocks(seed, 30, 40, 3) for seed, name in enumerate("abc")}
    data = collection(tmp_path, maps, Classes(("ground", "house", "tree")))
    geotiff(data.images / "a.tif", maps["a.tif"], 32633)
    geotiff(data.images / "b.tif", maps["b.tif"], 32633, point_keys=True)

    def to_map(x, y):
        return 500000 + 0.5 * x, 5500000 - 0.5 * y

    out = export(data, "gpkg")
    layers = dict(pyogrio.list_layers(out / "regions.gpkg").tolist())
    assert layers == {"regions_32633": "Polygon", "regions": "Polygon"}
    about = pyogrio.read_info(out / "regions.gpkg", layer="regions_32633")
    assert about["crs"] == "EPSG:32633"
    assert about["features"] > 0
    for name in ("a.tif", "b.tif"):
        _, _, geometry, (k,) = pyogrio.raw.read(
            out / "regions.gpkg", layer="regions_32633", columns=["class"], where=f"image='{name}'"
        )
        shapes = list(zip(k, shapely.from_wkb(geometry), strict=True))
        np.testing.assert_array_equal(rasterized(shapes, maps[name].shape, to_map), maps[name])
    _, _, geometry, (k,) = pyogrio.raw.read(
        out / "regions.gpkg", layer="regions", columns=["class"]
    )
    shapes = list(zip(k, shapely.from_wkb(geometry), strict=True))
    found = rasterized(shapes, maps["c.tif"].shape, lambda x, y: (x, -y))
    np.testing.assert_array_equal(found, maps["c.tif"])

    export_labels(data.result, data.images, "geojson", tmp_path / "json")
    assert pyogrio.read_info(tmp_path / "json" / "a.geojson")["crs"] == "EPSG:32633"
    _, _, geometry, (k,) = pyogrio.raw.read(tmp_path / "json" / "a.geojson", columns=["class"])
    shapes = list(zip(k, shapely.from_wkb(geometry), strict=True))
    np.testing.assert_array_equal(rasterized(shapes, (30, 40), to_map), maps["a.tif"])
