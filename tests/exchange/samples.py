"""Folders as ``predict`` and ``propose`` write them, with their images."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from primaps.exchange.classes import Classes
from primaps.exchange.labelstudio import encode


@dataclass
class Collection:
    """Images with label maps and classes."""

    root: Path
    maps: dict[str, np.ndarray]
    classes: Classes

    @property
    def result(self) -> Path:
        return self.root / "result"

    @property
    def images(self) -> Path:
        return self.root / "images"


def collection(root: Path, maps: dict[str, np.ndarray], classes: Classes | None) -> Collection:
    """Write label maps by file names of images; without classes they are mask proposals."""
    for name, labels in maps.items():
        image = root / "images" / name
        image.parent.mkdir(parents=True, exist_ok=True)
        gray = (np.arange(labels.size) % 200).astype(np.uint8).reshape(labels.shape)
        Image.fromarray(gray).convert("RGB").save(image)
        path = root / "result" / f"{key_of(name, maps)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(path)
    record: dict = {"command": "propose"}
    if classes is not None:
        record = {"command": "predict", "names": list(classes.names)}
        content = json.dumps(classes.as_json())
        (root / "result" / "classes.json").write_text(content, "utf-8")
    (root / "result" / "primaps.json").write_text(json.dumps(record), "utf-8")
    return Collection(root, maps, classes or Classes(("proposal",)))


def key_of(name: str, maps: dict[str, np.ndarray]) -> str:
    bare = str(Path(name).with_suffix(""))
    equal = [one for one in maps if str(Path(one).with_suffix("")).casefold() == bare.casefold()]
    return bare if len(equal) == 1 else name


def read_maps(folder: Path) -> dict[str, np.ndarray]:
    """Return the label maps of a folder by their keys."""
    return {
        path.relative_to(folder).as_posix()[: -len(".png")]: np.asarray(Image.open(path))
        for path in sorted(folder.rglob("*.png"))
    }


def blocks(seed: int, height: int, width: int, classes: int, block: int = 9) -> np.ndarray:
    """Return a label map of regions with holes, specks and pixels without a label."""
    generator = np.random.default_rng(seed)
    rows, columns = -(-height // block), -(-width // block)
    coarse = generator.integers(0, classes, (rows, columns))
    labels = coarse.repeat(block, 0).repeat(block, 1)[:height, :width].astype(np.uint8)
    specks = generator.random(labels.shape) < 0.02
    labels[specks] = generator.integers(0, classes, specks.sum())
    labels[generator.random(labels.shape) < 0.01] = 255
    return labels


def drawn_files() -> dict[str, dict[str, bytes]]:
    """Return files with every shape that a person can draw, by the format and their names."""
    corners = [[4.5, 3], [24, 3], [24, 18], [4, 18.5]]
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "categories": [{"id": 3, "name": "x"}, {"id": 7, "name": "y"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "bbox": [1, 2, 3, 4],
             "segmentation": [np.ravel(corners).tolist(), [1, 1, 9, 1, 9, 9]]},
            {"id": 2, "image_id": 1, "category_id": 7, "iscrowd": 1,
             "segmentation": {"size": [30, 40], "counts": [60, 300, 840]}},
        ],
    }  # fmt: skip
    about = {"group_id": None, "flags": {}}
    kinds = {"polygon": corners, "rectangle": corners[::2], "circle": corners[:2],
             "line": corners[:2], "linestrip": corners, "point": corners[:1]}  # fmt: skip
    shapes = [{"label": "x", "shape_type": k, "points": v, **about} for k, v in kinds.items()]
    mask = {"label": "y", "shape_type": "mask", "points": [[3, 4], [7, 9]], "mask": _png(5, 6)}
    labelme = {"version": "5.4.1", "shapes": [*shapes, mask], "imagePath": "..\\images\\a.png",
               "imageData": None, "imageHeight": 30, "imageWidth": 40}  # fmt: skip
    place = {"x": 10, "y": 20.5, "width": 30, "height": 40, "rotation": 30}
    values = {
        "rectangle": place, "polygon": {"points": corners},
        "ellipse": {"x": 50, "y": 40, "radiusX": 20, "radiusY": 10, "rotation": 0},
        "keypoint": place, "bitmask": {"imageDataURL": f"data:image/png;base64,{_png(40, 30)}"},
        "brush": {"format": "rle", "rle": encode(np.eye(30, 40, dtype=bool))},
    }  # fmt: skip
    size = {"original_width": 40, "original_height": 30, "image_rotation": 0, "to_name": "image"}
    regions = [
        {"id": k, "type": f"{k}labels", "value": {**v, f"{k}labels": ["x"]}, **size}
        for k, v in values.items()
    ]
    regions += [{"id": "a", "type": "ellipse", "value": values["ellipse"], **size}]
    regions += [{"id": "a", "type": "labels", "value": {"labels": ["y"]}, **size}]
    annotations = [{"result": regions, "was_cancelled": False, "ground_truth": False}] * 2
    task = {"data": {"image": "/data/upload/1/abcdef12-a.png"}, "annotations": annotations}
    points = ";".join(f"{x},{y}" for x, y in corners)
    cvat = f"""<annotations><meta><task><labels><label><name>x</name></label></labels></task></meta>
<image name="a.png" width="40" height="30"><polygon label="x" points="{points}" z_order="1"/>
<box label="x" xtl="1.5" ytl="2" xbr="9" ybr="9" rotation="30"/><tag label="x"/>
<ellipse label="x" cx="20" cy="15" rx="10" ry="6"/><polyline label="x" points="{points}"/>
<points label="x" points="1,1"/><mask label="x" rle="3, 6" left="2" top="3" width="3" height="3"/>
</image></annotations>"""
    picture = base64.b64decode(_png(40, 30))
    row = b"0 0.1 0.1 0.6 0.1 0.6 0.6\n1 0.5 0.5 0.9 0.5 0.9 0.9 0.5 0.9\n\n"
    return {
        "coco": {"a.json": json.dumps(coco).encode()},
        "labelme": {"json/a.json": json.dumps(labelme).encode(), "labels.txt": b"x\ny\n\n"},
        "labelstudio": {"tasks.json": json.dumps([task]).encode()},
        "cvat": {"a.xml": cvat.encode()},
        "yolo": {
            "data.yml": b"train: ../train/images\nnc: 2\nnames:\n  0: x\n  1: y\n",
            "train/images/a.png": picture, "train/labels/a.txt": row,
            "valid/images/a.png": picture, "valid/labels/a.txt": row,
        },
    }  # fmt: skip


def _png(width: int, height: int) -> str:
    content = io.BytesIO()
    Image.fromarray(np.eye(height, width, dtype=np.uint8) * 255).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode("ascii")
