"""Predict class maps of scenes, and of images at their own resolution."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from primaps.classes.legend import HIDDEN
from primaps.config import InferenceOptions
from primaps.data import LogCallback
from primaps.model import PriMaPsEM
from primaps.results import RawFile, WorkFolder, resumable_file
from primaps.scenes.polygons import check_geopackage, write_polygons
from primaps.scenes.readers import in_memory
from primaps.scenes.source import Scene
from primaps.scenes.tile_inference import blend, blended_values, refine
from primaps.scenes.tiling import TilingOptions
from primaps.scenes.writer import Labels, check_side_file, write_labels, written_digest
from primaps.utils.errors import InputError
from primaps.utils.files import temporary_folder
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validated
from primaps.version import VERSION

logger = logging.getLogger("primaps")


@validated
def predict_scene(
    model: PriMaPsEM,
    path: str | Path,
    out: str | Path,
    *,
    names: Sequence[str] | None = None,
    polygons: str | Path | None = None,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
    **options: Any,
) -> bool:
    """Write the class map of an image of any size.

    Command line: ``primaps predict MODEL scene.tif --out classes.tif``.

    The scene is processed in overlapping tiles. Their class logits are blended on the token grid,
    and the CRF refines overlapping tiles of the result. ``out`` has the size and the georeference
    of the scene, the class 0..K-1 of every pixel, 255 for pixels without a value and hidden
    classes, and the colors and names of classes. It is a cloud-optimized GeoTIFF, or a tiled TIFF
    if rasterio is not installed. A run that was killed is resumed by the same call, with
    bit-identical results.

    Args:
        model: a fitted model.
        path: the scene: a GeoTIFF, a TIFF, a slide or another image file.
        out: the ``.tif`` to write.
        names: class names; None means those of ``edits.json`` or of the cut.
        polygons: GeoPackage to write as well: regions with class, name and area.
        progress: progress callback.
        log: called with one sentence if the scene seems to have nodata that is not declared.
        **options: fields of :class:`primaps.config.InferenceOptions` and of
            :class:`primaps.scenes.tiling.TilingOptions`.

    Returns:
        Whether anything was written: False if an earlier call already wrote everything.

    Raises:
        SceneError: the scene is damaged, or has five or more bands and none are selected.
        OutputError: ``out`` or ``polygons`` exists and is not the result of this call.
        ModelError: the model is not fitted.
        InputError: an option does not fit the scene.
        MissingPackageError: the scene needs a package that is not installed.
    """
    inference, tiling = split_options(model, options)
    path, out = Path(path).expanduser(), Path(out).expanduser()
    titles, colors = shown_classes(model, names)
    if len(titles) > HIDDEN:
        raise InputError(
            f"the model has {len(titles)} classes; a class map of a scene supports at most {HIDDEN}"
        )
    if polygons is not None:
        polygons = Path(polygons).expanduser()
        check_geopackage(polygons)
    check_side_file(out, titles)
    manifest = {
        "primaps": VERSION,
        "command": "predict scene",
        "model": model.prediction_digest(),
        "names": titles,
        "colors": colors.tolist(),
        **asdict(inference),
        **asdict(tiling),
    }
    with (
        closing(tiling.open(path, log)) as scene,
        resumable_file(out, path, manifest, written_digest) as (work, digest),
    ):
        if work is not None:
            raw = scene_classes(model, scene, tiling, inference, work, progress)
            labels = Labels(raw, HIDDEN, titles, colors, scene.georeference)
            write_labels(labels, out, digest, progress)
    written = work is not None
    if polygons is not None:
        written |= write_polygons(out, polygons, titles, colors, scene.sizes[0], progress)
    return written


@validated
def predict_image(model: PriMaPsEM, image: Image.Image, **options: Any) -> UInt8[np.ndarray, "H W"]:
    """Predict the class of every pixel of an image in tiles, at the image's own resolution.

    :meth:`primaps.PriMaPsEM.predict` scales the image to the size of the model instead.

    Args:
        model: a fitted model.
        image: an image; fully transparent pixels get the value 255.
        **options: fields of :class:`primaps.config.InferenceOptions` and of
            :class:`primaps.scenes.tiling.TilingOptions`, except ``bands``, ``nodata`` and
            ``alpha``.

    Returns:
        Class 0..K-1 of every pixel; 255 for pixels without a value and hidden classes.

    Raises:
        ModelError: the model is not fitted.
        InputError: an option does not fit the image.
    """
    inference, tiling = split_options(model, options)
    defaults = TilingOptions()
    for name in ("bands", "nodata", "alpha"):
        if getattr(tiling, name) != getattr(defaults, name):
            raise InputError(f"{name} applies to scenes, not to images; leave it out")
    with temporary_folder() as folder:
        raw = scene_classes(model, in_memory(image), tiling, inference, WorkFolder(folder), silent)
        return raw.rows(0, image.height)


def split_options(
    model: PriMaPsEM, options: dict[str, Any]
) -> tuple[InferenceOptions, TilingOptions]:
    """Separate the options of inference from those of tiling; both have ``size``."""
    names = {"crf", "flip", "precision", "reject", "level"}
    inference = InferenceOptions(**{name: options[name] for name in names & options.keys()})
    tiling = TilingOptions(**{name: value for name, value in options.items() if name not in names})
    return replace(model.segmenter.resolve(inference), size=tiling.size), tiling


def scene_classes(
    model: PriMaPsEM,
    scene: Scene,
    tiling: TilingOptions,
    inference: InferenceOptions,
    work: WorkFolder,
    progress: ProgressCallback,
) -> RawFile:
    """Predict the class of every pixel of a scene, (height, width) on disk."""
    view, network, segmenter = tiling.view(scene), model.network, model.segmenter
    tiles = tiling.tiles(view, network, segmenter.size, segmenter.classes)
    values, groups = blended_values(segmenter, inference)
    blended = blend(values, groups, view, tiles, work, progress, network.device)
    return refine(segmenter, view, tiles, blended, inference, tiling.crf_tile, work, progress)


def shown_classes(
    model: PriMaPsEM, names: Sequence[str] | None
) -> tuple[list[str], UInt8[np.ndarray, "k 3"]]:
    """Return the names and colors of the classes that a model predicts."""
    shown = model.shown_classes
    titles = list(names) if names else [one.name for one in shown]
    if len(titles) != len(shown):
        raise InputError(
            f"names has {len(titles)} entries for {len(shown)} classes; give one per class"
        )
    return titles, np.array([one.color for one in shown], np.uint8)
