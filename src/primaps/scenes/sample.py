"""Sample tiles of scenes at random positions, to fit a model on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from primaps.data import ImageFile, LogCallback, find_images
from primaps.scenes.source import Box, SceneError
from primaps.scenes.tiling import TilingOptions
from primaps.scenes.view import View
from primaps.utils.errors import InputError
from primaps.utils.files import atomic_path, cache_dir, save_image, sha256
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validated
from primaps.version import VERSION

logger = logging.getLogger("primaps")
MIN_VALID = 0.5
"""Minimum share of valid pixels in a sampled tile."""
MAX_TRIES = 50
"""Positions that are tried per tile before a scene counts as empty."""


@validated
def scene_tiles(
    scenes: str | Path | Sequence[str | Path],
    count: int,
    size: int,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
    **tiling: Any,
) -> list[ImageFile]:
    """Sample tiles at random positions of scenes, to fit a model on.

    Command line: ``primaps fit scene.tif --scene-tiles 500``. The number of tiles of a scene is
    proportional to its area. At least half of the pixels of a tile have a value.

    Args:
        scenes: files, folders (searched recursively) or globs.
        count: number of tiles.
        size: side of a tile in network pixels.
        seed: seed of the positions and of the stretch.
        folder: folder of the PNG files, which are reused; None is the cache.
        progress: progress callback.
        log: called with one sentence about each scene that seems to have nodata that is not
            declared.
        **tiling: fields of :class:`primaps.scenes.tiling.TilingOptions`; only ``scale``, ``mpp``,
            ``bands``, ``stretch``, ``nodata`` and ``alpha`` have an effect.

    Returns:
        Images for :meth:`primaps.PriMaPsEM.fit`.

    Raises:
        SceneError: a scene is damaged, or has too few valid pixels.
        InputError: an option does not fit a scene, or a scene is smaller than a tile.
        NotFoundError: no scene was found.
    """
    options, files = TilingOptions(**tiling), find_images(scenes)
    paths = [Path(str(file.source)) for file in files]
    if count < 1:
        raise InputError(f"--scene-tiles must be at least 1, got {count}")
    areas = np.zeros(len(paths))
    for number, path in enumerate(paths):
        with _view(path, options, log) as view:
            if min(view.height, view.width) < size:
                raise InputError(
                    f"{view.scene.path} has {view.width}x{view.height} pixels at scale "
                    f"{view.scale:g}, less than a tile of {size}; give a smaller --scale or --size"
                )
            areas[number] = view.height * view.width
    ends = np.rint(areas.cumsum() / areas.sum() * count).astype(int).tolist()
    root = Path(folder).expanduser() if folder is not None else cache_dir() / "scene-tiles"
    found: list[ImageFile] = []
    counts = np.diff(ends, prepend=0).tolist()
    for number, (file, path) in enumerate(zip(files, paths, strict=True)):
        key = json.dumps([VERSION, seed, number, size, asdict(options), sha256(path)])
        subfolder = root / hashlib.sha256(key.encode()).hexdigest()[:16]
        with _view(path, options) as view:
            for colors, name in _random_tiles(view, counts[number], size, seed + number):
                tile = subfolder / f"{name}.png"
                if not tile.exists():
                    with atomic_path(tile) as temporary:
                        save_image(Image.fromarray(colors), temporary)
                found.append(ImageFile(tile, f"{file.key}/{name}"))
                progress("sampling", len(found), count, {})
    return found


@contextmanager
def _view(path: Path, options: TilingOptions, log: LogCallback | None = None) -> Iterator[View]:
    """Open a scene; one at a time, because a collection may have thousands."""
    with closing(options.open(path, log)) as scene:
        yield options.view(scene)


def _random_tiles(
    view: View, count: int, size: int, seed: int
) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], str]]:
    """Yield tiles at distinct random positions with enough valid pixels, and their names."""
    random = np.random.default_rng(seed)
    positions: set[tuple[int, int]] = set()
    for _ in range(count * MAX_TRIES):
        if len(positions) == count:
            return
        top = int(random.integers(view.height - size + 1))
        left = int(random.integers(view.width - size + 1))
        if (top, left) in positions:
            continue
        colors, valid = view.piece(Box(top, top + size, left, left + size))
        if valid.mean() >= MIN_VALID:
            positions.add((top, left))
            yield colors, f"{top:06}-{left:06}"
    if len(positions) < count:
        raise SceneError(
            f"{view.scene.path} has only {len(positions)} of {count} tiles of {size} pixels in "
            "which half of the pixels have a value; sample fewer tiles"
        )
