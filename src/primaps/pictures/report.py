"""The report of a model: one HTML file that needs no network, with its pictures inside."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge
from jaxtyping import Bool, Float, Integer
from PIL import Image
from torch import Tensor

from primaps.classes.legend import Class, hidden_last, legend
from primaps.data import (
    ImageError,
    ImageFile,
    LogCallback,
    find_images,
    fit_to_patches,
    load_image,
    read,
)
from primaps.data.folder import IgnoreIndex
from primaps.evaluation.protocol import Evaluation, evaluate
from primaps.model import PriMaPsEM
from primaps.pictures.overlays import overlay
from primaps.pictures.report_page import Look, Seen, page
from primaps.results import check_file, own_file
from primaps.utils.bilinear import upsample
from primaps.utils.colors import palette
from primaps.utils.files import user_path
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.seeding import generator
from primaps.utils.validation import validated

logger = logging.getLogger("primaps")
CROPS = 5
"""Most typical and least typical crops of each class."""
CROP_SIDE, IMAGE_SIDE = 112, 300
LEAST_SHARE = 0.004
"""Of an image, below which a region makes no crop."""
ENDS = 12
"""Images at each end of the order by doubt."""


@dataclass(frozen=True)
class Sight:
    """What a model sees in an image, as the report needs it.

    Attributes:
        image: at any size.
        labels: class of each of its pixels; 255 for hidden ones.
        alike: how much each pixel is like its class: a cosine.
        margin: by how much the first class leads the second, over the image.
    """

    image: Image.Image
    labels: Integer[np.ndarray, "H W"]
    alike: Float[np.ndarray, "H W"]
    margin: float


@validated
def write_report(
    model: PriMaPsEM,
    images: str | Path | Sequence[str | Path],
    path: str | Path,
    *,
    labels: str | Path | None = None,
    ignore_index: IgnoreIndex | None = None,
    most: Annotated[int, Ge(1)] = 200,
    crf: bool = True,
    see: Callable[[ImageFile], Sight] | None = None,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> Path:
    """Look at images with a model and write what a person wants to see first.

    Args:
        path: of the HTML file; a report that is there is replaced.
        labels: folder of label maps: scores and confusion are reported as well.
        most: images looked at; of more a random choice.
        see: what the model sees in an image, where that is known; None lets it look. Called in
            threads; an image for which it raises an ImageError is left out.

    Raises:
        NotFoundError: there is no image.
        ImageError: none can be read.
        OutputError: the file is there, and not a report of this package.
    """
    path = user_path(path)
    check_file(path)
    files = find_images(images, exclude=path.parent)
    if len(files) > most:
        random = generator("report", model.config.seed)
        drawn = torch.randperm(len(files), generator=random)[:most].sort().values.tolist()
        files = [files[row] for row in drawn]
    classes = shown_classes(model)
    seen = [Seen() for _ in classes]
    looks: list[Look] = []
    load: Callable[[ImageFile], Any] = see or (lambda file: load_image(file.source))
    for number, (file, found) in enumerate(read(files, load, log, ahead=3)):
        known = found if see else sight(model, found, crf)
        looks.append(_look(model, file.key, known, classes, seen, number))
        progress("report", number + 1, len(files), {})
    if not looks:
        raise ImageError(f"none of the {len(files)} images could be read")
    for one in seen:
        one.pixels /= len(looks)
    scores: Evaluation | None = None
    if labels is not None:
        scores = evaluate(
            model, images, labels, ignore_index=ignore_index, crf=crf,
            matching="hungarian", progress=progress, log=log,
        )  # fmt: skip
    looks.sort(key=lambda look: look.margin)
    ends = looks if len(looks) <= 2 * ENDS else looks[:ENDS] + looks[-ENDS:]
    text = page(model, classes, seen, ends, len(looks), scores)
    with own_file(path) as temporary:
        temporary.write_text(text, "utf-8")
    return path


def shown_classes(model: PriMaPsEM) -> tuple[Class, ...]:
    """The classes that a model predicts, in the order of their values."""
    if model.legend_ is not None:
        return model.legend_.shown
    if model.class_summary_ is not None:
        return legend(model.class_summary_.tree).shown
    colors = palette(model.config.classes).tolist()
    return tuple(Class(str(k), f"class {k}", tuple(c), ()) for k, c in enumerate(colors))


@torch.no_grad()
def sight(model: PriMaPsEM, image: Image.Image, crf: bool = True) -> Sight:
    """Predict an image, at the model's size."""
    scaled = fit_to_patches(image, model.size, model.backbone.patch_size)
    found = model.segment(scaled, crf=crf)
    labels = found.labels.cpu().numpy()
    alike = _typicality(model, found.features, labels.shape)
    return Sight(scaled, labels, alike, float(found.margin.mean()))


