"""The HTML report of a model: classes, examples, class tree, uncertain images and scores."""

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

from primaps.classes.legend import Class, hidden_last
from primaps.config import InferenceOptions
from primaps.data import (
    ImageError,
    ImageFile,
    LogCallback,
    at_depth,
    find_images,
    read,
)
from primaps.data.collection import IgnoreIndex
from primaps.evaluation.audit import Estimate
from primaps.evaluation.protocol import Evaluation, evaluate
from primaps.model import PriMaPsEM
from primaps.pictures.overlays import overlay
from primaps.pictures.report_page import ClassExamples, ReportItem, page
from primaps.results import check_file, output_file
from primaps.utils.bilinear import upsample
from primaps.utils.files import user_path
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.seeding import generator
from primaps.utils.validation import validated

logger = logging.getLogger("primaps")
EXAMPLES = 5
"""Number of most typical and of least typical regions shown per class."""
EXAMPLE_SIDE, IMAGE_SIDE = 224, 300
"""Longest side of regions and of images in pixels."""
MIN_SHARE = 0.004
"""Minimum area of a class in an image, as a fraction of the image, to show a region of it."""
ENDS = 12
"""Number of images shown at each end of the order by confidence."""


@dataclass(frozen=True)
class AnalyzedImage:
    """An image with its prediction, as the report shows it.

    Attributes:
        image: image at any size.
        labels: class of each pixel of the image; 255 for hidden classes.
        similarity: cosine similarity of each pixel to its class.
        margin: mean probability of the best class minus that of the second.
    """

    image: Image.Image
    labels: Integer[np.ndarray, "H W"]
    similarity: Float[np.ndarray, "H W"]
    margin: float


@validated
def write_report(
    model: PriMaPsEM,
    images: str | Path | Sequence[str | Path],
    path: str | Path,
    *,
    labels: str | Path | None = None,
    ignore_index: IgnoreIndex | None = None,
    max_images: Annotated[int, Ge(1)] = 200,
    analyze: Callable[[ImageFile], AnalyzedImage] | None = None,
    accuracy: Estimate | None = None,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
    **options: Any,
) -> Path:
    """Write an HTML report of a model on images: one file, with all images inside.

    Args:
        model: fitted model.
        images: files, folders or globs.
        path: HTML file to write. An earlier report is replaced.
        labels: folder of label maps; adds scores and the confusion matrix.
        ignore_index: see :func:`primaps.evaluate`.
        max_images: maximum number of images, sampled with the seed of the model.
        analyze: function from an image file to its prediction, if predictions are cached; None
            predicts. It is called in threads. Images for which it raises ImageError are skipped.
        accuracy: accuracy that an audit of these classes estimated.
        progress: progress callback.
        log: called with one sentence about each image that is skipped.
        **options: fields of :class:`primaps.config.InferenceOptions`.

    Raises:
        NotFoundError: no image was found.
        ImageError: no image could be read.
        OutputError: the file exists and is not a report of primaps.
    """
    chosen = InferenceOptions(**options)
    path = user_path(path)
    check_file(path)
    files = at_depth(find_images(images, exclude=path.parent, log=log), model.depth_)
    if len(files) > max_images:
        random = generator("report", model.config.seed)
        rows = torch.randperm(len(files), generator=random)[:max_images].sort().values.tolist()
        files = [files[row] for row in rows]
    classes = model.shown_classes
    examples = [ClassExamples() for _ in classes]
    items: list[ReportItem] = []
    load: Callable[[ImageFile], Any] = analyze or (lambda file: file.load())
    for number, (file, loaded) in enumerate(read(files, load, log, ahead=3)):
        found = loaded if analyze else analyze_image(model, loaded, chosen)
        items.append(_add_image(model, file.key, found, classes, examples, number))
        progress("report", number + 1, len(files), {})
    if not items:
        raise ImageError(f"none of the {len(files)} images could be read")
    for one in examples:
        one.pixels /= len(items)
    scores: Evaluation | None = None
    if labels is not None:
        scores = evaluate(
            model, images, labels, ignore_index=ignore_index,
            matching="hungarian" if model.taught_ is None else None,
            progress=progress, log=log, **options,
        )  # fmt: skip
    items.sort(key=lambda item: item.margin)
    ends = items if len(items) <= 2 * ENDS else items[:ENDS] + items[-ENDS:]
    text = page(model, classes, examples, ends, len(items), scores, accuracy)
    with output_file(path) as temporary:
        # Bytes of a file name that are not UTF-8 are shown as escapes.
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
    return path


@torch.no_grad()
def analyze_image(model: PriMaPsEM, image: Image.Image, options: InferenceOptions) -> AnalyzedImage:
    """Predict an image at the size of the scaled image."""
    segmenter = model.segmenter
    pixels = segmenter.scale(image, segmenter.resolve(options))
    scaled = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    found = segmenter.segment(scaled, options)
    labels = found.labels.cpu().numpy()
    similarity = _similarity(model, found.features, labels.shape)
    return AnalyzedImage(scaled, labels, similarity, float(found.margin.mean()))


def _add_image(
    model: PriMaPsEM,
    key: str,
    found: AnalyzedImage,
    classes: Sequence[Class],
    examples: list[ClassExamples],
    number: int,
) -> ReportItem:
    """Add the regions of an image to the examples of its classes, and draw its overlay."""
    for value, one in enumerate(examples):
        inside = found.labels == value
        share = float(inside.mean())
        one.pixels += share
        one.images += share > 0
        if share >= MIN_SHARE:
            score = float(found.similarity[inside].mean())
            region = None
            for heap, sign in ((one.typical, 1), (one.atypical, -1)):
                if len(heap) < EXAMPLES or sign * score > heap[0][0]:
                    region = region or _region(found.image, inside)
                    # The number of the image breaks ties; images cannot be compared.
                    push = heapq.heappush if len(heap) < EXAMPLES else heapq.heapreplace
                    push(heap, (sign * score, number, region))
    colors = np.array([one.color for one in classes] + [(0, 0, 0)], np.uint8)
    labels = hidden_last(torch.from_numpy(found.labels), model.legend_).numpy()
    drawn = overlay(found.image, labels, colors, ignore=len(classes))
    drawn.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    return ReportItem(found.margin, key, drawn)


def _similarity(
    model: PriMaPsEM, features: Float[Tensor, "c h w"], size: tuple[int, int]
) -> Float[np.ndarray, "H W"]:
    """Return the largest cosine of each pixel to a leaf of the class tree, or to a prototype."""
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
    """Return the largest connected piece of a region, and its left, top, right and bottom edge.

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


def _region(image: Image.Image, inside: Bool[np.ndarray, "h w"]) -> Image.Image:
    """Crop an image to the largest piece of a region, with pale pixels outside of it."""
    inside, (left, top, right, bottom) = largest_piece(inside)
    pixels = np.asarray(image).astype(np.float32)
    gray = pixels.mean(2, keepdims=True)
    pixels = np.where(inside[..., None], pixels, 0.25 * gray + 170)
    region = Image.fromarray(pixels[top:bottom, left:right].round().astype(np.uint8))
    region.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    return region
