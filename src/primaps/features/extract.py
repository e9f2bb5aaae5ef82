"""From images to everything that training reads: features, augmented views and masks."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from primaps.backbones.backbone import Backbone
from primaps.config import CachedContent
from primaps.data import (
    Dataset,
    ImageError,
    ImageFile,
    LogCallback,
    Sample,
    at_depth,
    load_label_square,
    pixel_digest,
    read,
    square,
)
from primaps.features.augmentation import CHANCES, augmented, view_chances
from primaps.features.feature_cache import Computed, FeatureCache, MaskMaker
from primaps.features.training_data import (
    Augment,
    Coding,
    ImageArrays,
    MaskTable,
    Views,
    mask_table,
)
from primaps.utils.distributed import gather, processes, rank
from primaps.utils.errors import InputError
from primaps.utils.parallel import lanes, overlapped
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.seeding import generator

logger = logging.getLogger("primaps")
BACKBONE_BATCH = 8
"""Images that go through the backbone together. The size is fixed and batches are counted from the
first file, because the last bits of features can depend on the batch."""
RESTART_IMAGES = 3000
"""Maximum number of images that k-means restarts read: as many as Cityscapes has for training.
The sample is the same for every seed, and fits with different seeds share its features."""
PREVIEW_IMAGES = 6
"""Images that are returned for the preview."""
UNLABELED = 255
"""Label of pixels that are not counted, in cached label maps."""


@dataclass(frozen=True)
class Extracted:
    """Everything that training reads of a collection of images.

    Attributes:
        keys: names of the images of all processes, in order.
        content_digest: SHA-256 of the content of these images, and of their labels if any.
        views: feature maps of the images of this process. If only the features of masks are
            cached, these are the images of ``restart_views``.
        restart_views: feature maps of the images that k-means restarts read: all images, or a
            sample of :data:`RESTART_IMAGES`.
        masks: mask proposals at image size, 0 = ignore; None if not requested or not cached.
        table: table of masks, if only the features of masks are cached; see :meth:`mask_table`.
        labels: label maps at image size, 255 = not counted; None if not requested.
        samples: a few evenly spaced images, for the preview.
        depth: bits of the values of images of more than 8 bits; None without such images.
    """

    keys: list[str]
    content_digest: str
    views: Views
    restart_views: Views
    masks: ImageArrays | None
    table: MaskTable | None
    labels: ImageArrays | None
    samples: UInt8[Tensor, "s 3 H W"]
    depth: int | None = None

    def mask_table(self, projection: Coding | None = None) -> MaskTable | None:
        """Return features, or codes, of the masks of this process; None if there are no masks."""
        if self.table is not None or self.masks is None:
            return self.table
        return mask_table(replace(self.views, projection=projection), self.masks)


def extract(
    files: Sequence[ImageFile],
    backbone: Backbone,
    size: int,
    *,
    views: int | Literal["fresh"] = 0,
    masks: MaskMaker | None = None,
    labels: Dataset | None = None,
    seed: int = 0,
    depth: int | None = None,
    cache: str | Path | None = "auto",
    cache_content: CachedContent = "features",
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> Extracted:
    """Compute features (clean, flipped, augmented) and masks of the centered squares of images.

    Under ``torchrun`` every process computes its share of the images.

    Args:
        size: side of the square in pixels.
        views: augmented feature maps per image; ``fresh`` computes them again in every step.
        labels: data set whose samples are the files, to train a linear probe on.
        seed: random seed of the augmentation in every step.
        depth: bits of the values of images of more than 8 bits, see
            :func:`primaps.data.at_depth`.
        cache: cache folder; ``auto`` is memory below 2 GB and the default folder otherwise; None is
            memory.
        cache_content: ``features`` caches feature maps and masks of all images. ``masks`` caches
            the features of masks, and the feature maps of a sample for k-means restarts: enough for
            the recipe "orthogonal".
        log: called with one sentence about every image that is skipped because it is not readable.

    Raises:
        ImageError: no image is readable.
        InputError: there are fewer images than processes.
    """
    if cache_content == "masks" and (masks is None or views):
        raise InputError("cache_content='masks' needs masks and no augmented views")
    files = at_depth(files, depth)
    share = files[rank() :: processes()]
    label_maps: dict[str, np.ndarray] = {}
    skipped: list[str] = []

    def content_and_label(file: ImageFile) -> str:
        content = pixel_digest(file)
        if labels is not None and isinstance(file, Sample):
            label = load_label_square(labels, file, size)
            label = label.where(label != labels.ignore_index, UNLABELED)
            label_maps[file.key] = label.byte().numpy()
        return content

    def skip(sentence: str) -> None:
        skipped.append(sentence)
        log(sentence)

    # Digests of the images: the keys of the cache, and the sample that k-means restarts read.
    contents: dict[str, str] = {}
    for file, content in read(share, content_and_label, skip):
        contents[file.key] = content
        progress("reading", len(contents), len(share), {})
    _refuse_unlabeled(labels, label_maps)
    sample = restart_sample([one for part in gather(list(contents.values())) for one in part])

    # Features and masks that are not cached.
    full = sample & {*contents.values()} if cache_content == "masks" else None
    feature_cache = FeatureCache(backbone, size, len(share), views, masks, cache, full)
    with feature_cache.writing(list(contents.values())):
        readable = [file for file in share if file.key in contents]
        used = _compute_missing(feature_cache, readable, contents, progress, skip)

    # The images of all processes, in the order of the files.
    order = {file.key: number for number, file in enumerate(files)}
    pairs = [(key, contents[key] + _label_digest(label_maps.get(key))) for key in used]
    everyone = [pair for part in gather(pairs) for pair in part]
    everyone.sort(key=lambda pair: order[pair[0]])
    if not everyone:
        reason = f"; first: {skipped[0]}" if skipped else ""
        raise ImageError(f"none of the {len(files)} images could be read{reason}")
    if not used:
        raise InputError(f"process {rank()} has no image: start fewer processes")
    keys = [key for key, _ in everyone]
    sampled = [key for key, content in everyone if content.partition(" ")[0] in sample]
    maps, restart_maps = _views(feature_cache, keys, sampled, used, contents, seed)
    local = [contents[key] for key in used]
    digests = "".join(digest for _, digest in everyone)
    return Extracted(
        keys=keys,
        content_digest=hashlib.sha256(digests.encode()).hexdigest(),
        views=maps,
        restart_views=restart_maps,
        masks=feature_cache.masks.rows(local) if feature_cache.masks else None,
        table=feature_cache.mask_table(local),
        labels=ImageArrays([label_maps[key] for key in used]) if label_maps else None,
        samples=_preview_images(files, keys, size),
        depth=files[0].depth,
    )


def _preview_images(
    files: Sequence[ImageFile], keys: Sequence[str], size: int
) -> UInt8[Tensor, "s 3 h w"]:
    """Load images at even distances in the list, because neighbors are often similar."""
    count = min(PREVIEW_IMAGES, len(keys))
    shown = {keys[i * len(keys) // count] for i in range(count)}
    chosen = [file for file in files if file.key in shown]
    images = [image for _, image in read(chosen, lambda file: square(file.load(), size), _ignore)]
    return torch.stack(images) if images else torch.zeros(0, 3, size, size, dtype=torch.uint8)


def _ignore(sentence: str) -> None:
    """Drop a sentence about an image of the preview that has vanished since it was read."""


def restart_sample(contents: Sequence[str]) -> set[str]:
    """Return the images that k-means restarts read: those with the smallest digests.

    The sample does not depend on the order and names of the images, and a few additional images
    replace only a few images of the sample.

    Args:
        contents: SHA-256 of each image of the collection.

    Examples:
        >>> sorted(restart_sample(["c0", "1f", "c0"]))
        ['1f', 'c0']
    """
    return set(nsmallest(RESTART_IMAGES, set(contents)))


def _refuse_unlabeled(labels: Dataset | None, label_maps: dict[str, np.ndarray]) -> None:
    """Refuse label maps of all processes that have no pixel with a class."""
    if labels is None:
        return
    labeled = [bool((one != UNLABELED).any()) for one in label_maps.values()]
    flags = [flag for part in gather(labeled) for flag in part]
    if flags and not any(flags):
        raise InputError(
            f"the {len(flags)} label maps in {labels.root} have only ignored pixels in the "
            "centered squares of the images; check their values and the ignore index "
            f"{labels.ignore_index}"
        )


def _label_digest(label: np.ndarray | None) -> str:
    """Return a suffix for the digest of an image: with a new label map, training starts over."""
    return "" if label is None else f" {zlib.crc32(label.tobytes()):08x}"


def _compute_missing(
    feature_cache: FeatureCache,
    files: Sequence[ImageFile],
    contents: dict[str, str],
    progress: ProgressCallback,
    log: LogCallback,
) -> list[str]:
    """Compute missing features and masks, one batch per CPU core; return the keys of the images.

    Batches are cached in order, whichever is finished first.
    """
    group = {file.key: number // BACKBONE_BATCH for number, file in enumerate(files)}
    missing = feature_cache.missing([contents[file.key] for file in files])
    incomplete = {group[file.key] for file in files if contents[file.key] in missing}

    def load(file: ImageFile) -> Tensor | None:
        needed = group[file.key] in incomplete
        return square(file.load(), feature_cache.size) if needed else None

    Batch = list[tuple[ImageFile, Tensor | None]]

    def batches() -> Iterator[Batch]:
        loaded = read(files, load, log, ahead=2 * BACKBONE_BATCH)
        for _, together in groupby(loaded, key=lambda item: group[item[0].key]):
            yield list(together)

    used: list[str] = []
    with lanes(feature_cache.backbone.device) as threads:

        def compute(batch: Batch) -> tuple[list[str], list[Computed]]:
            keys = [file.key for file, _ in batch]
            images = [image for _, image in batch if image is not None]
            if not images:
                return keys, []
            with threads.turn:
                digests = [contents[key] for key in keys]
                return keys, feature_cache.compute(torch.stack(images), digests)

        for keys, computed in overlapped(batches(), compute, threads):
            feature_cache.add(computed, [contents[key] for key in keys])
            used += keys
            progress("features", group[used[-1]] * BACKBONE_BATCH + len(keys), len(files), {})
    if files:
        progress("features", len(files), len(files), {})
    return used


def _views(
    feature_cache: FeatureCache,
    keys: Sequence[str],
    sampled: Sequence[str],
    used: Sequence[str],
    contents: dict[str, str],
    seed: int,
) -> tuple[Views, Views]:
    """Return the feature maps of this process: for training, and for k-means restarts.

    Args:
        keys: images of all processes, in order.
        sampled: those of them that k-means restarts read.
        used: images of this process.
    """
    with_maps = keys if feature_cache.full is None else sampled
    in_cache = set(with_maps)
    local = [key for key in used if key in in_cache]
    row = {key: number for number, key in enumerate(local)}

    def row_of(images: Sequence[str]) -> Tensor | None:
        rows = [row.get(key, -1) for key in images]
        return None if rows == list(range(len(local))) else torch.tensor(rows)

    device, digests = feature_cache.backbone.device, [contents[key] for key in used]
    flipped = [
        [bool(view_chances(number, digest)[0] < 0.5) for digest in digests]
        for number in range(len(feature_cache.views))
    ]
    views = Views(
        clean=feature_cache.features.rows([contents[key] for key in local]).to(device),
        row_of=row_of(with_maps),
        augmented=tuple(view.rows(digests).to(device) for view in feature_cache.views),
        flipped=torch.tensor(flipped) if flipped else None,
        fresh=_fresh_views(feature_cache, digests, seed) if feature_cache.images else None,
        device=device,
    )
    return views, replace(views, row_of=row_of(sampled))


def _fresh_views(feature_cache: FeatureCache, digests: Sequence[str], seed: int) -> Augment:
    """Return a function that computes newly augmented features of rows of images."""
    assert feature_cache.images is not None
    images = feature_cache.images.rows(digests)

    def features(rows: Tensor, flip: Tensor, step: int) -> Tensor:
        chances = torch.zeros(len(rows), CHANCES)
        for chance, row in zip(chances, rows.tolist(), strict=True):
            random = generator("fresh", seed, step, digests[row])
            chance.copy_(torch.rand(CHANCES, generator=random))
        return augmented(feature_cache.backbone, images.take(rows), flip, chances)

    return features
