"""Potsdam-3: 8,550 aerial patches of 200x200 pixels, six classes joined to three.

Layout: ``imgs/ID.mat`` (key ``img``, 200x200x4, infrared last), ``gt/ID.mat`` (key ``gt``, 0 to 5)
and the lists ``labelled_train.txt`` (split ``train``), ``labelled_test.txt`` (``val``) and
``unlabelled_train.txt`` (``unlabeled``). Images are red, green and blue: backbones take three
channels, and infrared is not used.

:func:`prepare_potsdam` makes this layout from the original tiles of the ISPRS, as in the
preparation of IIC (Ji et al., ICCV 2019), on which published numbers rest: 38 tiles of 6000x6000
pixels (5 cm) are halved, images by the mean of 2x2 pixels and labels by their upper left pixel, and
cut into 15 x 15 patches of 200x200. The 14 tiles that had no label then give the 3,150 patches of
``unlabelled_train.txt``. From the 5,400 patches of the other 24 tiles, 855 were sampled for
``labelled_test.txt``; the other 4,545 are ``labelled_train.txt``. IIC named and sampled patches
without a seed: the split of published numbers can only be copied from the published files.

Our choices: a patch is named by tile, row and column (``2_10_00_14``); the 855 patches are sampled
from the sorted names with seed 0; tiles whose labels were released later stay unlabeled, which
gives the counts of the protocol. As in the original, train and test patches may be neighbors in one
tile.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from primaps.data.dataset import DataError, Finding, Layout, Sample, need_folder, read_list
from primaps.data.images import ImageError, load_image
from primaps.utils.errors import MissingPackageError, reason
from primaps.utils.files import atomic_path
from primaps.utils.inputs import need_file
from primaps.utils.progress import ProgressCallback, silent

SOURCE = (
    "4_Ortho_RGBIR.zip and 5_Labels_for_participants.zip (or 5_Labels_all.zip) from "
    "https://www.isprs.org/education/benchmarks/UrbanSemLab; `primaps data prepare potsdam` cuts "
    "them"
)
LISTS = {
    "train": "labelled_train.txt",
    "val": "labelled_test.txt",
    "unlabeled": "unlabelled_train.txt",
}
FINE = ("impervious surface", "building", "low vegetation", "tree", "car", "clutter")
"""Names of the values 0 to 5 of the label maps."""


def _list_samples(root: Path, split: str) -> list[Sample]:
    images = need_folder(root, "imgs", SOURCE)
    labels = need_folder(root, "gt", SOURCE)
    names = read_list(root / LISTS[split], f"get {SOURCE}")
    return [
        Sample(images / f"{n}.mat", n, None if split == "unlabeled" else labels / f"{n}.mat")
        for n in names
    ]


def _check_names(root: Path, split: str) -> Iterator[Finding]:
    """Look for patches on two lists."""
    names = set(read_list(root / LISTS[split], ""))
    for other, name in LISTS.items():
        if other < split and (root / name).is_file():
            both = names & set(read_list(root / name, f"get {SOURCE}"))
            if both:
                text = f"{len(both)} ids are in {name} and in {LISTS[split]}; first: {min(both)}"
                yield Finding("error", text)


def _label_hint(label: Path) -> str:
    image = label.with_suffix(".tif")
    return "a TIFF exists: cut the tiles by `primaps data prepare potsdam`" * image.is_file()


LAYOUT = Layout(
    name="potsdam",
    classes=("road and car", "building and clutter", "vegetation and tree"),
    values={0: 0, 4: 0, 1: 1, 5: 1, 2: 2, 3: 2, 255: 255},
    splits={"train": 4_545, "val": 855, "unlabeled": 3_150},
    list_samples=_list_samples,
    source=SOURCE,
    colors=((255, 255, 255), (0, 0, 255), (0, 255, 0)),
    size=(200, 200),
    check_names=_check_names,
    label_hint=_label_hint,
)


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
# Colors in the order of FINE.
COLORS = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))


def prepare_potsdam(
    raw: str | Path,
    out: str | Path,
    progress: ProgressCallback = silent,
    log: Callable[[str], None] = logger.warning,
) -> dict[str, int]:
    """Cut ISPRS tiles into the patches and lists of Potsdam-3.

    Tiles whose patches all exist are not cut again. One tile is in memory (about 0.5 GB).

    Args:
        raw: folder with ``top_potsdam_2_10_RGBIR.tif`` (or ``_RGB.tif``) and
            ``top_potsdam_2_10_label.tif``, at any depth.
        out: output folder.
        log: called with a sentence about missing tiles and unknown colors.

    Returns:
        The number of patches on each list.

    Raises:
        DataError: no tile was found, a labeled tile has no label, or ``out`` has other lists.
        ImageError: a tile cannot be read or does not have 6000x6000 pixels.
    """
    raw, out = Path(raw).expanduser(), Path(out).expanduser()
    images, labels = _find(raw, ("RGBIR", "RGB")), _find(raw, ("label",))
    tiles = [tile for tile in (*LABELED, *UNLABELED) if tile in images]
    if not tiles:
        raise DataError(
            f"{raw} has no top_potsdam_*_RGBIR.tif or _RGB.tif (unpacked, at any depth); get "
            f"{SOURCE}"
        )
    unlabeled = [tile for tile in tiles if tile in LABELED and tile not in labels]
    if unlabeled:
        raise DataError(
            f"{raw} lacks the labels of {len(unlabeled)} of the 24 labeled tiles, first "
            f"top_potsdam_{unlabeled[0]}_label.tif; "
            "get 5_Labels_for_participants.zip from "
            "https://www.isprs.org/education/benchmarks/UrbanSemLab"
        )
    if missing := [tile for tile in (*LABELED, *UNLABELED) if tile not in images]:
        log(
            f"{len(missing)} of the 38 tiles are not in {raw}: {', '.join(missing)}; the lists are "
            "shorter than the lists of the protocol"
        )
    if plain := [tile for tile in tiles if not images[tile].stem.endswith("IR")]:
        log(f"{len(plain)} tiles have no infrared channel (first {plain[0]}), which is not used")
    known = {name for tile in (*LABELED, *UNLABELED) for name in patch_names(tile)}
    for name in LISTS.values():
        if (out / name).is_file() and set(read_list(out / name, "restore it")) - known:
            raise DataError(f"{out / name} has unknown ids; choose another output folder")
    progress("tiles", 0, len(tiles), {})
    for done, tile in enumerate(tiles, 1):
        label = labels[tile] if tile in LABELED else None
        _cut_tile(tile, images[tile], label, out, log)
        progress("tiles", done, len(tiles), {})
    return _write_lists(tiles, out)


def patch_names(tile: str) -> list[str]:
    """Return the names of the patches of a tile, row by row.

    Examples:
        >>> names = patch_names("2_10")
        >>> len(names), names[0], names[-1]
        (225, '2_10_00_00', '2_10_14_14')
    """
    side = TILE // 2 // PATCH
    return [f"{tile}_{row:02}_{column:02}" for row in range(side) for column in range(side)]


def sampled_test_patches() -> set[str]:
    """Return the 855 patches of the test list, independent of the tiles on disk."""
    names = sorted(name for tile in LABELED for name in patch_names(tile))
    order = np.random.default_rng(0).permutation(len(names))
    return {names[i] for i in order[: round(TEST_PATCHES / 5400 * len(names))]}


def halve_image(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Average blocks of 2x2 pixels; 0.5 is rounded up.

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
    """Convert the colors of the legend to classes 0 to 5, and other colors to 255.

    Each channel is rounded to 0 or 255, because two published label tiles are not exact: 4_12 is
    blended, and 6_7 has 252 instead of 255.

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
    """Map tiles (``2_10``) to files of the first kind that exists."""
    found: dict[str, Path] = {}
    for kind in kinds:
        for path in sorted(raw.rglob(f"top_potsdam_*_{kind}.tif")):
            tile = path.stem.removeprefix("top_potsdam_").removesuffix(f"_{kind}")
            found.setdefault(tile, path)
    return found


