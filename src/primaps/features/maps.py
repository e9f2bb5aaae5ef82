"""Feature maps of whole images, computed once and cached, for teaching and for questions.

Training reads the centered squares of images (:mod:`primaps.features.extract`). What a person
annotates can lie anywhere, so these maps cover the whole image, as inference does.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor

from primaps.backbones.backbone import Backbone, image_features
from primaps.data import (
    ImageError,
    ImageFile,
    LogCallback,
    content_digest,
    fit_to_patches,
    pixel_digest,
    read,
    to_tensor,
)
from primaps.features.feature_cache import MEMORY_LIMIT, ArrayCache, backbone_folder
from primaps.utils.files import cache_dir
from primaps.utils.parallel import lanes, overlapped
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.seeding import generator

logger = logging.getLogger("primaps")
HEADER = 8
"""Half-precision values that hold the size of the image and of its token grid, as four integers."""
TOKENS = 713
"""Patch tokens of an image of 3:4 at 322 px, to estimate the size of the cache."""


@dataclass(frozen=True)
class FeatureMaps:
    """Feature maps of whole images by image key.

    Attributes:
        digests: SHA-256 of each image by its key, in the order of the images.
        arrays: rows of each image in the cache: its sizes, then its patch tokens.
        channels: number of channels C.

    Examples:
        >>> from PIL import Image
        >>> pool = Backbone(torch.nn.AvgPool2d(8), patch_size=8, name="pool")
        >>> image = ImageFile(Image.new("RGB", (96, 48)), "a")
        >>> maps = feature_maps([image], pool, 24, cache=None)
        >>> maps.keys, maps.size("a"), maps["a"].shape
        (['a'], (48, 96), torch.Size([3, 3, 6]))
    """

    digests: dict[str, str]
    arrays: dict[str, np.ndarray]
    channels: int

    @property
    def keys(self) -> list[str]:
        """Keys of the images, in their order."""
        return list(self.digests)

    def __len__(self) -> int:
        return len(self.digests)

    def __contains__(self, key: object) -> bool:
        return key in self.digests

    def size(self, key: str) -> tuple[int, int]:
        """Return height and width of an image in pixels."""
        return self._sizes(key)[:2]

    def grid(self, key: str) -> tuple[int, int]:
        """Return height and width of the token grid of an image."""
        return self._sizes(key)[2:]

    def tokens(self, key: str) -> Float[Tensor, "n c"]:
        """Return the features of all patch tokens of an image, row by row."""
        rows = self.arrays[key][header_rows(self.channels) :]
        return torch.from_numpy(np.asarray(rows, np.float32))

    def __getitem__(self, key: str) -> Float[Tensor, "c h w"]:
        """Return the feature map of an image, not normalized."""
        return self.tokens(key).T.unflatten(1, self.grid(key)).contiguous()

    def sample(self, number: int, seed: int = 0) -> Float[Tensor, "n c"]:
        """Sample up to ``number`` patch tokens of all images, the same share of each."""
        first = header_rows(self.channels)
        counts = [len(self.arrays[key]) - first for key in self.keys]
        share = min(1.0, number / max(1, sum(counts)))
        found = []
        for key, count in zip(self.keys, counts, strict=True):
            random = generator("feature map sample", seed, self.digests[key])
            wanted = share * count
            taken = int(wanted) + int(torch.rand((), generator=random) < wanted % 1)
            order = torch.randperm(count, generator=random)[:taken].sort().values.numpy()
            found.append(np.asarray(self.arrays[key][first + order], np.float32))
        return torch.from_numpy(np.concatenate(found)) if found else torch.zeros(0, self.channels)

    def _sizes(self, key: str) -> tuple[int, int, int, int]:
        rows = np.ascontiguousarray(self.arrays[key][: header_rows(self.channels)], np.float16)
        height, width, h, w = rows.view(np.uint8).reshape(-1)[: 2 * HEADER].view(np.int32).tolist()
        return height, width, h, w


def header_rows(channels: int) -> int:
    """Return the number of rows before the patch tokens of an image.

    Examples:
        >>> header_rows(384), header_rows(3)
        (1, 3)
    """
    return math.ceil(HEADER / channels)


def pack_map(
    features: Float[Tensor, "c h w"], size: tuple[int, int]
) -> Float16[np.ndarray, "rows c"]:
    """Return the rows of an image in the cache."""
    channels, h, w = features.shape
    header = np.zeros((header_rows(channels), channels), np.float16)
    sizes = np.array([*size, h, w], np.int32).view(np.uint8)
    header.reshape(-1).view(np.uint8)[: len(sizes)] = sizes
    tokens = features.flatten(1).T.cpu().numpy().astype(np.float16)
    return np.concatenate([header, tokens])


@torch.no_grad()
def feature_maps(
    files: Sequence[ImageFile],
    encoder: Backbone,
    size: int,
    *,
    cache: str | Path | None = "auto",
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> FeatureMaps:
    """Compute the features of whole images that are not cached, and return those of all images.

    Args:
        files: images of a collection.
        encoder: network of the features, or of the codes that are classified.
        size: shorter side of the scaled images in pixels.
        cache: cache folder; ``auto`` is memory below 2 GB and the default folder otherwise; None is
            memory.
        progress: progress callback.
        log: called with one sentence about each image that is skipped.

    Raises:
        ImageError: no image could be read.
    """
    blank = torch.zeros(1, 3, encoder.patch_size, encoder.patch_size, dtype=torch.uint8)
    channels = image_features(encoder, blank).shape[1]
    if cache == "auto":
        need = 2 * channels * TOKENS * len(files)
        cache = None if need < MEMORY_LIMIT else cache_dir() / "features"
    folder = backbone_folder(encoder, size, cache)
    rows = ArrayCache((channels,), np.float16, folder and folder / "whole", several=True)
    skipped: list[str] = []

    def skip(sentence: str) -> None:
        skipped.append(sentence)
        log(sentence)

    digests: dict[str, str] = {}
    contents: dict[str, str] = {}  # keys of the cache, which depend on the depth of an image
    for file, (digest, content) in read(files, both_digests, skip):
        digests[file.key], contents[file.key] = digest, content
        progress("reading", len(digests), len(files), {})
    if missing := set(rows.missing(contents.values())):
        with rows.writing():
            wanted = set(rows.missing(missing))  # another process may have written some
            computed = [file for file in files if contents.get(file.key) in wanted]
            _compute(rows, computed, contents, encoder, size, progress, skip)
        absent = set(rows.missing(contents.values()))
        digests = {key: digest for key, digest in digests.items() if contents[key] not in absent}
    if not digests:
        reason = f"; first: {skipped[0]}" if skipped else ""
        raise ImageError(f"none of the {len(files)} images could be read{reason}")
    found = rows.rows([contents[key] for key in digests]).arrays
    return FeatureMaps(digests, dict(zip(digests, found, strict=True)), channels)


def both_digests(file: ImageFile) -> tuple[str, str]:
    """Return the digest of a file, and that of its pixels as they are read."""
    return content_digest(file), pixel_digest(file)


def _compute(
    rows: ArrayCache,
    files: Sequence[ImageFile],
    contents: dict[str, str],
    encoder: Backbone,
    size: int,
    progress: ProgressCallback,
    log: LogCallback,
) -> None:
    """Compute and cache the maps of images, one image per thread."""

    def load(file: ImageFile) -> tuple[Tensor, tuple[int, int]]:
        image = file.load()
        scaled = to_tensor(fit_to_patches(image, size, encoder.patch_size))
        return scaled, (image.height, image.width)

    Loaded = tuple[ImageFile, tuple[Tensor, tuple[int, int]]]

    def batches() -> Iterator[list[Loaded]]:
        for one in read(files, load, log):
            yield [one]

    with lanes(encoder.device) as threads:

        def work(batch: list[Loaded]) -> tuple[str, np.ndarray]:
            ((file, (scaled, original)),) = batch
            with threads.turn:
                features = image_features(encoder, scaled[None])[0]
            return contents[file.key], pack_map(features, original)

        for done, (digest, packed) in enumerate(overlapped(batches(), work, threads), 1):
            if rows.missing([digest]):
                rows.append([digest], [packed])
            progress("features", done, len(files), {})
