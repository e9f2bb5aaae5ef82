"""COCO-Stuff from the downloads of COCO: ``primaps data prepare cocostuff``.

Files are hard-linked, which takes no space and survives the removal of the download; on another
file system, where that is impossible, and out of archives they are copied.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from primaps.data.cocostuff import (
    FOLDERS,
    LAYOUT,
    LEAST_SIDE,
    LIST,
    SOURCE,
    is_curated,
    list_path,
)
from primaps.data.dataset import DataError
from primaps.data.dataset_paths import read_list
from primaps.data.reading import ImageError, image_size, load_label
from primaps.utils.files import atomic_path
from primaps.utils.inputs import need_file
from primaps.utils.progress import ProgressCallback, silent

logger = logging.getLogger("primaps")
BLOCK = 256
LARGEST_MEMBER = 64 << 20
"""Bytes of an image or label map in an archive; those of COCO have less than 1 MB."""
LogCallback = Callable[[str], None]


def prepare_cocostuff(
    raw: str | Path,
    out: str | Path,
    make_lists: bool = False,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> dict[str, int]:
    """Lay out COCO downloads as ``images``, ``annotations`` and ``curated``.

    What is there already is kept, so that a run that was stopped goes on.

    Args:
        raw: folder with ``train2017`` and ``val2017`` (images and stuffthingmaps, in any
            sub-folders) or the archives as they are downloaded; curated lists in it are taken too.
        out: folder to write to.
        make_lists: where a curated list is missing, make one by its rule
            (:func:`primaps.data.cocostuff.is_curated`).
        log: called with a sentence about what is missing.

    Returns:
        The number of images, label maps and ids on the list of each split.

    Raises:
        DataError: there is nothing of COCO in ``raw``.
    """
    raw, out = Path(raw).expanduser(), Path(out).expanduser()
    if not raw.is_dir():
        raise DataError(f"{raw} is no folder; give the one that holds train2017 and val2017")
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
        raise DataError(f"nothing of COCO-Stuff is in {raw}; get {SOURCE}")
    for split, folder in FOLDERS.items():
        done[f"curated/{folder}"] = _provide_list(raw, out, split, make_lists, progress, log)
    return done


def make_list(
    out: Path,
    split: str,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> int:
    """Make the curated list of a split by its rule from all label maps, and count its ids.

    Label maps that cannot be read are reported and left out.

    On the 21 maps that the tests have, the rule gives what the published lists have.
    """
    labels = sorted((out / "annotations" / FOLDERS[split]).glob("*.png"))
    names: list[str] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(labels), BLOCK):
            block = labels[start : start + BLOCK]
            found = zip(block, pool.map(_belongs, block), strict=True)
            for path, belongs in found:
                if isinstance(belongs, str):
                    log(belongs)
                elif belongs:
                    names.append(path.stem)
            progress(f"list {split}", start + len(block), len(labels), {"ids": len(names)})
    with atomic_path(list_path(out, split)) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), "utf-8")
    return len(names)


def _belongs(path: Path) -> bool | str:
    """Whether an image is on the list; a sentence if its label map cannot be read."""
    try:
        if min(image_size(path)) < LEAST_SIDE:  # the header alone settles small images
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
                f"{path} is missing; take it from https://github.com/janghyuncho/PiCIE (folder "
                "curated), or add --make-lists: it names the images of which at least 75 % of the "
                "pixels are stuff and both sides have at least 360 pixels"
            )
            return 0
    # One that was made may be empty, where no image fits the rule.
    return len(read_list(path, "remove it, and add --make-lists")) if path.stat().st_size else 0


def _folders(raw: Path, out: Path, folder: str) -> Iterator[Path]:
    """Folders of this name up to three levels below ``raw``, not those that we write."""
    for depth in ("", "*/", "*/*/"):
        for path in sorted(raw.glob(f"{depth}{folder}")):
            if path.is_dir() and (raw == out or out.resolve() not in path.resolve().parents):
                yield path


def _files(raw: Path, out: Path, folder: str, suffix: str) -> list[Path]:
    """Images or label maps in the first folder that has any; both may lie in one."""
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
    """Unpack what an archive has of a split; what is damaged is reported, the rest goes on."""
    try:
        need_file(archive, sys.maxsize)
        packed = zipfile.ZipFile(archive)
    except Exception as error:  # zipfile raises whatever a broken byte leads to
        log(f"{archive} is damaged or not complete ({error}); get it again")
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
                except Exception as error:  # zipfile and zlib raise whatever a broken byte leads to
                    log(f"{archive}/{info.filename} cannot be unpacked ({error}); get it again")
                else:
                    with atomic_path(path) as temporary:
                        temporary.write_bytes(content)
            progress(f"unpacking {archive.name}: {folder}", done, len(members), {})


def _member(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > LARGEST_MEMBER:
        raise ValueError(f"it claims to have {info.file_size:,} bytes")
    with packed.open(info) as file:  # stops at the size that is stated, whatever follows
        return file.read()
