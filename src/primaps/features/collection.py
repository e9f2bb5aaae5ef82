"""What is kept of a collection of images, each once: features, augmented views, masks.

What a row depends on is in its folder's name and its key: folders say backbone, precision, size
and, for masks, their options; the key is the content of the image.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from primaps.backbones.backbone import Backbone, both_features, image_features, network_input
from primaps.features.augmentation import CHANCES, photometric
from primaps.features.store import Store
from primaps.support.distributed import processes, rank
from primaps.support.files import cache_dir, write_json
from primaps.support.seeding import generator

logger = logging.getLogger("primaps")
FORMAT = 1
"""Of what is stored; a change of what features or masks mean raises it."""
MEMORY_LIMIT = 2e9
"""Bytes that are kept in memory without being asked."""
MASKS = 256
"""Numbers that a mask can have: 0 = ignore, 1..255."""
UNLABELLED = 255
"""Label that is not counted, in rows of labels."""


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
        root: folder of everything that is kept; ``auto`` is memory below 2 GB, else the cache;
            None is memory.

    Attributes:
        features: (2, C, h, w) half precision, of the image and its mirror image.
        views: (C, h, w) half precision, a store for each view.
        images: (3, size, size) 8-bit, if views are computed anew.
        masks: (size, size) 8-bit, 0 = ignore.
    """

    def __init__(
        self,
        backbone: Backbone,
        size: int,
        images: int,
        views: int | Literal["fresh"] = 0,
        masks: MaskMaker | None = None,
        root: str | Path | None = "auto",
    ) -> None:
        self.backbone, self.size, self.maker = backbone, size, masks
        cached = 0 if views == "fresh" else views
        shape = feature_shape(backbone, size)
        rows: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "features": ((2, *shape), np.float16)
        }
        rows |= {f"view-{view}": (shape, np.float16) for view in range(cached)}
        if views == "fresh":
            rows["images"] = ((3, size, size), np.uint8)
        if masks:
            rows[f"masks-{_short(masks.options)}"] = ((size, size), np.uint8)
        self.bytes_per_image = sum(
            math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in rows.values()
        )
        if root == "auto":
            small = images * self.bytes_per_image < MEMORY_LIMIT
            root = None if small else cache_dir() / "features"
        self.folder = self._folder(root)
        stores = {
            name: Store(shape, dtype, self.folder and self.folder / name)
            for name, (shape, dtype) in rows.items()
        }
        if self.folder and masks:
            name = f"masks-{_short(masks.options)}"
            _describe(self.folder / name, masks.options)
        self.all = list(stores.values())
        self.features = stores["features"]
        self.views = [store for name, store in stores.items() if name.startswith("view-")]
        self.images = stores.get("images")
        self.masks = self.all[-1] if masks else None

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
            "precision": backbone.precision,
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
        return set().union(*(store.missing(contents) for store in self.all))

    def add(self, images: UInt8[Tensor, "b 3 H W"], contents: Sequence[str]) -> None:
        """Compute and keep what is missing of images that go through the backbone together.

        Masks are made from the features as they are stored, in half precision, so that it does not
        matter when.
        """
        images = images.to(self.backbone.device)

        def view(number: int) -> Tensor:
            draws = torch.stack([view_chances(number, c) for c in contents])
            return augmented(self.backbone, images, draws[:, 0] < 0.5, draws[:, 1:])

        def masks() -> Tensor:
            rows = self.features.rows(contents)
            clean = rows.take(torch.arange(len(rows)), torch.zeros(len(rows), dtype=torch.long))
            assert self.maker is not None
            numbers = self.maker.make(clean.to(images.device).float(), images)
            # A store counts to 255; masks beyond are single positions, proposed last.
            return torch.where(numbers < MASKS, numbers, 0)

        _complete(self.features, contents, partial(both_features, self.backbone, images))
        for number, store in enumerate(self.views):
            _complete(store, contents, partial(view, number))
        if self.images:
            _complete(self.images, contents, lambda: images)
        if self.masks:
            _complete(self.masks, contents, masks)


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


def augmented(
    backbone: Backbone,
    images: UInt8[Tensor, "b 3 H W"],
    mirror: Bool[Tensor, " b"],
    chances: Float[Tensor, "b 7"],
) -> Float[Tensor, "b c h w"]:
    """Features of images, mirrored where ``mirror`` and augmented with ``chances``; see
    :func:`primaps.features.augmentation.photometric`."""
    inputs = network_input(backbone, images)
    flip = mirror.to(inputs.device).view(-1, 1, 1, 1)
    return backbone(photometric(torch.where(flip, inputs.flip(-1), inputs), chances))


def view_chances(view: int, content: str) -> Float[Tensor, " 8"]:
    """Uniform random numbers of a view of an image: whether to mirror (< 1/2), and the rest.

    They are the same for every seed of a fit, so that fits share the views.
    """
    return torch.rand(1 + CHANCES, generator=generator("view", view, content))


def _complete(store: Store, contents: Sequence[str], make: Callable[[], Tensor]) -> None:
    if lacking := store.missing(contents):
        rows = make()[[contents.index(content) for content in lacking]]
        store.append(lacking, rows.cpu().numpy())


def _short(options: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]