def _look(
    model: PriMaPsEM,
    key: str,
    found: Sight,
    classes: Sequence[Class],
    seen: list[Seen],
    number: int,
) -> Look:
    """Keep of an image what is worth showing."""
    scaled, labels, alike = found.image, found.labels, found.alike
    for value, one in enumerate(seen):
        inside = labels == value
        share = float(inside.mean())
        one.pixels += share
        one.images += share > 0
        if share >= LEAST_SHARE:
            score = float(alike[inside].mean())
            crop = None
            for heap, sign in ((one.typical, 1), (one.odd, -1)):
                if len(heap) < CROPS or sign * score > heap[0][0]:
                    crop = crop or _crop(scaled, inside)
                    # The number of the image decides ties, so that pictures are not compared.
                    push = heapq.heappush if len(heap) < CROPS else heapq.heapreplace
                    push(heap, (sign * score, number, crop))
    colors = np.array([one.color for one in classes] + [(0, 0, 0)], np.uint8)
    known = hidden_last(torch.from_numpy(labels), model.legend_).numpy()
    picture = overlay(scaled, known, colors, ignore=len(classes))
    picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    return Look(found.margin, key, picture)


def _typicality(
    model: PriMaPsEM, features: Float[Tensor, "c h w"], size: tuple[int, int]
) -> Float[np.ndarray, "H W"]:
    """Largest cosine of each pixel to a part of any class, or to a prototype without a tree."""
    assert model.prototypes_ is not None
    if model.class_summary_ is not None:
        directions = model.class_summary_.tree.directions.to(features)
    else:
        directions = F.normalize(model.prototypes_.direction.to(features), dim=1)
    cosines = torch.einsum("kc,chw->khw", directions, F.normalize(features, dim=0)).amax(0)
    return upsample(cosines[None, None], size)[0, 0].cpu().numpy()


def largest_piece(
    inside: Bool[np.ndarray, "h w"],
) -> tuple[Bool[np.ndarray, "h w"], tuple[int, int, int, int]]:
    """The largest connected piece of a region, and left, top, right and bottom around it.

    Examples:
        >>> largest_piece(np.array([[1, 0, 1, 1]], bool))[1]
        (2, 0, 4, 1)
    """
    from scipy.ndimage import label

    pieces, count = label(inside)
    if count > 1:
        inside = pieces == 1 + np.bincount(pieces[pieces > 0] - 1).argmax()
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return inside, box


def _crop(image: Image.Image, inside: Bool[np.ndarray, "h w"]) -> Image.Image:
    """The part of an image around the largest piece of a region, what is outside it pale."""
    inside, (left, top, right, bottom) = largest_piece(inside)
    pixels = np.asarray(image).astype(np.float32)
    gray = pixels.mean(2, keepdims=True)
    pixels = np.where(inside[..., None], pixels, 0.25 * gray + 170)
    crop = Image.fromarray(pixels[top:bottom, left:right].round().astype(np.uint8))
    crop.thumbnail((CROP_SIDE * 2, CROP_SIDE * 2))
    return crop
