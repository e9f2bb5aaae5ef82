"""Potsdam-3 from the original tiles of the ISPRS: ``primaps data prepare potsdam``.

What is known, from the preparation that IIC (Ji et al., ICCV 2019) published, on which the numbers
of the field rest: 38 tiles of 6000x6000 pixels (5 cm) are halved, images by the mean of 2x2 pixels
and labels by the upper left one of them, and cut into 15 x 15 patches of 200x200. The 14 tiles
without a label in the release of that time give the 3,150 patches of ``unlabelled_train.txt``, and
of the 5,400 patches of the 24 others 855 were drawn for ``labelled_test.txt`` and 4,545 left for
``labelled_train.txt``. Names and draw were random without a seed, so nobody can repeat them: who
needs the split of published numbers needs the published files.

What is our choice: a patch is named after its tile, row and column (``2_10_00_14``), the 855 are
drawn with seed 0 from the sorted names, and the tiles whose labels were released later stay
unlabeled, so that the counts are those of the protocol. As in the original, train and test
patches may be neighbors in one tile.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from primaps.data.dataset import DataError
from primaps.data.dataset_paths import read_list
from primaps.data.potsdam import LISTS, SOURCE
from primaps.data.reading import ImageError, load_image
from primaps.utils.errors import MissingPackageError
from primaps.utils.files import atomic_path
from primaps.utils.inputs import need_file
from primaps.utils.progress import ProgressCallback, silent

logger = logging.getLogger("primaps")
TILE, PATCH, TEST_PATCHES = 6000, 200, 855
LABELED = tuple(
    f"{row}_{column}" for row in range(2, 8) for column in range(10 if row < 6 else 7, 13)
)
"""The 24 tiles of 5_Labels_for_participants.zip."""
UNLABELED = (
    *("2_13", "2_14", "3_13", "3_14", "4_13", "4_14", "4_15", "5_13", "5_14", "5_15"),
    *("6_13", "6_14", "6_15", "7_13"),
)
# Impervious surface, building, low vegetation, tree, car, clutter, in the order of potsdam.FINE.
COLORS = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))


def prepare_potsdam(
    raw: str | Path,
    out: str | Path,
    progress: ProgressCallback = silent,
    log: Callable[[str], None] = logger.warning,
) -> dict[str, int]:
    """Cut ISPRS tiles into the patches and lists of Potsdam-3.

    Tiles whose patches are all there are not cut again. A tile at a time is in memory (about
    0.5 GB).

    Args:
        raw: folder in which, at any depth, ``top_potsdam_2_10_RGBIR.tif`` (or ``_RGB.tif``) and
            ``top_potsdam_2_10_label.tif`` lie.
        out: folder for ``imgs``, ``gt`` and the lists.
        log: called with a sentence about missing tiles and strange colors.

    Returns:
        The number of patches on each list.

    Raises:
        DataError: there is no tile, a labeled tile lacks its label, or ``out`` has other lists.
        ImageError: a tile cannot be read or is not of 6000x6000 pixels.
    """
    raw, out = Path(raw).expanduser(), Path(out).expanduser()
    images, labels = _find(raw, ("RGBIR", "RGB")), _find(raw, ("label",))
    tiles = [tile for tile in (*LABELED, *UNLABELED) if tile in images]
    if not tiles:
        raise DataError(
            f"{raw} has no top_potsdam_*_RGBIR.tif or _RGB.tif (unpacked, at any depth); get "
            f"{SOURCE}"
        )
    if lost := [tile for tile in tiles if tile in LABELED and tile not in labels]:
        raise DataError(
            f"{raw} has no top_potsdam_{lost[0]}_label.tif, nor {len(lost) - 1} others of the 24; "
            "get 5_Labels_for_participants.zip from "
            "https://www.isprs.org/education/benchmarks/UrbanSemLab"
        )
    if missing := [tile for tile in (*LABELED, *UNLABELED) if tile not in images]:
        log(
            f"{len(missing)} of the 38 tiles are not in {raw}: {', '.join(missing)}; the lists "
            "will be shorter than those of the protocol"
        )
    if plain := [tile for tile in tiles if not images[tile].stem.endswith("IR")]:
        log(f"{len(plain)} tiles are without infrared (first {plain[0]}); it is not used here")
    ours = {name for tile in (*LABELED, *UNLABELED) for name in names_of(tile)}
    for name in LISTS.values():
        if (out / name).is_file() and set(read_list(out / name, "restore it")) - ours:
            raise DataError(f"{out / name} has other ids than ours: write to another folder")
    progress("tiles", 0, len(tiles), {})
    for done, tile in enumerate(tiles, 1):
        label = labels[tile] if tile in LABELED else None
        _cut_tile(tile, images[tile], label, out, log)
        progress("tiles", done, len(tiles), {})
    return _write_lists(tiles, out)


def names_of(tile: str) -> list[str]:
    """Names of the patches of a tile, row by row.

    Examples:
        >>> names = names_of("2_10")
        >>> len(names), names[0], names[-1]
        (225, '2_10_00_00', '2_10_14_14')
    """
    side = TILE // 2 // PATCH
    return [f"{tile}_{row:02}_{column:02}" for row in range(side) for column in range(side)]


def drawn_for_test() -> set[str]:
    """The 855 patches of the test list, whatever tiles are there."""
    names = sorted(name for tile in LABELED for name in names_of(tile))
    drawn = np.random.default_rng(0).permutation(len(names))
    return {names[i] for i in drawn[: round(TEST_PATCHES / 5400 * len(names))]}


def halve_image(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Mean of blocks of 2x2 pixels, one half rounded up.

    Examples:
        >>> halve_image(np.array([[[1], [2]], [[2], [1]]], np.uint8)).tolist()
        [[[2]]]
    """
    total = np.full((image.shape[0] // 2, image.shape[1] // 2, image.shape[2]), 2, np.uint16)
    for row in (0, 1):
        for column in (0, 1):
            total += image[row::2, column::2]
    return (total >> 2).astype(np.uint8)


def label_of_colors(colors: UInt8[np.ndarray, "h w 3"]) -> Integer[np.ndarray, "h w"]:
    """Classes 0..5 of the legend's colors; 255 for the two corners that are none.

    Each channel is rounded to 0 or 255, because two of the published label tiles are not exact:
    4_12 is blended, and 6_7 has 252 in place of 255.

    Examples:
        >>> label_of_colors(np.array([[(252, 255, 0), (9, 222, 221), (0, 0, 0)]], np.uint8))
        array([[  4,   2, 255]], dtype=int32)
    """
    table = np.full(8, 255, np.int32)
    for k, color in enumerate(COLORS):
        table[int(_corner(np.array(color)))] = k
    return table[_corner(colors)]


def _corner(colors: np.ndarray) -> np.ndarray | np.uint8:
    high = (colors >= 128).astype(np.uint8)
    return high[..., 0] * 4 + high[..., 1] * 2 + high[..., 2]


def _find(raw: Path, kinds: tuple[str, ...]) -> dict[str, Path]:
    """Tile (``2_10``) to file; the first kind that is there counts."""
    found: dict[str, Path] = {}
    for kind in kinds:
        for path in sorted(raw.rglob(f"top_potsdam_*_{kind}.tif")):
            tile = path.stem.removeprefix("top_potsdam_").removesuffix(f"_{kind}")
            found.setdefault(tile, path)
    return found


def _cut_tile(
    tile: str, image: Path, label: Path | None, out: Path, log: Callable[[str], None]
) -> None:
    names = names_of(tile)
    folders = ("imgs",) if label is None else ("imgs", "gt")
    if all((out / folder / f"{name}.mat").is_file() for folder in folders for name in names):
        return
    _write_patches(out / "imgs", "img", names, halve_image(_read_image(image)))
    if label is not None:
        classes = label_of_colors(_read_label(label)[::2, ::2])
        if strange := int((classes == 255).sum()):
            log(
                f"{label} has {strange:,} pixels of no color of the legend (of {classes.size:,} "
                "after halving); they became 255, which is ignored"
            )
        _write_patches(out / "gt", "gt", names, classes)


def _read_image(path: Path) -> UInt8[np.ndarray, "h w c"]:
    """Red, green, blue and, if it is there, infrared. Pillow would drop a fourth channel."""
    try:
        import tifffile
    except ImportError:
        raise MissingPackageError(
            "tiles are read by tifffile: pip install 'primaps[potsdam]'", name="tifffile"
        ) from None
    try:
        need_file(path, sys.maxsize)
        with tifffile.TiffFile(path) as file:
            shape = file.pages[0].shape  # before memory is taken for it
            image = np.empty(0) if math.prod(shape) > 4 * TILE * TILE else file.asarray()
    except Exception as error:  # tifffile and its packers raise whatever a broken byte leads to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"{path} cannot be read ({reason})") from None
    if image.shape not in ((TILE, TILE, 3), (TILE, TILE, 4)) or image.dtype != np.uint8:
        raise ImageError(
            f"{path} has the shape {shape} and type {image.dtype}; a tile has "
            f"{TILE}x{TILE} pixels and 3 or 4 channels of 8 bits"
        )
    return image


def _read_label(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    image = load_image(path)
    if image.size != (TILE, TILE):
        raise ImageError(
            f"{path} has {image.width}x{image.height} pixels; a tile has {TILE}x{TILE}"
        )
    return np.asarray(image)


def _write_patches(folder: Path, key: str, names: list[str], array: np.ndarray) -> None:
    from scipy.io import savemat

    side = array.shape[1] // PATCH
    for i, name in enumerate(names):
        top, left = i // side * PATCH, i % side * PATCH
        patch = array[top : top + PATCH, left : left + PATCH]
        with atomic_path(folder / f"{name}.mat") as temporary:
            savemat(temporary, {key: patch})


def _write_lists(tiles: list[str], out: Path) -> dict[str, int]:
    test = drawn_for_test()
    labeled = [name for tile in tiles if tile in LABELED for name in names_of(tile)]
    lists = {
        "train": [name for name in labeled if name not in test],
        "val": [name for name in labeled if name in test],
        "unlabeled": [name for tile in tiles if tile in UNLABELED for name in names_of(tile)],
    }
    for split, names in lists.items():
        with atomic_path(out / LISTS[split]) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in names), "utf-8")
    return {LISTS[split]: len(names) for split, names in lists.items()}
