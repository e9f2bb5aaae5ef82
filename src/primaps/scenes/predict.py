"""The way of a scene from a file of any size to a map of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from primaps.classes.legend import HIDDEN
from primaps.model import ModelError, PriMaPsEM
from primaps.scenes.logits import blend, model_values
from primaps.scenes.reader import in_memory, open_scene
from primaps.scenes.refine import refine
from primaps.scenes.source import Scene
from primaps.scenes.tiling import TilingOptions
from primaps.scenes.work import RawFile, Work, result_of
from primaps.scenes.writer import Labels, check_sidecar, write_labels, written_digest
from primaps.utils.colors import palette
from primaps.utils.errors import InputError
from primaps.utils.files import temporary_folder
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validated
from primaps.version import VERSION


@validated
def predict_scene(
    model: PriMaPsEM,
    path: str | Path,
    out: str | Path,
    *,
    crf: bool = True,
    names: Sequence[str] | None = None,
    polygons: str | Path | None = None,
    progress: ProgressCallback = silent,
    **fields: Any,
) -> bool:
    """Class map of an image of any size: ``primaps predict MODEL scene.tif --out classes.tif``.

    Overlapping crops are read one row at a time; their class logits are blended on the feature
    grid; the CRF runs on overlapping windows and keeps their cores. ``out`` has the size, place and
    CRS of the scene, class 0..K-1 of every pixel, 255 where the scene has no value or a class is
    hidden, colors and names; it is a cloud-optimized GeoTIFF, or a tiled TIFF if rasterio is not
    installed. What a killed run did is kept beside it: the same call goes on, to the same bytes.

    Args:
        names: of the classes; those of ``classes.json`` or the cut if None.
        polygons: also write regions with class, name and area to this GeoPackage.
        **fields: of :class:`primaps.scenes.tiling.TilingOptions`.

    Returns:
        Whether anything had to be written: False if an earlier call had done all.

    Raises:
        SceneError: the scene is damaged, or nothing says which of its bands to show.
        ResultError: ``out`` or ``polygons`` exists and is of something else.
        ModelError: the model is not fitted.
        InputError: options do not fit the scene.
        MissingPackageError: the scene needs a package that is not installed.
    """
    tiling, path, out = TilingOptions(**fields), Path(path).expanduser(), Path(out).expanduser()
    titles, colors = shown_classes(model, names)
    if len(titles) > HIDDEN:
        raise InputError(
            f"the model has {len(titles)} classes; maps of scenes hold {HIDDEN} and no value"
        )
    if polygons is not None:
        from primaps.scenes.polygons import check_geopackage, write_polygons  # scipy, 0.3 s

        check_geopackage(Path(polygons).expanduser())
    check_sidecar(out, titles)
    options = {
        "primaps": VERSION,
        "command": "predict scene",
        "model": model.prediction_digest(),
        "crf": crf,
        "names": titles,
        "colors": colors.tolist(),
        **tiling.to_dict(),
    }
    with (
        closing(open_scene(path, tiling.bands)) as scene,
        result_of(out, path, options, written_digest) as (work, digest),
    ):
        if work is not None:
            raw = scene_classes(model, scene, tiling, crf, work, progress)
            labels = Labels(raw, HIDDEN, titles, colors, scene.place)
            write_labels(labels, out, digest, progress)
    done = work is not None
    if polygons is not None:
        done |= write_polygons(out, Path(polygons).expanduser(), titles, colors, progress)
    return done


@validated
def predict_image(
    model: PriMaPsEM, image: Image.Image, crf: bool = True, **fields: Any
) -> UInt8[np.ndarray, "H W"]:
    """Class of every pixel of a image, looked at by crops as a scene is, not scaled to the
    model's size.

    Args:
        **fields: of :class:`primaps.scenes.tiling.TilingOptions`.

    Raises:
        ModelError: the model is not fitted.
        InputError: options do not fit the image.
    """
    tiling = TilingOptions(**fields)
    if tiling.bands is not None:
        raise InputError("bands applies to scenes, not to images; leave it out")
    with temporary_folder() as folder:
        raw = scene_classes(model, in_memory(image), tiling, crf, Work(folder), silent)
        return raw.rows(0, image.height)


def scene_classes(
    model: PriMaPsEM,
    scene: Scene,
    tiling: TilingOptions,
    crf: bool,
    work: Work,
    progress: ProgressCallback,
) -> RawFile:
    """Classes of every pixel of a scene, on disk: crops, blended logits, CRF."""
    if model.prototypes_ is None:
        raise ModelError("the model is not fitted: call fit first, or load one")
    view, network = tiling.view(scene), model.network
    crops = tiling.crops(view, network, model.size, model.config.classes)
    values, groups = model_values(model)
    blended = blend(values, groups, view, crops, network.patch_size, work, progress, network.device)
    return refine(model, view, crops, blended, crf, tiling.crf_tile, work, progress)


def shown_classes(
    model: PriMaPsEM, names: Sequence[str] | None
) -> tuple[list[str], UInt8[np.ndarray, "k 3"]]:
    """Names and colors of the classes that a model predicts.

    Raises:
        InputError: there are more or fewer names than classes.
    """
    legend, count = model.legend_, model.classes
    titles = legend.names if legend else [f"class {k}" for k in range(count)]
    titles = list(names) if names else titles
    if len(titles) != count:
        raise InputError(f"{len(titles)} names were given for {count} classes")
    return titles, legend.colors if legend else palette(count)
