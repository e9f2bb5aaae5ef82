"""A label map and a picture of every image of a collection, in a folder that keeps what is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from PIL import Image
from torch import Tensor

from primaps.data import ImageError, ImageFile, LogCallback, load_image, read
from primaps.data.folder import files_here
from primaps.data.stream import content_digest, in_memory
from primaps.label_maps.batches import alike
from primaps.label_maps.labeler import ImageSize, Labeler
from primaps.results import OutputFolder
from primaps.utils.files import save_picture
from primaps.utils.parallel import lanes, overlapped
from primaps.utils.progress import ProgressCallback
from primaps.utils.shards import read_shard

Inputs = str | Path | Sequence[str | Path]
Picture = Callable[[Image.Image, Integer[np.ndarray, "h w"]], Image.Image]
"""An image and its label map to a picture of both."""
ENDINGS = (".png", ".overlay.jpg")
"""Of the label map and the picture of an image."""
OVERLAY_SIDE = 1600
"""Longest side of overlay pictures in pixels: to look at, so no larger than a screen."""
WAITING = 48
"""Images that are held at the same time until enough others have their size."""


@dataclass(frozen=True)
class Written:
    """What a run over files did.

    Attributes:
        written: label maps made now.
        kept: label maps that an earlier run with the same options had made.
        problems: one sentence about each image that was left out.
    """

    written: list[Path]
    kept: list[Path]
    problems: list[str]


@dataclass(frozen=True)
class _Loaded:
    """What is kept of an image until its batch is full.

    Attributes:
        key: of its results.
        digest: of its content.
        scaled: what the network sees.
        shown: the image as its picture shows it.
        size: height and width of the image.
    """

    key: str
    digest: str
    scaled: Tensor
    shown: Image.Image
    size: ImageSize


def write_maps(
    stage: str,
    files: Sequence[ImageFile],
    out: Path,
    labeler: Labeler,
    picture: Picture,
    options: dict[str, Any],
    shard: str | None,
    progress: ProgressCallback,
    log: LogCallback,
) -> Written:
    """Label every image; write its map and picture, keeping what is already there.

    Images of one scaled size are computed together, whatever lies between them. Reading, computing
    and writing overlap.

    Args:
        shard: see :func:`primaps.utils.shards.read_shard`.

    Raises:
        InputError: there is no such shard.
        ImageError: there are images and none of them could be read.
        OutputError: a file would be replaced that is not ours.
    """
    share = read_shard(shard)
    names = {file.key: [f"{file.key}{end}" for end in ENDINGS] for file in files}
    all_names = [name for pair in names.values() for name in pair]
    output = OutputFolder(out, options, files_here(files), all_names)
    files = share.of(files)
    written: set[str] = set()
    kept: set[str] = set()
    problems: list[str] = []

    def skip(sentence: str) -> None:
        problems.append(sentence)
        log(sentence)

    def report() -> None:
        progress(stage, len(written) + len(kept) + len(problems), len(files), {})

    def load(file: ImageFile) -> _Loaded | None:
        """None if the results of this content are there."""
        file = in_memory(file)
        digest = content_digest(file)
        if output.finished(digest, names[file.key]):
            return None
        image = load_image(file.source)
        size = (image.height, image.width)
        return _Loaded(file.key, digest, labeler.scaled(image), _shown(image), size)

    def to_do() -> Any:
        for file, loaded in read(files, load, skip, ahead=16):
            if loaded is None:
                kept.add(file.key)
                report()
            else:
                yield loaded

    with lanes(labeler.device) as own:

        def work(batch: list[_Loaded]) -> list[str]:
            with own.turn:
                maps = labeler([one.scaled for one in batch], [one.size for one in batch])
            for one, labels in zip(batch, maps, strict=True):
                _write(output, one, labels.numpy(), picture)
            return [one.key for one in batch]

        batches = alike(to_do(), lambda one: one.scaled.shape, labeler.together, WAITING)
        for done in overlapped(batches, work, own):
            written |= set(done)
            report()
    if problems:
        progress(stage, len(files), len(files), {})
    if files and not written and not kept:
        raise ImageError(f"none of the {len(files)} images could be read; first: {problems[0]}")
    return Written(
        [out / f"{file.key}.png" for file in files if file.key in written],
        [out / f"{file.key}.png" for file in files if file.key in kept],
        problems,
    )


def _shown(image: Image.Image) -> Image.Image:
    scale = min(1.0, OVERLAY_SIDE / max(image.size))
    if scale == 1:
        return image
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def _write(
    output: OutputFolder, one: _Loaded, labels: Integer[np.ndarray, "h w"], picture: Picture
) -> None:
    label_map = Image.fromarray(labels.astype(np.uint8 if labels.max() < 256 else np.uint16))
    small = label_map.resize(one.shown.size, Image.Resampling.NEAREST)
    overlaid = picture(one.shown, np.asarray(small))
    map_name, picture_name = (f"{one.key}{end}" for end in ENDINGS)
    saved: dict[str, Callable[[Path], Any]] = {
        picture_name: partial(save_picture, overlaid, quality=90),
        map_name: partial(save_picture, label_map),
    }
    output.write(one.digest, saved)
