"""What is kept of a collection of images, each once: features, augmented views, masks; or, where
that is enough, the features of masks alone.

What a row depends on is in its folder's name and its key: folders say backbone, precision, size
and, for masks, their options; the key is the content of the image.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float16, Integer, UInt8
from torch import Tensor

from primaps.backbones.backbone import (
    Backbone,
    both_features,
    image_features,
    mean_of_both,
)
from primaps.features.augmentation import augmented, view_chances
from primaps.features.feature_cache import Store
from primaps.features.mask_table import BESIDE, MaskTable, mask_rows, table_of
from primaps.utils.distributed import processes, rank
from primaps.utils.files import cache_dir, write_json

logger = logging.getLogger("primaps")
FORMAT = 1
"""Of what is stored; a change of what features or masks mean raises it."""
MEMORY_LIMIT = 2e9
"""Bytes that are kept in memory without being asked."""
MASKS = 256
"""Numbers that a mask can have: 0 = ignore, 1..255."""
MASKS_EXPECTED = 6
"""Masks of an image, about: to say beforehand what they take."""
UNLABELED = 255
"""Label that is not counted, in rows of labels."""


Made = tuple[Store, Sequence[np.ndarray]]
"""What was computed for a store: something of each image of a batch."""


@dataclass(frozen=True)
class MaskMaker:
    """A way to make masks, and what it depends on beside features and images.

    Attributes:
        make: features (B, C, h, w) and 8-bit images (B, 3, H, W) to masks (B, H, W), 0 = ignore.
        options: everything that its results depend on.
    """

    make: Callable[[Tensor, Tensor], Tensor]
    options: dict[str, Any]


class CollectionStores:
    """The stores of what training needs of images of one size and backbone.

    Args:
        images: how many there will be about, to decide on memory or disk.
        views: augmented feature maps per image; ``fresh`` keeps the images instead, to augment
            them anew.
        masks: how to make masks; None for no masks.
        whole: content of the images whose features are kept, while of the others those of their
            masks are enough; None keeps the features and masks of all.
        root: folder of everything that is kept; ``auto`` is memory below 2 GB, else the cache;
            None is memory.

    Attributes:
        shape: (C, h, w) of the features of an image.
        features: (2, C, h, w) half precision, of the image and its flipped image.
        views: (C, h, w) half precision, a store for each view.
        images: (3, size, size) 8-bit, if views are computed anew.
        masks: (size, size) 8-bit, 0 = ignore.
        table: rows of :func:`primaps.features.mask_table.mask_rows`, in place of ``masks``.
    """

    def __init__(
        self,
        backbone: Backbone,
        size: int,
        images: int,
        views: int | Literal["fresh"] = 0,
        masks: MaskMaker | None = None,
        root: str | Path | None = "auto",
        whole: Collection[str] | None = None,
    ) -> None:
        self.backbone, self.size, self.maker, self.whole = backbone, size, masks, whole
        self.shape = feature_shape(backbone, size)
        if root == "auto":
            kept = None if whole is None else len(whole)
            small = bytes_kept(self.shape, size, images, views, masks is not None, kept)
            root = None if small < MEMORY_LIMIT else cache_dir() / "features"
        self.folder = self._folder(root)
        half, cached = np.float16, range(0 if views == "fresh" else views)
        options = masks and _short(masks.options)
        self.features = self._store("features", (2, *self.shape), half)
        self.views = [self._store(f"view-{view}", self.shape, half) for view in cached]
        self.images = self._store("images", (3, size, size), np.uint8) if views == "fresh" else None
        self.masks = self.table = None
        if masks and whole is None:
            self.masks = self._store(f"masks-{options}", (size, size), np.uint8, masks)
        elif masks:
            wide = self.shape[0] + BESIDE
            self.table = self._store(f"table-{options}", (wide,), np.float32, masks)
        others = [store for store in (self.images, self.masks, self.table) if store is not None]
        self.all = [self.features, *self.views, *others]

    def _store(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: type[np.generic],
        masks: MaskMaker | None = None,
    ) -> Store:
        folder = self.folder and self.folder / name
        if folder and masks:
            _describe(folder, masks.options)
        return Store(shape, dtype, folder, several=name.startswith("table-"))

    def _folder(self, root: str | Path | None) -> Path | None:
        """Where the stores of this backbone, precision and size are; of this process, if several
        share the images."""
        backbone = self.backbone
        if root is None or backbone.digest is None:
            if root is not None:
                name = backbone.name
                logger.info("%s has no weights to know it by: features stay in memory", name)
            return None
        about = {
            "format": FORMAT,
            "backbone": backbone.digest,
            "precision": backbone.arithmetic,
            "size": self.size,
        }
        share = f"part-{rank()}-of-{processes()}" if processes() > 1 else ""
        name = f"{backbone.name.replace('/', '--')}-{self.size}-{_short(about)}"
        folder = Path(root).expanduser() / name / share
        _describe(folder, {"name": backbone.name, **about})
        return folder

    @contextmanager
    def writing(self, contents: Sequence[str]) -> Iterator[None]:
        """Hold all stores for appending; another process that needs them waits. Stores that have
        everything are not written to, and need not be writable."""
        if not self.missing(contents):
            yield
            return
        with ExitStack() as stack:
            for store in self.all:
                stack.enter_context(store.writing())
            yield

    def missing(self, contents: Sequence[str]) -> set[str]:
        """Those of the images that lack a row in some store."""
        return set().union(*(store.missing(self._wanted(store, contents)) for store in self.all))

    def compute(self, images: UInt8[Tensor, "b 3 H W"], contents: Sequence[str]) -> list[Made]:
        """What is missing of images, for :meth:`keep`; several batches can be computed at once.

        Masks are made from the features as they are stored, in half precision, so that it does not
        matter when.
        """
        if not self.missing(contents):
            return []
        images = images.to(self.backbone.device)
        both = self._both(images, contents)
        made: list[tuple[Store, Iterable[Tensor]]] = [(self.features, both)]
        for number, store in enumerate(self.views):
            if store.missing(contents):
                draws = torch.stack([view_chances(number, content) for content in contents])
                view = augmented(self.backbone, images, draws[:, 0] < 0.5, draws[:, 1:])
                made.append((store, view))
        if self.images:
            made.append((self.images, images))
        if self.masks and self.masks.missing(contents):
            made.append((self.masks, self._make_masks(both[:, 0], images)))
        if self.table and self.table.missing(contents):
            masks = self._make_masks(both[:, 0], images)
            means = mean_of_both(both.float())
            made.append((self.table, list(map(mask_rows, means, masks))))
        return [(store, [one.cpu().numpy() for one in every]) for store, every in made]

    def keep(self, made: Sequence[Made], contents: Sequence[str]) -> None:
        """Store what was computed of a batch of images, each once."""
        for store, values in made:
            lacking = store.missing(self._wanted(store, contents))
            if lacking:
                store.append(lacking, [values[contents.index(content)] for content in lacking])

    def _wanted(self, store: Store, contents: Sequence[str]) -> Sequence[str]:
        if self.whole is None or store is not self.features:
            return contents
        return [content for content in contents if content in self.whole]

    def _both(
        self, images: UInt8[Tensor, "b 3 H W"], contents: Sequence[str]
    ) -> Float16[Tensor, "b 2 c h w"]:
        """Features of images and flipped images as they are stored."""
        if not self.features.missing(contents):  # a fit with other masks left them
            rows = self.features.rows(contents)
            return rows.take(torch.arange(len(rows))).to(images.device)
        # The cache of a core holds one image, and an accelerator wants many.
        together = 1 if images.device.type == "cpu" else len(images)
        parts = [both_features(self.backbone, part).half() for part in images.split(together)]
        return torch.cat(parts)

    def _make_masks(
        self, features: Float[Tensor, "b c h w"], images: UInt8[Tensor, "b 3 H W"]
    ) -> Integer[Tensor, "b H W"]:
        assert self.maker is not None
        numbers = self.maker.make(features.to(images.device).float(), images)
        # A store counts to 255; masks beyond are single positions, proposed last.
        return torch.where(numbers < MASKS, numbers, 0)

    def mask_table(self, contents: Sequence[str]) -> MaskTable | None:
        """The table of the masks of images, on the backbone's device; None if maps are kept."""
        if self.table is None:
            return None
        rows = self.table.rows(contents).arrays
        found = table_of(
            (torch.from_numpy(np.array(one)) for one in rows), [len(one) for one in rows]
        )
        return found.to(self.backbone.device)


