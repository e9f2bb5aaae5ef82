import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from primaps.measure import (
    Resolution,
    find_objects,
    measure_classes,
    measure_objects,
    split_touching,
    summarize,
    write_table,
)
from primaps.results import OutputError
from primaps.utils.errors import InputError


def disks(height, width, *circles):
    y, x = np.mgrid[:height, :width]
    return np.any([(y - cy) ** 2 + (x - cx) ** 2 <= r**2 for cy, cx, r in circles], axis=0)


@pytest.fixture
def folder(tmp_path):
    """Two label maps of three classes, of which one has no pixel."""
    result = tmp_path / "maps"
    (result / "sub").mkdir(parents=True)
    (result / "classes.json").write_text(json.dumps({"classes": ["soil", "cell", "none"]}))
    first = disks(60, 100, (30, 25, 15), (30, 50, 15)).astype(np.uint8)
    first[0, 0] = 255
    Image.fromarray(first).save(result / "a.png")
    second = np.zeros((10, 20), np.uint8)
    second[2:4, 3:9] = second[7, 7] = 1
    Image.fromarray(second).save(result / "sub/b.png")
    return result


def test_every_class_of_every_image_is_counted(folder):
    rows = measure_classes(folder, resolution="0.5um")
    assert [(row["image"], row["class"]) for row in rows] == [
        (image, name) for image in ("a", "sub/b") for name in ("soil", "cell", "none")
    ]
    cells = int(disks(60, 100, (30, 25, 15), (30, 50, 15)).sum())
    assert rows[1]["pixels"] == cells
    assert rows[1]["share"] == cells / 6000
    assert rows[1]["area_um2"] == cells / 4
    assert [row["regions"] for row in rows] == [1, 1, 0, 1, 2, 0]
    totals = summarize(rows)
    assert [row["images"] for row in totals] == [2, 2, 0]
    assert totals[0]["pixels"] == 6000 - cells - 1 + 200 - 13
    assert totals[1]["share"] == (cells + 13) / 6200
    assert totals[1]["area_um2"] == (cells + 13) / 4


def test_objects_that_touch_are_split_and_specks_left_out(folder):
    rows = measure_objects(folder, only=["cell"], min_area=5)
    assert [(row["image"], row["object"]) for row in rows] == [("a", 1), ("a", 2), ("sub/b", 1)]
    left, right, box = rows
    assert abs(left["x"] - 25) < 1.5
    assert abs(right["x"] - 51) < 1.5
    assert abs(left["pixels"] - math.pi * 15**2) < 60
    assert (box["left"], box["top"], box["width"], box["height"], box["pixels"]) == (3, 2, 6, 2, 12)
    assert (box["x"], box["y"]) == (6.0, 3.0)
    whole = measure_objects(folder, only=["cell"], min_area=5, neck=0)
    assert len(whole) == 2
    assert whole[0]["pixels"] == left["pixels"] + right["pixels"]


@pytest.mark.parametrize(
    ("circles", "count"),
    [
        ([(40, 40, 20)], 1),
        ([(40, 40, 20), (40, 72, 20)], 2),
        ([(40, 40, 20), (40, 48, 20)], 1),  # an oval
        ([(30, 30, 15), (30, 58, 15), (54, 44, 15)], 3),
        ([(40, 40, 20), (40, 69, 10)], 2),
    ],
)
def test_necks_decide_how_many_objects_there_are(circles, count):
    mask = disks(90, 110, *circles)
    found = split_touching(mask, 0.75)
    assert found.max() == count
    assert ((found > 0) == mask).all()


def test_a_long_region_of_even_width_stays_whole():
    rng = np.random.default_rng(0)
    mask = np.zeros((80, 200), bool)
    for x in range(200):
        center = 40 + 20 * math.sin(x / 25)
        mask[int(center) - 3 : int(center) + 3 + rng.integers(0, 2), x] = True
    assert split_touching(mask, 0.75).max() == 1


def test_objects_of_different_classes_are_not_merged():
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    assert find_objects(labels).classes.tolist() == [0, 1]


def test_a_georeferenced_label_map_has_areas_in_square_meters(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.transform import from_origin

    (tmp_path / "classes.json").write_text('{"classes": ["field", "tree"]}')
    labels = np.zeros((8, 10), np.uint8)
    labels[:2, :3] = 1
    settings = {"driver": "GTiff", "height": 8, "width": 10, "count": 1, "dtype": "uint8"}
    place = {"crs": "EPSG:32632", "transform": from_origin(5e5, 5e6, 0.2, 0.2)}
    with rasterio.open(tmp_path / "a.tif", "w", **settings, **place) as dataset:
        dataset.write(labels, 1)
    Image.fromarray(labels).save(tmp_path / "b.png")
    rows = measure_classes(tmp_path)
    assert rows[1]["area_m2"] == pytest.approx(6 * 0.04)
    assert rows[3]["area_m2"] is None  # b.png has no scale
    assert summarize(rows)[1]["area_m2"] is None


@pytest.mark.parametrize("text", ["0.25", "um", "-1um", "0m", "1 km", "1e999m", "nanm"])
def test_a_resolution_without_a_number_or_unit_is_rejected(text):
    with pytest.raises(InputError, match="must be the side of a pixel with its unit"):
        Resolution.parse(text)


def test_tables_are_read_back_and_files_of_others_stay(folder, tmp_path):
    rows = measure_classes(folder)
    write_table(rows, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(encoding="utf-8-sig", newline="") as file:
        assert [row["pixels"] for row in csv.DictReader(file)] == [
            str(row["pixels"]) for row in rows
        ]
    write_table(rows, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["rows"] == rows
    (tmp_path / "b.csv").write_text("mine")
    with pytest.raises(OutputError, match="b.csv"):
        write_table(rows, tmp_path / "b.csv")
    with pytest.raises(InputError, match="suffix of a table"):
        write_table(rows, tmp_path / "a.xlsx")


def test_parquet_is_read_back(folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = measure_classes(folder)
    write_table(rows, tmp_path / "a.parquet")
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == rows


def test_names_that_are_no_class_are_rejected(folder):
    with pytest.raises(InputError, match="'cells' is not a class; the classes are soil, cell"):
        measure_objects(folder, only=["cells"])
