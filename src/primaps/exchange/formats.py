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
        description: What the files are, in a few words.
        files: Files that are written, for the documentation.
        writer: Module and function that write. The function takes the images, one at a time, their
            classes, an empty folder, and ``class`` or ``region``.
        reader: Module and function that read; None if the format cannot be imported. The function
            takes :class:`primaps.exchange.files.InputFiles` and returns
            :class:`primaps.exchange.labeled.Labels`.
        next: Next step in the other tool; ``{out}`` is the folder, ``{names}`` the class names.
        per: Default region: ``class``, or connected ``region``; None if there is no choice.
        proposals: Whether it can hold mask proposals, which are regions without a class.
        lossless: What an import returns of the label maps.
    """

    title: str
    description: str
    files: str
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
        "COCO instances with compressed RLE masks",
        "`annotations.json`",
        "coco.write",
        "coco.read",
        "read it with pycocotools.coco.COCO('{out}/annotations.json'); most trainers take this "
        "file and the folder of images",
        per="region",
    ),
    "coco-panoptic": Format(
        "COCO panoptic",
        "COCO panoptic, one PNG per image",
        "`panoptic.json`, `panoptic/*.png`",
        "coco.write_panoptic",
        "coco.read_panoptic",
        "give {out}/panoptic.json and the folder {out}/panoptic to a trainer of panoptic "
        "segmentation",
        per="class",
    ),
    "cvat": Format(
        "CVAT",
        "CVAT for images 1.1 with masks",
        "`annotations.xml`, `labels.json`",
        "cvat.write",
        "cvat.read",
        "in CVAT: create a task with your images and these labels: {names} (Raw: paste "
        "{out}/labels.json); Actions, Upload annotations, CVAT 1.1, {out}/annotations.xml",
        per="class",
    ),
    "cvat-mask": Format(
        "CVAT masks",
        "CVAT Segmentation mask 1.1",
        "`masks.zip`",
        "voc.write_cvat",
        "voc.read",
        "in CVAT: create a task with your images and these labels: {names}; Actions, Upload "
        "annotations, Segmentation mask 1.1, {out}/masks.zip",
        proposals=False,
    ),
    "labelstudio": Format(
        "Label Studio",
        "Label Studio predictions with brush masks",
        "`tasks.json`, `labeling_config.xml`",
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
        "labelme, one JSON file per image",
        "images, a JSON file beside each, `labels.txt`",
        "labelme.write",
        "labelme.read",
        "labelme {out} --labels {out}/labels.txt",
        per="class",
        lossless="without colors",
    ),
    "voc": Format(
        "Pascal VOC",
        "Pascal VOC with palette PNGs",
        "`JPEGImages`, `SegmentationClass`, `SegmentationObject`, `ImageSets`, `labelmap.txt`",
        "voc.write",
        "voc.read",
        "{out} has the layout of VOCdevkit/VOC2012; class k is the value k, 255 is ignored",
        proposals=False,
    ),
    "yolo-semantic": Format(
        "YOLO semantic",
        "Ultralytics semantic segmentation with index PNGs",
        "`images`, `masks`, `data.yaml`",
        "yolo.write_semantic",
        "yolo.read_semantic",
        "yolo semantic train model=yolo26n-sem.pt data={out}/data.yaml",
        proposals=False,
        lossless="without colors",
    ),
    "yolo": Format(
        "YOLO",
        "Ultralytics instance segmentation with polygons",
        "`images`, `labels/*.txt`, `data.yaml`",
        "yolo.write",
        "yolo.read",
        "yolo segment train model=yolo26n-seg.pt data={out}/data.yaml",
        lossless="without colors",
    ),
    "hf": Format(
        "Hugging Face",
        "Hugging Face datasets, image folder",
        "`*/images`, `*/labels`, `*/metadata.jsonl`, `classes.json`, `README.md`",
        "hf.write",
        "hf.read",
        "datasets.load_dataset('{out}') has the columns image and label",
        proposals=False,
    ),
    "geojson": Format(
        "GeoJSON",
        "GeoJSON polygons, one file per image",
        "`*.geojson`",
        "geo.write_geojson",
        None,
        "drag {out} into QGIS; Properties, Symbology, Categorized by 'name'",
        lossless="export only",
    ),
    "gpkg": Format(
        "GeoPackage",
        "GeoPackage polygons, one layer per CRS",
        "`regions.gpkg`",
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
    rows = ["| format | description | files | import is lossless | proposals | region |"]
    rows.append("|---|---|---|---|---|---|")
    for name, row in FORMATS.items():
        cells = [f"`{name}`", row.description, row.files, row.lossless]
        cells += ["yes" if row.proposals else "no", row.per or "-"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