def _describe(folder: Path, about: dict[str, Any]) -> None:
    """Say for people what a folder holds."""
    path = folder / "about.json"
    try:
        if json.loads(path.read_text("utf-8")) == about:
            return
    except (OSError, ValueError, RecursionError):
        pass
    write_json(path, about)


def feature_shape(backbone: Backbone, size: int) -> tuple[int, ...]:
    """Channels, rows and columns of the features of a square, by a look at a blank one."""
    blank = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    return tuple(image_features(backbone, blank).shape[1:])


def bytes_kept(
    shape: tuple[int, ...],
    size: int,
    images: int,
    views: int | Literal["fresh"] = 0,
    masks: bool = True,
    whole: int | None = None,
) -> int:
    """Bytes that the stores of a number of images take, about.

    Args:
        shape: (C, h, w) of the features of an image.
        whole: of how many images features are kept, where those of masks are enough; None is of
            all, and masks as maps.

    Examples:
        >>> bytes_kept((384, 23, 23), 322, 10**6) / 1e9
        916.228
        >>> bytes_kept((384, 23, 23), 322, 10**6, whole=3000) / 1e9
        11.701632
    """
    half = 2 * math.prod(shape)
    if whole is not None:
        return images * MASKS_EXPECTED * 4 * (shape[0] + BESIDE) + whole * 2 * half
    more = 3 * size**2 if views == "fresh" else views * half
    return images * (2 * half + more + masks * size**2)


def _short(options: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]
