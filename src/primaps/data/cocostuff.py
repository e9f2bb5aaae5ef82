"""COCO-Stuff with 27 classes, joined from 182, on the curated lists; and its preparation.

Layout: ``images/{train2017,val2017}/ID.jpg``, ``annotations/{train2017,val2017}/ID.png`` (the
stuffthingmaps: 0 to 181, 255 is void) and ``curated/{train2017,val2017}/`` with the lists of ids.
:func:`prepare_cocostuff` makes this layout from the downloads of COCO. Files are hard-linked, which
takes no space and survives the removal of the download. On another file system, and from archives,
they are copied.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from primaps.data.dataset import DataError, Finding, Layout, Sample, need_folder, read_list
from primaps.data.images import ImageError, image_size, load_label
from primaps.data.stream import LogCallback
from primaps.utils.files import atomic_path
from primaps.utils.inputs import need_file
from primaps.utils.progress import ProgressCallback, silent

SOURCE = (
    "train2017.zip and val2017.zip from https://cocodataset.org/#download, "
    "stuffthingmaps_trainval2017.zip from https://github.com/nightrome/cocostuff and the folder "
    "curated of https://github.com/janghyuncho/PiCIE; `primaps data prepare cocostuff` lays them "
    "out"
)
LIST = "Coco164kFull_Stuff_Coarse_7.txt"
FOLDERS = {"train": "train2017", "val": "val2017"}
FINE: dict[str, range | tuple[int, ...]] = {  # values of the stuffthingmaps in each class
    "electronic": range(71, 77),
    "appliance": range(77, 83),
    "food-things": range(51, 61),
    "furniture-things": range(61, 71),
    "indoor": range(83, 91),
    "kitchen": range(43, 51),
    "accessory": range(25, 33),
    "animal": range(15, 25),
    "outdoor": range(9, 15),
    "person": (0,),
    "sports": range(33, 43),
    "vehicle": range(1, 9),
    "ceiling": (101, 102),
    "floor": (100, 113, 114, 115, 116, 117),
    "food-stuff": (120, 121, 152, 169),
    "furniture-stuff": (97, 106, 107, 109, 111, 122, 129, 132, 155, 160, 164),
    "rawmaterial": (99, 131, 138, 142),
    "textile": (91, 92, 103, 104, 108, 130, 136, 140, 151, 166, 167),
    "wall": range(170, 177),
    "window": (179, 180),
    "building": (94, 95, 127, 150, 157, 165),
    "ground": (110, 124, 125, 135, 139, 143, 144, 146, 148, 153, 158),
    "plant": (93, 96, 118, 123, 128, 133, 141, 162, 168),
    "sky": (105, 156),
    "solid": (126, 134, 149, 159, 161, 181),
    "structural": (98, 112, 137, 145, 163),
    "water": (119, 147, 154, 177, 178),
}
MIN_STUFF, MIN_SIDE = 0.75, 360
"""Thresholds of the curated lists, which IIC introduced; see :func:`is_curated`."""


def is_curated(label: Integer[np.ndarray, "h w"]) -> bool:
    """Return whether an image belongs on the curated list.

    At least 75 % of its pixels are stuff (values 91 to 181), and both sides have at least 360
    pixels.

    Examples:
        >>> is_curated(np.full((360, 480), 157)), is_curated(np.full((359, 480), 157))
        (True, False)
    """
    stuff = ((label >= 91) & (label <= 181)).mean()
    return bool(min(label.shape) >= MIN_SIDE and stuff >= MIN_STUFF)


def list_path(root: Path, split: str) -> Path:
    """Return the path of the curated list of ``train`` or ``val``."""
    return root / "curated" / FOLDERS[split] / LIST


def _list_samples(root: Path, split: str) -> list[Sample]:
    images = need_folder(root, f"images/{FOLDERS[split]}", SOURCE)
    labels = need_folder(root, f"annotations/{FOLDERS[split]}", SOURCE)
    how = (
        "get it from https://github.com/janghyuncho/PiCIE (folder curated), or make it by its rule "
        "(75 % of the pixels stuff, both sides at least 360 px) with `primaps data prepare "
        "cocostuff RAW OUT --make-lists`"
    )
    names = read_list(list_path(root, split), how)
    return [Sample(images / f"{n}.jpg", n, labels / f"{n}.png") for n in names]


def _check_names(root: Path, split: str) -> Iterator[Finding]:
    names = read_list(list_path(root, split), "")
    if len(set(names)) < len(names):
        twice = f"{list_path(root, split)} names {len(names) - len(set(names))} ids twice"
        yield Finding("error", twice)


def _label_hint(label: Path) -> str:
    for end in ("_labelTrainIds.png", "_pixelmap.png"):
        if label.with_name(label.stem + end).is_file():
            return f"files *{end} exist, but the protocol needs ID.png of the stuffthingmaps"
    return ""


LAYOUT = Layout(
    name="cocostuff",
    classes=tuple(FINE),
    values={**{v: k for k, fine in enumerate(FINE.values()) for v in fine}, 255: 255},
    splits={"train": 49_629, "val": 2_175},
    list_samples=_list_samples,
    source=SOURCE,
    check_names=_check_names,
    label_hint=_label_hint,
    value_hints=dict.fromkeys(
        (182, 183), "values above 181 are from stuff pixelmaps, the protocol needs stuffthingmaps"
    ),
)


logger = logging.getLogger("primaps")
BLOCK = 256
LARGEST_MEMBER = 64 << 20
"""Maximum size of a file in an archive in bytes; files of COCO have less than 1 MB."""


def prepare_cocostuff(
    raw: str | Path,
    out: str | Path,
    make_lists: bool = False,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> dict[str, int]:
    """Make ``images``, ``annotations`` and ``curated`` from the downloads of COCO.

    Existing files are not changed: a run that was interrupted continues.

    Args:
        raw: folder with ``train2017`` and ``val2017`` (images and stuffthingmaps, in any
            sub-folders) or the downloaded archives. Curated lists in it are used, too.
        out: output folder.
        make_lists: make missing curated lists by their rule (:func:`is_curated`).
        log: called with a sentence about each missing or damaged file.

    Returns:
        The number of images, label maps and listed ids of each split.

    Raises:
        DataError: ``raw`` has no file of COCO.
    """
    raw, out = Path(raw).expanduser(), Path(out).expanduser()
    if not raw.is_dir():
        raise DataError(f"{raw} is not a folder; give the folder that holds train2017 and val2017")
    done: dict[str, int] = {}
    for folder in FOLDERS.values():
        for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
            target = out / kind / folder
            files = _files(raw, out, folder, suffix)
            archives = [] if files else _archives(raw, folder, suffix)
            for path in files:
                _link(path, target / path.name)
            for archive in archives:
                _unpack(archive, folder, suffix, target, progress, log)
            done[f"{kind}/{folder}"] = len(list(target.glob(f"*{suffix}")))
            if files:
                progress(f"{kind}/{folder}", len(files), len(files), {})
            if not done[f"{kind}/{folder}"]:
                log(f"{raw} has no {folder}/*{suffix}, unpacked or in an archive; get {SOURCE}")
    if not any(done.values()):
        raise DataError(f"{raw} has no file of COCO-Stuff; get {SOURCE}")
    for split, folder in FOLDERS.items():
        done[f"curated/{folder}"] = _provide_list(raw, out, split, make_lists, progress, log)
    return done


def make_list(
    out: Path,
    split: str,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> int:
    """Make the curated list of a split from all label maps by its rule; return its length.

    Label maps that cannot be read are reported and skipped. The rule agrees with the published
    lists on the 21 label maps of the tests.
    """
    labels = sorted((out / "annotations" / FOLDERS[split]).glob("*.png"))
    names: list[str] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(labels), BLOCK):
            block = labels[start : start + BLOCK]
            for path, found in zip(block, pool.map(_fits_rule, block), strict=True):
                if isinstance(found, str):
                    log(found)
                elif found:
                    names.append(path.stem)
            progress(f"list {split}", start + len(block), len(labels), {"ids": len(names)})
    with atomic_path(list_path(out, split)) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), "utf-8")
    return len(names)


def _fits_rule(path: Path) -> bool | str:
    """Return whether an image is on the list, or a sentence if its label map cannot be read."""
    try:
        if min(image_size(path)) < MIN_SIDE:  # by the header
            return False
        return is_curated(load_label(path))
    except ImageError as error:
        return str(error)


def _provide_list(
    raw: Path, out: Path, split: str, make_lists: bool, progress: ProgressCallback, log: LogCallback
) -> int:
    path, folder, expected = list_path(out, split), FOLDERS[split], LAYOUT.splits[split]
    given = next(iter(sorted(raw.glob(f"**/{folder}/{LIST}"))), None)
    if not path.is_file():
        if given is not None:
            _link(given, path)
        elif make_lists:
            number = make_list(out, split, progress, log)
            if number != expected:
                log(
                    f"{path} was made by the rule and has {number:,} ids; the published list has "
                    f"{expected:,}"
                )
        else:
            log(
                f"{path} does not exist; get it from https://github.com/janghyuncho/PiCIE (folder "
                "curated), or add --make-lists to list the images with at least 75 % stuff and "
                "sides of at least 360 pixels"
            )
            return 0
    # A list that was made by the rule may be empty.
    return len(read_list(path, "remove it, and add --make-lists")) if path.stat().st_size else 0


def _folders(raw: Path, out: Path, folder: str) -> Iterator[Path]:
    """Yield the folders of a name up to three levels below ``raw``, except in the output."""
    for depth in ("", "*/", "*/*/"):
        for path in sorted(raw.glob(f"{depth}{folder}")):
            if path.is_dir() and (raw == out or out.resolve() not in path.resolve().parents):
                yield path


def _files(raw: Path, out: Path, folder: str, suffix: str) -> list[Path]:
    """Return the files of a suffix in the first folder that has any."""
    for path in _folders(raw, out, folder):
        if files := sorted(path.glob(f"*{suffix}")):
            return files
    return []


def _archives(raw: Path, folder: str, suffix: str) -> list[Path]:
    kind = "stuffthingmaps*.zip" if suffix == ".png" else f"{folder}.zip"
    return sorted(raw.rglob(kind))[:1]


def _link(source: Path, target: Path) -> None:
    if target.exists():
        if target.stat().st_size == source.stat().st_size:
            return
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another file system, or one without hard links
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


def _unpack(
    archive: Path,
    folder: str,
    suffix: str,
    target: Path,
    progress: ProgressCallback,
    log: LogCallback,
) -> None:
    """Unpack the files of a split; damaged files are reported and skipped."""
    try:
        need_file(archive, sys.maxsize)
        packed = zipfile.ZipFile(archive)
    except Exception as error:  # zipfile raises errors of many types for damaged archives
        log(f"{archive} is damaged or incomplete ({error}); download it again")
        return
    with packed:
        members = [
            info
            for info in packed.infolist()
            if Path(info.filename).parent.name == folder and info.filename.endswith(suffix)
        ]
        for done, info in enumerate(members, 1):
            path = target / Path(info.filename).name
            if not (path.is_file() and path.stat().st_size == info.file_size):
                try:
                    content = _member(packed, info)
                except Exception as error:  # also of zlib
                    log(
                        f"{archive}/{info.filename} cannot be unpacked ({error}); download it again"
                    )
                else:
                    with atomic_path(path) as temporary:
                        temporary.write_bytes(content)
            progress(f"unpacking {archive.name}: {folder}", done, len(members), {})


def _member(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > LARGEST_MEMBER:
        raise ValueError(
            f"size of {info.file_size:,} bytes, at most {LARGEST_MEMBER:,} are allowed"
        )
    with packed.open(info) as file:  # reads at most the declared size
        return file.read()
