"""The table of formats. A new one is a module with ``write`` (and ``read``), and a row here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from primaps.exchange import (
    coco,
    cvat,
    geo,
    hf,
    labelme,
    labelstudio,
    panoptic,
    voc,
    yolo,
)
from primaps.exchange.classes import Classes
from primaps.exchange.labeled import LabeledImage, Read
from primaps.exchange.source import Source
from primaps.utils.errors import InputError

Write = Callable[[Iterable[LabeledImage], Classes, Path, str], None]
"""Writes images, which come one at a time, with their classes into an empty folder; the last
argument is ``class`` or ``region``, for formats that list regions."""


@dataclass(frozen=True)
class Format:
    """A row of the table.

    Attributes:
        about: what it is, in a few words.
        write: see :data:`Write`.
        read: from files to classes and label maps; None if there is no way back.
        next: what to do with ``{out}`` in the tool; ``{names}`` are those of the classes.
        per: what regions are by default: ``class``, or connected ``region``. None for formats that
            hold a label map or outlines, where there is nothing to choose.
        instances: whether it can hold proposals, which are regions without a class.
    """

    about: str
    write: Write
    read: Callable[[Source], Read] | None
    next: str
    per: str | None = None
    instances: bool = True


FORMATS = {
    "coco": Format(
        "COCO instances, compressed RLE",
        coco.write,
        coco.read,
        "read it with pycocotools.coco.COCO('{out}/annotations.json'); most trainers take this "
        "file and the folder of images",
        per="region",
    ),
    "coco-panoptic": Format(
        "COCO panoptic, JSON and PNG",
        panoptic.write,
        panoptic.read,
        "give {out}/panoptic.json and the folder {out}/panoptic to a trainer of panoptic "
        "segmentation",
        per="class",
    ),
    "cvat": Format(
        "CVAT for images 1.1, masks",
        cvat.write,
        cvat.read,
        "in CVAT: create a task with your images and these labels: {names} (Raw: paste "
        "{out}/labels.json); Actions, Upload annotations, CVAT 1.1, {out}/annotations.xml",
        per="class",
    ),
    "cvat-mask": Format(
        "Segmentation mask 1.1 of CVAT",
        voc.write_cvat,
        voc.read,
        "in CVAT: create a task with your images and these labels: {names}; Actions, Upload "
        "annotations, Segmentation mask 1.1, {out}/masks.zip",
        instances=False,
    ),
    "labelstudio": Format(
        "Label Studio, brush",
        labelstudio.write,
        labelstudio.read,
        "start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT set to the folder above that of your images; "
        "create a project, paste {out}/labeling_config.xml under Labeling Interface, Code; under "
        "Cloud Storage add the folder of your images as Local files; import {out}/tasks.json",
        per="class",
    ),
    "labelme": Format(
        "labelme, JSON beside each image",
        labelme.write,
        labelme.read,
        "labelme {out} --labels {out}/labels.txt",
        per="class",
    ),
    "voc": Format(
        "PASCAL VOC, palette PNGs and lists",
        voc.write,
        voc.read,
        "{out} is laid out like VOCdevkit/VOC2012: class k is k in the PNGs, 255 is ignored",
        instances=False,
    ),
    "yolo-semantic": Format(
        "Ultralytics, semantic",
        yolo.write_semantic,
        yolo.read_semantic,
        "yolo semantic train model=yolo26n-sem.pt data={out}/data.yaml",
        instances=False,
    ),
    "yolo": Format(
        "Ultralytics, polygons",
        yolo.write,
        yolo.read,
        "yolo segment train model=yolo26n-seg.pt data={out}/data.yaml",
    ),
    "hf": Format(
        "Hugging Face imagefolder",
        hf.write,
        hf.read,
        "datasets.load_dataset('{out}') has the columns image and label",
        instances=False,
    ),
    "geojson": Format(
        "GeoJSON, a file per image",
        geo.write_geojson,
        None,
        "drag {out} into QGIS; Properties, Symbology, Categorized by 'name'",
    ),
    "gpkg": Format(
        "GeoPackage, a layer per CRS",
        geo.write_gpkg,
        None,
        "drag {out}/regions.gpkg into QGIS; Properties, Symbology, Categorized by 'name'",
    ),
}


def find_format(name: str, reading: bool = False) -> Format:
    """A row by its name.

    Raises:
        InputError: there is none, or it cannot be read back.
    """
    known = [one for one, row in FORMATS.items() if row.read or not reading]
    if name not in known:
        way = "read" if reading else "written"
        raise InputError(f"{name!r} cannot be {way}; the formats are {', '.join(known)}")
    return FORMATS[name]