def _cut_tile(
    tile: str, image: Path, label: Path | None, out: Path, log: Callable[[str], None]
) -> None:
    names = patch_names(tile)
    folders = ("imgs",) if label is None else ("imgs", "gt")
    if all((out / folder / f"{name}.mat").is_file() for folder in folders for name in names):
        return
    _write_patches(out / "imgs", "img", names, halve_image(_read_image(image)))
    if label is not None:
        classes = label_of_colors(_read_label(label)[::2, ::2])
        if unknown := int((classes == 255).sum()):
            log(
                f"{label}: the legend lacks the colors of {unknown:,} of {classes.size:,} pixels "
                "(after halving), which are ignored"
            )
        _write_patches(out / "gt", "gt", names, classes)


def _read_image(path: Path) -> UInt8[np.ndarray, "h w c"]:
    """Read red, green, blue and infrared, if it exists. Pillow would drop a fourth channel."""
    try:
        import tifffile
    except ImportError:
        raise MissingPackageError(
            "tiles need tifffile: pip install 'primaps[potsdam]'", name="tifffile"
        ) from None
    try:
        need_file(path, sys.maxsize)
        with tifffile.TiffFile(path) as file:
            shape = file.pages[0].shape  # before memory is allocated
            image = np.empty(0) if math.prod(shape) > 4 * TILE * TILE else file.asarray()
    except Exception as error:  # tifffile raises errors of many types for damaged files
        raise ImageError(f"{path} cannot be read ({reason(error)})") from None
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
    test = sampled_test_patches()
    labeled = [name for tile in tiles if tile in LABELED for name in patch_names(tile)]
    lists = {
        "train": [name for name in labeled if name not in test],
        "val": [name for name in labeled if name in test],
        "unlabeled": [name for tile in tiles if tile in UNLABELED for name in patch_names(tile)],
    }
    for split, names in lists.items():
        with atomic_path(out / LISTS[split]) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in names), "utf-8")
    return {LISTS[split]: len(names) for split, names in lists.items()}
