"""Windows of scenes at random places, for a model to be fitted on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from primaps.data import ImageFile, find_images
from primaps.scenes.reader import open_scene
from primaps.scenes.source import Box, SceneError
from primaps.scenes.tiling import TilingOptions
from primaps.scenes.view import View
from primaps.utils.errors import InputError
from primaps.utils.files import atomic_path, cache_dir, save_picture, sha256
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validated
from primaps.version import VERSION

FULL = 0.5
"""Share of a window that has to have a value."""
TRIES = 50
"""Places that are looked at for each window before a scene counts as empty."""


@validated
def scene_tiles(
    scenes: str | Path | Sequence[str | Path],
    count: int,
    size: int,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: ProgressCallback = silent,
    **fields: Any,
) -> list[ImageFile]:
    """Windows at random places of scenes: ``primaps fit scene.tif --scene-tiles 500``.

    Scenes have windows by their area. A window more than half of which has no value is left out,
    and another place is drawn.

    Args:
        scenes: files, folders (searched recursively) or globs.
        count: number of windows.
        size: of their sides, in pixels that the network sees.
        folder: where they are kept as PNG; None is the cache. Those that are there are taken.
        **fields: of :class:`primaps.scenes.tiling.TilingOptions`.

    Returns:
        Images for :meth:`primaps.PriMaPsEM.fit`.

    Raises:
        SceneError: a scene is damaged, or too empty to draw windows from.
        InputError: options do not fit a scene, or it is smaller than a window.
        NotFoundError: there is no scene.
    """
    tiling, files = TilingOptions(**fields), find_images(scenes)
    if count < 1:
        raise InputError(f"--scene-tiles {count} must be at least 1")
    areas = np.zeros(len(files))
    for number, file in enumerate(files):
        with _view(file, tiling) as view:
            if min(view.height, view.width) < size:
                raise InputError(
                    f"{view.scene.path} has {view.width}x{view.height} pixels at scale "
                    f"{view.scale:g}, less than a window of {size}: choose a smaller scale or size"
                )
            areas[number] = view.height * view.width
    ends = np.rint(areas.cumsum() / areas.sum() * count).astype(int).tolist()
    root = Path(folder).expanduser() if folder is not None else cache_dir() / "windows"
    found: list[ImageFile] = []
    for number, (file, begin, end) in enumerate(zip(files, [0, *ends], ends, strict=False)):
        own = json.dumps([VERSION, seed, number, size, tiling.to_dict(), sha256(_path(file))])
        place = root / hashlib.sha256(own.encode()).hexdigest()[:16]
        with _view(file, tiling) as view:
            for colors, name in _places(view, end - begin, size, seed + number):
                path = place / f"{name}.png"
                if not path.exists():
                    with atomic_path(path) as temporary:
                        save_picture(Image.fromarray(colors), temporary)
                found.append(ImageFile(path, f"{file.key}/{name}"))
                progress("sampling", len(found), count, {})
    return found


def _path(file: ImageFile) -> Path:
    return Path(str(file.source))


@contextmanager
def _view(file: ImageFile, tiling: TilingOptions) -> Iterator[View]:
    """A scene, open: one at a time, as there may be thousands."""
    with closing(open_scene(_path(file), tiling.bands)) as scene:
        yield tiling.view(scene)


def _places(
    view: View, count: int, size: int, seed: int
) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], str]]:
    """Windows at random places that have enough to show, each another one, and their names."""
    random = np.random.default_rng(seed)
    seen: set[tuple[int, int]] = set()
    for _ in range(count * TRIES):
        if len(seen) == count:
            return
        top = int(random.integers(view.height - size + 1))
        left = int(random.integers(view.width - size + 1))
        box = Box(top, top + size, left, left + size)
        if (top, left) in seen:
            continue
        colors, valid = view.piece(box)
        if valid.mean() >= FULL:
            seen.add((top, left))
            yield colors, f"{top:06}-{left:06}"
    if len(seen) < count:
        raise SceneError(
            f"{view.scene.path} has room for {len(seen)} of {count} windows of {size} pixels that "
            "are at least half full: ask for fewer"
        )
