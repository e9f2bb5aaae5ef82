"""Labeled data sets by name, and folders of images and label maps.

A folder has ``images``, ``labels`` and ``classes.json``. Label maps have the relative paths of
their images. Splits are sub-folders of both: ``images/train`` and ``labels/train``. A folder
without them has one split, ``all``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from primaps.data import cityscapes, cocostuff, potsdam
from primaps.data.collection import IMAGE_SUFFIXES, find_images, find_label, read_protocol
from primaps.data.dataset import DataError, Dataset, Finding, Layout, Sample, need_folder
from primaps.data.images import Stored
from primaps.utils.errors import InputError
from primaps.utils.validation import validated

logger = logging.getLogger("primaps")
SPLITS = (
    "train", "training", "val", "valid", "validation", "dev", "eval", "evaluation", "test",
    "testing", "holdout", "unlabeled",
)  # fmt: skip
"""Names of sub-folders that are splits, also with a number: ``train2017``, ``test-1``."""
DATASETS = ("cityscapes", "cocostuff", "potsdam", "folder")


def find_layout(name: str, root: str | Path) -> Layout:
    """Return the classes, splits and files of a data set.

    Args:
        name: ``cityscapes``, ``cocostuff``, ``potsdam`` or ``folder``.
        root: root folder; read for ``folder`` only.

    Raises:
        InputError: the name is unknown.
        DataError: ``root`` is not a folder with images and labels.
    """
    if name == "folder":
        return folder_layout(Path(root).expanduser())
    known = (cityscapes.LAYOUT, cocostuff.LAYOUT, potsdam.LAYOUT)
    if found := next((layout for layout in known if layout.name == name), None):
        return found
    raise InputError(f"data set {name!r} is unknown; choose one of {', '.join(DATASETS)}")


@validated
def load_dataset(name: str, root: str | Path, split: str = "val") -> Dataset:
    """Load a split of a labeled data set.

    Label maps are read later, one at a time, by :meth:`primaps.data.Dataset.label`.

    Args:
        name: ``cityscapes``, ``cocostuff``, ``potsdam`` or ``folder``.
        root: folder with ``leftImg8bit`` and ``gtFine`` (Cityscapes); ``images``, ``annotations``
            and ``curated`` (COCO-Stuff); ``imgs``, ``gt`` and the lists (Potsdam-3); or ``images``,
            ``labels`` and ``classes.json`` (folder).
        split: ``train`` or ``val``; also ``unlabeled`` for Potsdam-3. The splits of a folder are
            its sub-folders such as ``train``, ``valid``, ``test`` or ``train2017``, or any other
            sub-folder that is named here; ``all`` has all images. In a folder without such
            sub-folders ``train`` and ``val`` have all images, too.

    Raises:
        InputError: the data set or split is unknown.
        DataError: the data set has another layout, or none of its images is on disk.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for city in ("leftImg8bit/val/ulm/1_leftImg8bit", "gtFine/val/ulm/1_gtFine_labelIds"):
        ...     (root / city).parent.mkdir(parents=True)
        ...     Image.new("L", (2, 1), 26).save(root / f"{city}.png")
        >>> data = load_dataset("cityscapes", root, "val")
        >>> data.samples[0].key, data.label(data.samples[0]).tolist(), data.classes[19]
        ('ulm/1', [[19, 19]], 'car')
    """
    root = Path(root).expanduser()
    layout = find_layout(name, root)
    splits = list(layout.splits)
    if name == "folder":
        split = "all" if splits == ["all"] and split in ("train", "val") else split
        splits = list(dict.fromkeys([*splits, *_subfolders(root), "all"]))
    if split not in splits:
        raise InputError(f"{root} has no split {split!r}; choose one of {', '.join(splits)}")
    samples = layout.list_samples(root, split)
    # Listing each folder is much faster than checking each of 50,000 files.
    folders = {sample.source.parent for sample in samples if isinstance(sample.source, Path)}
    on_disk = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    present = tuple(sample for sample in samples if sample.source in on_disk)
    absent = tuple(sample.key for sample in samples if sample.source not in on_disk)
    if not present:
        raise DataError(
            f"none of the {len(samples):,} images of {name} {split} is in {root}; run `primaps "
            f"data check {name} {root}`"
        )
    return Dataset(layout, root, split, present, absent)


SOURCE = (
    "a folder with images/, labels/ (8-bit maps of class indices under the names of the images) "
    "and classes.json"
)
UNNAMED_CLASSES = 256
"""Number of classes of label maps without ``classes.json``: the values of 8 bits."""


@validated
def pair_up(
    images: str | Path | Sequence[str | Path],
    labels: str | Path,
    ignore_index: int | None = None,
) -> Dataset:
    """Pair images with the label maps of a folder.

    Args:
        images: files, folders (searched recursively) or globs.
        labels: folder of label maps with the relative paths of the images. A ``classes.json`` in it
            or up to two folders above defines names and ignore index. Without it the classes are
            the values 0 to 255 that occur.
        ignore_index: label that is not evaluated; None is the value of ``classes.json``, or 255.

    Raises:
        NotFoundError: no image was found, or the folder of labels does not exist.
        InputError: ``classes.json`` is not valid.
    """
    names, ignore = read_protocol(labels, ignore_index)
    samples = _samples(images, Path(labels))
    return Dataset(_layout(names, ignore, {"all": None}), Path(labels), "all", tuple(samples))


@validated
def as_dataset(
    images: str | Path | Sequence[str | Path] | Dataset,
    labels: str | Path | None,
    ignore_index: int | None = None,
) -> Dataset:
    """Return a data set unchanged, or make one from images and labels by :func:`pair_up`.

    Raises:
        InputError: labels are missing, or are given together with a data set.
    """
    if isinstance(images, Dataset):
        if labels is not None or ignore_index is not None:
            raise InputError(
                "a data set already has labels and an ignore index; omit labels and ignore_index"
            )
        return images
    if labels is None:
        raise InputError("give the folder of label maps, or the name of a data set")
    return pair_up(images, labels, ignore_index)


def folder_layout(root: Path) -> Layout:
    """Return the layout of a folder with images and labels.

    Raises:
        DataError: ``images`` or ``labels`` does not exist.
        InputError: ``classes.json`` is not valid.
    """
    need_folder(root, "images", SOURCE)
    names, ignore = read_protocol(need_folder(root, "labels", SOURCE))
    order = {name: number for number, name in enumerate(SPLITS)}
    splits = [name for name in _subfolders(root) if _split_name(name) in order]
    splits.sort(key=lambda name: order[_split_name(name)])
    return _layout(names, ignore, dict.fromkeys(splits or ["all"]))


def _subfolders(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "images").iterdir() if path.is_dir())


def _split_name(name: str) -> str:
    """Return the name of a folder without its number.

    Examples:
        >>> _split_name("Train2017"), _split_name("test-1")
        ('train', 'test')
    """
    return re.sub(r"[-_]?\d+$", "", name).lower()


def _layout(names: list[str] | None, ignore: int, splits: dict[str, None]) -> Layout:
    classes = names or [f"class {i}" for i in range(UNNAMED_CLASSES)]
    return Layout(
        name="folder",
        classes=tuple(classes),
        values={**{i: i for i in range(len(classes))}, ignore: ignore},
        splits=splits,
        list_samples=_list_samples,
        source=SOURCE,
        ignore_index=ignore,
        check_names=_check_names,
        unnamed=names is None,
    )


def _folders(root: Path, split: str) -> tuple[Path, Path]:
    below = "" if split == "all" else f"/{split}"
    return need_folder(root, f"images{below}", SOURCE), need_folder(root, f"labels{below}", SOURCE)


def _samples(
    images: str | Path | Sequence[str | Path],
    labels: Path,
    log: Callable[[str], None] = logger.warning,
) -> list[Sample]:
    samples = []
    for file in find_images(images, log=log):
        label = find_label(file, labels) or labels / f"{file.key}.png"
        assert isinstance(file.source, Path | Stored)
        samples.append(Sample(file.source, file.key, label))
    return samples


def _list_samples(root: Path, split: str) -> list[Sample]:
    images, labels = _folders(root, split)
    try:
        return _samples(images, labels)
    except FileNotFoundError as error:
        raise DataError(str(error)) from None


def _check_names(root: Path, split: str) -> Iterator[Finding]:
    """Check classes.json, and look for label maps without an image."""
    images, labels = _folders(root, split)
    names, ignore = read_protocol(labels)
    if names is None:
        text = f'{root} has no classes.json: {{"classes": [names], "ignore_index": number}}'
        yield Finding("warning", text)
    elif read_protocol(root / "labels")[0] != names:
        text = (
            f"{labels} has another classes.json than labels/; `evaluate --labels` reads the first"
        )
        yield Finding("warning", text)
    elif ignore < len(names):
        text = f"the ignore index {ignore} is also class {names[ignore]!r}, which is not evaluated"
        yield Finding("warning", text)
    used = {sample.label for sample in _samples(images, labels, lambda sentence: None)}
    spare = {p.resolve() for p in labels.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES} - {
        path.resolve() for path in used if path is not None
    }
    if spare:
        text = f"{labels} has {len(spare)} label maps without an image; first: {min(spare)}"
        yield Finding("warning", text)
