"""The table of formats, which the command line, the studio and docs/exchange.md read.

A new format is a module with a writer (and a reader), and a row here. The modules are imported at
their first use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from primaps.utils.errors import InputError


@dataclass(frozen=True)
class Format:
    """A row of the table.

    Attributes:
        title: Name of the format in the studio.
        description: Files that are written, and what they contain.
        writer: Module and function that write. The function takes the images, one at a time, their
            classes, an empty folder, and ``class`` or ``region``.
        reader: Module and function that read; None if the format cannot be imported. The function
            takes :class:`primaps.exchange.files.InputFiles` and returns
            :class:`primaps.exchange.labeled.Labels`.
        next: Next steps in the other tool, separated by semicolons; ``{out}`` is the folder,
            ``{names}`` the class names, and commands are in backticks.
        per: Default region: ``class``, or connected ``region``; None if there is no choice.
        proposals: Whether it can hold mask proposals, which are regions without a class.
        lossless: What an import returns of the label maps.
    """

    title: str
    description: str
    writer: str
    reader: str | None
    next: str
    per: str | None = None
    proposals: bool = True
    lossless: str = "yes"

    @property
    def write(self) -> Callable[..., None]:
        """The writer."""
        return _function(self.writer)

    @property
    def read(self) -> Callable[..., Any] | None:
        """The reader."""
        return _function(self.reader) if self.reader else None


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(".")
    return getattr(import_module(f"primaps.exchange.{module}"), function)


FORMATS = {
    "coco": Format(
        "COCO",
        "annotations.json: instances with compressed RLE masks",
        "coco.write",
        "coco.read",
        "read it with pycocotools.coco.COCO('{out}/annotations.json'); most trainers take this "
        "file and the folder of images",
        per="region",
    ),
    "coco-panoptic": Format(
        "COCO panoptic",
        "panoptic.json and panoptic/*.png, in which id = R + 256 G + 65536 B",
        "coco.write_panoptic",
        "coco.read_panoptic",
        "give {out}/panoptic.json and the folder {out}/panoptic to a trainer of panoptic "
        "segmentation",
        per="class",
    ),
    "cvat": Format(
        "CVAT",
        "annotations.xml: CVAT for images 1.1 with masks; labels.json for the task",
        "cvat.write",
        "cvat.read",
        "in CVAT: create a task with your images and these labels: {names} (Raw: paste "
        "{out}/labels.json); Actions, Upload annotations, CVAT 1.1, {out}/annotations.xml",
        per="class",
    ),
    "cvat-mask": Format(
        "CVAT masks",
        "masks.zip: Segmentation mask 1.1",
        "voc.write_cvat",
        "voc.read",
        "in CVAT: create a task with your images and these labels: {names}; Actions, Upload "
        "annotations, Segmentation mask 1.1, {out}/masks.zip",
        proposals=False,
    ),
    "labelstudio": Format(
        "Label Studio",
        "tasks.json: predictions with brush masks; labeling_config.xml",
        "labelstudio.write",
        "labelstudio.read",
        "start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT set to the folder above that of your images; "
        "create a project, paste {out}/labeling_config.xml under Labeling Interface, Code; under "
        "Cloud Storage add the folder of your images as Local files; import {out}/tasks.json",
        per="class",
    ),
    "labelme": Format(
        "labelme",
        "images with a JSON file beside each; labels.txt",
        "labelme.write",
        "labelme.read",
        "run `labelme {out} --labels {out}/labels.txt`",
        per="class",
        lossless="without colors",
    ),
    "voc": Format(
        "Pascal VOC",
        "JPEGImages, SegmentationClass (palette PNGs), SegmentationObject, ImageSets, labelmap.txt",
        "voc.write",
        "voc.read",
        "{out} has the layout of VOCdevkit/VOC2012; class k is the value k, 255 is ignored",
        proposals=False,
    ),
    "yolo-semantic": Format(
        "YOLO semantic",
        "images, masks (index PNGs) and data.yaml for Ultralytics",
        "yolo.write_semantic",
        "yolo.read_semantic",
        "run `yolo semantic train model=yolo26n-sem.pt data={out}/data.yaml`",
        proposals=False,
        lossless="without colors",
    ),
    "yolo": Format(
        "YOLO",
        "images, labels (polygons) and data.yaml for Ultralytics",
        "yolo.write",
        "yolo.read",
        "run `yolo segment train model=yolo26n-seg.pt data={out}/data.yaml`",
        lossless="without colors",
    ),
    "hf": Format(
        "Hugging Face",
        "images, labels (index PNGs) and metadata.jsonl for datasets",
        "hf.write",
        "hf.read",
        "load it with `datasets.load_dataset('{out}')`, which has the columns image and label",
        proposals=False,
    ),
    "geojson": Format(
        "GeoJSON",
        "a file of polygons per image, in the CRS of the image",
        "geo.write_geojson",
        None,
        "drag {out} into QGIS; Properties, Symbology, Categorized by 'name'",
        lossless="export only",
    ),
    "gpkg": Format(
        "GeoPackage",
        "regions.gpkg: polygons with a layer for each CRS",
        "geo.write_gpkg",
        None,
        "drag {out}/regions.gpkg into QGIS; Properties, Symbology, Categorized by 'name'",
        lossless="export only",
    ),
}
EXPORT_FORMATS = tuple(FORMATS)
IMPORT_FORMATS = tuple(name for name, row in FORMATS.items() if row.reader)


def find_format(name: str, reading: bool = False) -> Format:
    """Return a row by its name.

    Raises:
        InputError: The format is not supported, or cannot be imported.
    """
    known = IMPORT_FORMATS if reading else EXPORT_FORMATS
    if name not in known:
        verb = "import" if reading else "export"
        raise InputError(f"the {verb} format must be one of {', '.join(known)}, got {name!r}")
    return FORMATS[name]


def format_table() -> str:
    """Return the table of docs/exchange.md in Markdown."""
    rows = ["| `--to`, `--from` | format | files | lossless import | proposals | region |"]
    rows.append("|---|---|---|---|---|---|")
    for name, row in FORMATS.items():
        cells = [f"`{name}`", row.title, row.description, row.lossless]
        cells += ["yes" if row.proposals else "no", row.per or "-"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
