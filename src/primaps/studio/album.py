"""All images of a studio: their photos, looks and features, each when it is needed.

After a fit the server looks at one image after the other; whatever a person asks for goes first.
"""

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
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from primaps.backbones.backbone import image_features
from primaps.data import ImageError, fit_to_patches, to_tensor
from primaps.studio import analysis as looks
from primaps.studio.analysis import Look
from primaps.studio.network import Network
from primaps.studio.photos import THUMB, cut_out, jpeg, photo
from primaps.studio.work_queue import SPARE, Turns
from primaps.studio.workspace import Workspace
from primaps.utils.files import atomic_path

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The values that were used last; from any thread."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """What is kept under a key."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: K, value: V) -> V:
        """Keep a value, and forget the one that was not used for the longest time."""
        with self._lock:
            self._kept[key] = value
            self._kept.move_to_end(key)
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return value


@dataclass(frozen=True)
class Summary:
    """What stays in memory of every look.

    Attributes:
        doubt: in [0, 1].
        counts: pixels of each part, as the model sees them.
        alike, directions, boxes: as in :class:`primaps.studio.analysis.Look`.
    """

    doubt: float
    counts: np.ndarray
    alike: np.ndarray
    directions: np.ndarray
    boxes: np.ndarray


class Album:
    """Images by their numbers.

    Args:
        changed: called in any thread when a look is there.

    Attributes:
        summaries: of the images that were looked at.
        lost: numbers of images that cannot be read, with the reason.
    """

    def __init__(
        self, workspace: Workspace, network: Network, turns: Turns, changed: Callable[[int], None]
    ) -> None:
        self.workspace, self.network, self.turns = workspace, network, turns
        self.changed = changed
        self.clear()
        self.progress: dict[str, Any] | None = None
        self._closed = False

    def clear(self) -> None:
        """Forget the images of another folder."""
        # New ones, since whoever reads a photo now keeps it where it was looked for.
        self._looks: Recent[int, Look] = Recent(24)
        self._features: Recent[int, Tensor] = Recent(8)
        self._photos: Recent[int, bytes] = Recent(16)
        self._thumbs: Recent[int, bytes] = Recent(256)
        self.summaries: dict[int, Summary] = {}
        self.lost: dict[int, str] = {}

    def close(self) -> None:
        """Look at no further image."""
        self._closed = True

    def photo(self, number: int) -> bytes:
        """The photo as JPEG, as it is shown.

        Raises:
            NotFoundError: there is no such image.
            ImageError: it cannot be read.
        """
        photos = self._photos
        if (kept := photos.get(number)) is not None:
            return kept
        file = self.workspace.file(number)
        return photos.put(number, jpeg(photo(file.source)))

    def thumb(self, number: int) -> bytes:
        """The small photo, kept on disk as well once the studio's folder is there.

        Raises:
            NotFoundError: there is no such image.
            ImageError: it cannot be read.
        """
        thumbs = self._thumbs
        if (kept := thumbs.get(number)) is not None:
            return kept
        file = self.workspace.file(number)
        path = self.workspace.out / "looks" / f"{file.key}.thumb.jpg"
        assert isinstance(file.source, Path)
        if _newer(path, file.source):
            return thumbs.put(number, path.read_bytes())
        found = jpeg(photo(file.source, THUMB))
        if self.workspace.record is not None:
            with atomic_path(path) as temporary:
                temporary.write_bytes(found)
        return thumbs.put(number, found)

    def crop(self, number: int, box: tuple[float, float, float, float]) -> bytes:
        """A part of the photo as JPEG; ``box`` is left, top, right and bottom in 0..1.

        Raises:
            NotFoundError: there is no such image.
            ImageError: it cannot be read.
        """
        with Image.open(io.BytesIO(self.photo(number))) as image:
            return jpeg(cut_out(image, box))

    def features(self, number: int) -> Float[Tensor, "c h w"]:
        """Features of the whole image, to propose masks from; in the thread of the network.

        Raises:
            ImageError: it cannot be read.
        """
        features = self._features
        if (kept := features.get(number)) is not None:
            return kept
        source = self.workspace.file(number).source
        assert isinstance(source, Path)
        backbone = self.network.backbone()
        scaled = fit_to_patches(photo(source), self.network.size, backbone.patch_size)
        return features.put(number, image_features(backbone, to_tensor(scaled)[None])[0])

    def known_features(self, number: int) -> Tensor | None:
        """Those features if they are there already; in any thread."""
        return self._features.get(number)

    def look(self, number: int, urgency: int) -> Future[Look]:
        """What the model sees in an image; found in its turn if it is not known.

        Raises, through the future:
            ImageError: the image cannot be read.
        """
        if (kept := self._looks.get(number)) is not None:
            done: Future[Look] = Future()
            done.set_result(kept)
            return done
        return self.turns.take(urgency, lambda: self._look(number))

    def kept_look(self, number: int) -> Look | None:
        """The look if it takes no network: from memory or disk; in any thread."""
        if (kept := self._looks.get(number)) is not None:
            return kept
        if number not in self.summaries:
            return None
        file = self.workspace.file(number)
        assert isinstance(file.source, Path)
        try:
            about = looks.about(self.network.digest(), file.source)
        except OSError:
            return None
        found = looks.load(self._path(file.key), about)
        return None if found is None else self._looks.put(number, found)

    def _path(self, key: str) -> Path:
        return self.workspace.out / "looks" / f"{key}.npz"

    def _look(self, number: int) -> Look:
        if (kept := self._looks.get(number)) is not None:
            return kept
        file = self.workspace.file(number)
        assert isinstance(file.source, Path)
        model = self.network.model()
        try:
            about = looks.about(self.network.digest(), file.source)
        except OSError as error:
            self.lost[number] = f"{file.source} cannot be read ({error.strerror})"
            raise ImageError(self.lost[number]) from None
        found = looks.load(self._path(file.key), about)
        if found is None:
            try:
                image = photo(file.source)
            except ImageError as error:
                self.lost[number] = str(error)
                raise
            found = looks.look(model, image)
            looks.save(found, self._path(file.key), about)
        self._looks.put(number, found)
        self.lost.pop(number, None)
        if number not in self.summaries:
            length = len(found.alike)
            counts = np.bincount(found.parts.ravel(), minlength=length)
            self.summaries[number] = Summary(
                found.doubt, counts, found.alike, found.directions, found.boxes
            )
            self.changed(number)
        return found

    def look_at_all(self) -> None:
        """Look at all images, one after the other, when nothing else is to do."""
        began, first = time.monotonic(), self.seen
        self.progress = {
            "stage": "looking", "done": first, "total": len(self.workspace.images),
            "seconds_left": None, "about": {},
        }  # fmt: skip

        def step(number: int) -> None:
            total = len(self.workspace.images)
            while number < total and (number in self.summaries or number in self.lost):
                number += 1
            if number == total or self._closed:
                self.progress = None
                return
            try:
                self._look(number)
            except Exception as error:  # the reason is shown; the others go on
                self.lost.setdefault(number, str(error))
            done = self.seen
            rate = (time.monotonic() - began) / max(1, done - first)
            self.progress = {
                "stage": "looking",
                "done": done,
                "total": total,
                "seconds_left": round(rate * (total - done), 1),
                "about": {},
            }
            self.turns.take(SPARE, lambda: step(number + 1))

        self.turns.take(SPARE, lambda: step(0))

    @property
    def seen(self) -> int:
        """Number of images that were looked at or cannot be read."""
        return len(self.summaries.keys() | self.lost.keys())


def _newer(path: Path, source: Path) -> bool:
    try:
        return path.stat().st_mtime_ns > source.stat().st_mtime_ns
    except OSError:  # either is not there
        return False
