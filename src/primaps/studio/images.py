"""Images of a studio: how the page displays them, and what is computed and cached for each."""

from __future__ import annotations

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float, Integer
from PIL import Image
from torch import Tensor

from primaps.backbones.backbone import image_features
from primaps.data import ImageError, ImageFile, content_digest, fit_to_patches, to_tensor
from primaps.studio.analysis import (
    ImageAnalysis,
    analyze,
    cache_key,
    load_analysis,
    refined_masks,
    save_analysis,
)
from primaps.studio.network import IDLE, NOW, Network
from primaps.studio.workspace import Workspace
from primaps.utils.files import atomic_path, fitting_name

K = TypeVar("K")
V = TypeVar("V")
DISPLAY_SIDE, THUMBNAIL_SIDE = 1600, 240
"""Longer side of a displayed image and of a thumbnail, in pixels."""
QUALITY = 88


FileState = tuple[int, int, int] | None
"""Inode, time of the last change and size of a file; None if the file does not exist."""


def _file_state(path: Path) -> FileState:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def display_image(file: ImageFile, side: int = DISPLAY_SIDE) -> Image.Image:
    """Read an image as every command does, and scale it down to the displayed size.

    Raises:
        ImageError: The image cannot be read.
    """
    image = file.load()
    scale = min(1.0, side / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def encode_jpeg(image: Image.Image) -> bytes:
    """Encode sRGB pixels as a JPEG file without metadata (EXIF, XMP, comments)."""
    plain = image.copy()
    plain.info = {}
    file = io.BytesIO()
    plain.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


class LRUCache(Generic[K, V]):
    """The most recently used values, for all threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """Return the value of a key, or None."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: K, value: V) -> V:
        """Add a value and return it; a full cache drops the least recently used one."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            if len(self._values) > self.size:
                self._values.popitem(last=False)
        return value

    def drop(self, key: K) -> None:
        """Remove a value."""
        with self._lock:
            self._values.pop(key, None)


@dataclass(frozen=True)
class Summary:
    """The values of an analysis that stay in memory for every image.

    Attributes:
        uncertainty: Uncertainty of the image, in [0, 1].
        counts: Number of pixels of each leaf, corrections included.
        similarity, directions, boxes: As in :class:`primaps.studio.analysis.ImageAnalysis`.
    """

    uncertainty: float
    counts: Integer[np.ndarray, " l"]
    similarity: Float[np.ndarray, " l"]
    directions: Float[np.ndarray, "z c"]
    boxes: Float[np.ndarray, "z 4"]


class ImageCache:
    """JPEG files, features and analyses of the images, by image number.

    Methods raise NotFoundError for an unknown number and ImageError for an unreadable image.

    Args:
        on_analysis: Called in the thread of the network with each image that was analyzed.

    Attributes:
        summaries: Of the images that were analyzed.
        unreadable: Reason by image number, for images that cannot be read.
        progress: Progress of the analysis of all images; None when it is complete.
    """

    def __init__(
        self, workspace: Workspace, network: Network, on_analysis: Callable[[int], None]
    ) -> None:
        self.workspace, self.network, self.on_analysis = workspace, network, on_analysis
        self.progress: dict[str, Any] | None = None
        self._closed = False
        self.clear()

    def clear(self) -> None:
        """Clear all caches, because another folder was chosen."""
        # New caches: a thread that still reads an image of the old folder writes to the old cache.
        self._analyses: LRUCache[int, ImageAnalysis] = LRUCache(24)
        self._features: LRUCache[int, Tensor] = LRUCache(8)
        self._images: LRUCache[int, bytes] = LRUCache(16)
        self._thumbnails: LRUCache[int, bytes] = LRUCache(256)
        self.summaries: dict[int, Summary] = {}
        self.unreadable: dict[int, str] = {}
        self._analyzed: dict[int, FileState] = {}
        """State of each file when it was analyzed."""
        self._digests: dict[int, tuple[FileState, str]] = {}

    def close(self) -> None:
        """Stop the analysis of all images."""
        self._closed = True

    def image(self, number: int) -> bytes:
        """Return an image at the displayed size as a JPEG file."""
        images = self._images
        if (cached := images.get(number)) is not None:
            return cached
        return images.put(number, encode_jpeg(display_image(self.workspace.file(number))))

    def thumbnail(self, number: int) -> bytes:
        """Return the thumbnail of an image; after a fit has begun it is also cached on disk."""
        thumbnails = self._thumbnails
        if (cached := thumbnails.get(number)) is not None:
            return cached
        source, path = self._source(number), self._path(number, ".thumbnail.jpg")
        if path.is_file() and source.is_file() and path.stat().st_mtime > source.stat().st_mtime:
            return thumbnails.put(number, path.read_bytes())
        data = encode_jpeg(display_image(self.workspace.file(number), THUMBNAIL_SIDE))
        if self.workspace.record is not None:
            with atomic_path(path) as temporary:
                temporary.write_bytes(data)
        return thumbnails.put(number, data)

    def digest(self, number: int) -> str:
        """Return the SHA-256 of an image file."""
        file, state = self.workspace.file(number), _file_state(self._source(number))
        known = self._digests.get(number)
        if known is None or known[0] != state:
            known = self._digests[number] = (state, content_digest(file))
        return known[1]

    def crop(self, number: int, box: tuple[float, float, float, float]) -> bytes:
        """Return a crop of a displayed image as a JPEG file.

        Args:
            box: Left, top, right and bottom edge, as fractions of the image.
        """
        with Image.open(io.BytesIO(self.image(number))) as image:
            left, top = int(box[0] * image.width), int(box[1] * image.height)
            right = max(left + 1, round(box[2] * image.width))
            bottom = max(top + 1, round(box[3] * image.height))
            crop = image.crop((left, top, min(right, image.width), min(bottom, image.height)))
        crop.thumbnail((2 * THUMBNAIL_SIDE, 2 * THUMBNAIL_SIDE))
        return encode_jpeg(crop)

    def features(self, number: int) -> Future[Float[Tensor, "c h w"]]:
        """Return the backbone features of an image, from which masks are proposed."""
        self.workspace.file(number)
        cache = self._features
        if (cached := cache.get(number)) is not None:
            return _done(cached)

        def compute() -> Tensor:
            if (cached := cache.get(number)) is not None:
                return cached
            backbone, image = self.network.backbone(), display_image(self.workspace.file(number))
            scaled = fit_to_patches(image, self.network.size, backbone.patch_size)
            return cache.put(number, image_features(backbone, to_tensor(scaled)[None])[0])

        return self.network.queue.submit(NOW, compute)

    def masks(self, number: int, threshold: float, features: Tensor) -> Integer[np.ndarray, "H W"]:
        """Propose masks refined by the CRF; only in the thread of the network."""
        image = display_image(self.workspace.file(number))
        backbone, size = self.network.backbone(), self.network.size
        return refined_masks(backbone, image, features, size, threshold)

    def analysis(self, number: int, priority: int) -> Future[ImageAnalysis]:
        """Return the analysis of an image, computed in the thread of the network if necessary."""
        self._forget_replaced(number)
        if (cached := self.cached_analysis(number)) is not None:
            return _done(cached)
        return self.network.queue.submit(priority, lambda: self._analyze(number))

    def _forget_replaced(self, number: int) -> None:
        """Drop what is cached for an image whose file was replaced since its analysis."""
        state, analyzed = _file_state(self._source(number)), self._analyzed.get(number)
        if state is None or analyzed is None or state == analyzed:
            return
        for cache in (self._analyses, self._features, self._images, self._thumbnails):
            cache.drop(number)
        self.summaries.pop(number, None)
        self._analyzed.pop(number)

    def cached_analysis(self, number: int) -> ImageAnalysis | None:
        """Return the analysis of an image from memory or disk; None if it has to be computed."""
        cached = self._analyses.get(number)
        if cached is not None or number not in self.summaries:
            return cached
        try:
            key = cache_key(self.network.digest(), self._source(number))
        except OSError:
            return None
        loaded = load_analysis(self._path(number, ".safetensors"), key)
        return None if loaded is None else self._analyses.put(number, loaded)

    def _analyze(self, number: int) -> ImageAnalysis:
        if (cached := self._analyses.get(number)) is not None:
            return cached
        source, path = self._source(number), self._path(number, ".safetensors")
        model, state = self.network.model(), _file_state(source)
        try:
            key = cache_key(self.network.digest(), source)
        except OSError as error:
            self.unreadable[number] = f"{source} cannot be read ({error.strerror})"
            raise ImageError(self.unreadable[number]) from None
        analysis = load_analysis(path, key)
        if analysis is None:
            try:
                image = display_image(self.workspace.file(number))
            except ImageError as error:
                self.unreadable[number] = str(error)
                raise
            analysis = analyze(model, image)
            save_analysis(analysis, path, key)
        self._analyses.put(number, analysis)
        self._analyzed[number] = state
        self.unreadable.pop(number, None)
        if number not in self.summaries:
            counts = np.bincount(analysis.leaves.ravel(), minlength=len(analysis.similarity))
            self.summaries[number] = Summary(
                analysis.uncertainty,
                counts,
                analysis.similarity,
                analysis.directions,
                analysis.boxes,
            )
            self.on_analysis(number)
        return analysis

    def analyze_all(self) -> None:
        """Analyze all images one after the other, whenever nothing else is queued."""
        start, first = time.monotonic(), self.analyzed

        def report() -> None:
            done, total = self.analyzed, len(self.workspace.images)
            left = None
            if done > first:
                left = round((time.monotonic() - start) / (done - first) * (total - done), 1)
            self.progress = {
                "stage": "analysis", "done": done, "total": total, "seconds_left": left,
                "left_of": "stage", "metrics": {},
            }  # fmt: skip

        def step(number: int) -> None:
            total = len(self.workspace.images)
            while number < total and (number in self.summaries or number in self.unreadable):
                number += 1
            if number == total or self._closed:
                self.progress = None
                return
            try:
                self._analyze(number)
            except Exception as error:  # the page shows the reason; the other images follow
                self.unreadable.setdefault(number, str(error))
            report()
            self.network.queue.submit(IDLE, lambda: step(number + 1))

        report()
        self.network.queue.submit(IDLE, lambda: step(0))

    @property
    def analyzed(self) -> int:
        """Number of images that were analyzed or cannot be read."""
        return len(self.summaries.keys() | self.unreadable.keys())

    def _source(self, number: int) -> Path:
        source = self.workspace.file(number).source
        assert isinstance(source, Path)
        return source

    def _path(self, number: int, suffix: str) -> Path:
        name = fitting_name(self.workspace.images[number].key, suffix)
        return self.workspace.out / "analysis" / name


def _done(value: V) -> Future[V]:
    future: Future[V] = Future()
    future.set_result(value)
    return future
