"""Images in, features and masks out: everything that training needs, computed once."""

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
    content_digest,
    load_image,
    load_label_square,
    read,
    square,
)
from primaps.features.augmentation import CHANCES, augmented, view_chances
from primaps.features.collection import (
    UNLABELED,
    CollectionStores,
    Made,
    MaskMaker,
)
from primaps.features.feature_cache import Rows
from primaps.features.mask_table import MaskTable, mask_table
from primaps.features.views import AugmentAnew, Coding, Views
from primaps.utils.distributed import gather, processes, rank
from primaps.utils.errors import InputError
from primaps.utils.parallel import lanes, overlapped
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.seeding import generator

logger = logging.getLogger("primaps")
BACKBONE_BATCH = 8
"""Images that are computed together. Fixed, and counted from the first file, because the last
bits of what is computed may depend on it."""
START_IMAGES = 3000
"""Images that k-means starts look at, at most: as many as Cityscapes has for training. They are the
same for every seed, so that fits share them."""
PREVIEW_IMAGES = 6
"""Images that are kept to be shown."""


@dataclass(frozen=True)
class Extracted:
    """What a collection of images becomes before training.

    Attributes:
        keys: names of the images used, in order, of all processes.
        content_digest: SHA-256 of the content of these images, and of their labels if any.
        views: feature maps of those that this process has; if features of masks alone are kept,
            as far as ``starts`` has them.
        starts: feature maps of the images that k-means starts look at: of all, or of a sample of
            :data:`START_IMAGES`.
        masks: their proposals at image size, 0 = ignore; None if not asked for or not kept.
        table: the table of masks, if they alone are kept; see :meth:`mask_table`.
        labels: their label maps at image size, 255 = not counted; None if not asked for.
        samples: a few images at even distances, to show.
    """

    keys: list[str]
    content_digest: str
    views: Views
    starts: Views
    masks: Rows | None
    table: MaskTable | None
    labels: Rows | None
    samples: UInt8[Tensor, "s 3 H W"]

    def mask_table(self, projection: Coding | None = None) -> MaskTable | None:
        """Features, or codes of them, of the masks of this process; None if there are no masks."""
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
    cache: str | Path | None = "auto",
    cache_content: CachedContent = "features",
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> Extracted:
    """Features (clean, flipped and augmented) and masks of the centered squares of images.

    Each is computed once for an image; with ``cache`` once and for all. Under ``torchrun`` every
    process takes its share of the images.

    Args:
        size: side of the square in pixels.
        views: augmented feature maps per image; ``fresh`` computes them anew in every step.
        labels: the data set whose samples the files are, to train a linear probe on.
        seed: of augmentation in every step.
        cache: folder to keep them in; ``auto`` is memory if they take less than 2 GB, else the
            cache; None is memory.
        cache_content: ``masks`` keeps of every image what the recipe "orthogonal" takes, the
            features of its masks, and the features of a sample for k-means starts.
        log: called with a sentence about every image that cannot be read; the others go on.

    Raises:
        ImageError: no image could be read.
        InputError: there are fewer images than processes.
    """
    if cache_content == "masks" and (masks is None or views):
        raise InputError("features of masks alone are kept where there are masks and no views")
    share = files[rank() :: processes()]
    label_maps: dict[str, np.ndarray] = {}

    def content_and_label(file: ImageFile) -> str:
        content = content_digest(file)
        if labels is not None and isinstance(file, Sample):
            label = load_label_square(labels, file, size)
            label = label.where(label != labels.ignore_index, UNLABELED)
            label_maps[file.key] = label.byte().numpy()
        return content

    unusable: list[str] = []

    def skip(sentence: str) -> None:
        unusable.append(sentence)
        log(sentence)

    contents: dict[str, str] = {}
    for file, content in read(share, content_and_label, skip):
        contents[file.key] = content
        progress("reading", len(contents), len(share), {})
    starts = start_contents([one for part in gather(list(contents.values())) for one in part])
    whole = starts & {*contents.values()} if cache_content == "masks" else None
    stores = CollectionStores(backbone, size, len(share), views, masks, cache, whole)
    with stores.writing(list(contents.values())):
        used = _fill(stores, [f for f in share if f.key in contents], contents, progress, skip)
    order = {file.key: place for place, file in enumerate(files)}
    both = [(key, contents[key] + _mark(label_maps.get(key))) for key in used]
    everyone = [pair for part in gather(both) for pair in part]
    everyone.sort(key=lambda pair: order[pair[0]])
    if not everyone:
        reason = f"; first: {unusable[0]}" if unusable else ""
        raise ImageError(f"none of the {len(files)} images could be read{reason}")
    if not used:
        raise InputError(f"process {rank()} has no image: start fewer processes")
    keys = [key for key, _ in everyone]
    here = [contents[key] for key in used]
    chosen = {key for key, content in everyone if content.partition(" ")[0] in starts}
    whole_here = [key for key in used if cache_content == "features" or key in chosen]
    row = {key: place for place, key in enumerate(whole_here)}

    def places(of: Sequence[str]) -> Tensor | None:
        """Their rows in the features of this process; None if these are all and in order."""
        found = [row.get(key, -1) for key in of]
        return None if found == list(range(len(whole_here))) else torch.tensor(found)

    device = backbone.device
    flipped = [
        [bool(view_chances(v, content)[0] < 0.5) for content in here]
        for v in range(0 if views == "fresh" else views)
    ]
    few = min(PREVIEW_IMAGES, len(keys))
    shown = {keys[i * len(keys) // few] for i in range(few)}  # neighbors are often alike
    samples = [square(load_image(file.source), size) for file in files if file.key in shown]
    feature_maps = Views(
        clean=stores.features.rows([contents[key] for key in whole_here]).to(device),
        place=places([key for key in keys if cache_content == "features" or key in chosen]),
        augmented=tuple(view.rows(here).to(device) for view in stores.views),
        flipped=torch.tensor(flipped) if flipped else None,
        fresh=_fresh(stores, here, seed) if views == "fresh" else None,
        device=device,
    )
    return Extracted(
        keys=keys,
        content_digest=hashlib.sha256(
            "".join(content for _, content in everyone).encode()
        ).hexdigest(),
        views=feature_maps,
        starts=replace(feature_maps, place=places([key for key in keys if key in chosen])),
        masks=stores.masks.rows(here) if stores.masks else None,
        table=stores.mask_table(here),
        labels=Rows([label_maps[key] for key in used]) if label_maps else None,
        samples=torch.stack(samples),
    )


def start_contents(contents: Sequence[str]) -> set[str]:
    """Which images k-means starts look at: those whose digests come first, whatever the order and
    the names of the images, so that a few more images change a few of them.

    Args:
        contents: SHA-256 of each image of the collection.

    Examples:
        >>> sorted(start_contents(["c0", "1f", "c0"]))
        ['1f', 'c0']
    """
    return set(nsmallest(START_IMAGES, set(contents)))


def _mark(label: np.ndarray | None) -> str:
    """Tells a label map from another, so that a changed one starts training anew."""
    return "" if label is None else f" {zlib.crc32(label.tobytes()):08x}"


def _fill(
    stores: CollectionStores,
    files: Sequence[ImageFile],
    contents: dict[str, str],
    progress: ProgressCallback,
    log: LogCallback,
) -> list[str]:
    """Compute what the stores lack, one batch to each core; returns the keys of the images that
    could be read. Batches are stored in order, whichever is done first."""
    group = {file.key: number // BACKBONE_BATCH for number, file in enumerate(files)}
    missing = stores.missing([contents[file.key] for file in files])
    lacking = {group[file.key] for file in files if contents[file.key] in missing}

    def load(file: ImageFile) -> Tensor | None:
        needed = group[file.key] in lacking
        return square(load_image(file.source), stores.size) if needed else None

    Batch = list[tuple[ImageFile, Tensor | None]]

    def batches() -> Iterator[Batch]:
        loaded = read(files, load, log, ahead=2 * BACKBONE_BATCH)
        for _, together in groupby(loaded, key=lambda item: group[item[0].key]):
            yield list(together)

    used: list[str] = []
    with lanes(stores.backbone.device) as own:

        def work(batch: Batch) -> tuple[list[str], list[Made]]:
            keys = [file.key for file, _ in batch]
            images = [image for _, image in batch if image is not None]
            if not images:
                return keys, []
            with own.turn:
                return keys, stores.compute(torch.stack(images), [contents[key] for key in keys])

        for keys, made in overlapped(batches(), work, own):
            stores.keep(made, [contents[key] for key in keys])
            used += keys
            progress("features", group[used[-1]] * BACKBONE_BATCH + len(keys), len(files), {})
    if files:
        progress("features", len(files), len(files), {})
    return used


def _fresh(stores: CollectionStores, contents: Sequence[str], seed: int) -> AugmentAnew:
    """Augmented features of rows of images, new ones in every step."""
    assert stores.images is not None
    images = stores.images.rows(contents)

    def features(rows: Tensor, flip: Tensor, step: int) -> Tensor:
        chances = torch.zeros(len(rows), CHANCES)
        for chance, row in zip(chances, rows.tolist(), strict=True):
            random = generator("fresh", seed, step, contents[row])
            chance.copy_(torch.rand(CHANCES, generator=random))
        return augmented(stores.backbone, images.take(rows), flip, chances)

    return features
