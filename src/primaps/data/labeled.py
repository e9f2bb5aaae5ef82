"""A folder with labels as a data set: ``images``, ``labels`` and ``classes.json``.

Label maps lie under the relative paths of their images. Splits are sub-folders of both:
``images/train`` and ``labels/train``; a folder without them has one split, ``all``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from primaps.data.dataset import DataError, Dataset, Finding, Layout, Sample
from primaps.data.dataset_paths import need_folder
from primaps.data.folder import IMAGE_SUFFIXES, find_images, find_label, read_protocol
from primaps.utils.errors import InputError
from primaps.utils.validation import validated

SOURCE = (
    "a folder with images/, labels/ (8-bit maps of class indices under the names of the images) "
    "and classes.json"
)
GUESSED = 256  # classes of labels without classes.json: as many as 8 bits have


@validated
def pair_up(
    images: str | Path | Sequence[str | Path],
    labels: str | Path,
    ignore_index: int | None = None,
) -> Dataset:
    """Images and a folder of their label maps as a data set.

    Args:
        images: files, folders (searched recursively) or globs.
        labels: folder of label maps under the relative paths of the images; a ``classes.json``
            there or up to two folders above gives names and ignore index. Without it the classes
            are the values 0..255 that occur.
        ignore_index: label that is not counted; the one of ``classes.json`` if None, else 255.

    Raises:
        NotFoundError: there is no image, or no folder of labels.
        InputError: ``classes.json`` does not read as it should.
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
    """A data set stays what it is; images and a folder of labels become one (:func:`pair_up`).

    Raises:
        InputError: labels are missing, or are given for a data set, which has its own.
    """
    if isinstance(images, Dataset):
        if labels is not None or ignore_index is not None:
            raise InputError("a data set has its own labels and ignore index: do not give others")
        return images
    if labels is None:
        raise InputError("give the folder of label maps, or the name of a data set")
    return pair_up(images, labels, ignore_index)


def layout(root: Path) -> Layout:
    """The layout of a folder with labels.

    Raises:
        DataError: there is no ``images`` or no ``labels``.
        InputError: ``classes.json`` does not read as it should.
    """
    images, labels = need_folder(root, "images", SOURCE), need_folder(root, "labels", SOURCE)
    names, ignore = read_protocol(labels)
    splits = [split for split in ("train", "val") if (images / split).is_dir()]
    return _layout(names, ignore, dict.fromkeys(splits or ["all"]))


def _layout(names: list[str] | None, ignore: int, splits: dict[str, None]) -> Layout:
    classes = names or [f"class {i}" for i in range(GUESSED)]
    return Layout(
        name="folder",
        classes=tuple(classes),
        values={**{i: i for i in range(len(classes))}, ignore: ignore},
        splits=splits,
        listed=_listed,
        source=SOURCE,
        ignore_index=ignore,
        look=_look,
        guessed=names is None,
    )


def _folders(root: Path, split: str) -> tuple[Path, Path]:
    below = "" if split == "all" else f"/{split}"
    return need_folder(root, f"images{below}", SOURCE), need_folder(root, f"labels{below}", SOURCE)


def _samples(images: str | Path | Sequence[str | Path], labels: Path) -> list[Sample]:
    samples = []
    for file in find_images(images):
        label = find_label(file, labels) or labels / f"{file.key}.png"
        samples.append(Sample(Path(str(file.source)), file.key, label))
    return samples


def _listed(root: Path, split: str) -> list[Sample]:
    images, labels = _folders(root, split)
    try:
        return _samples(images, labels)
    except FileNotFoundError as error:
        raise DataError(str(error)) from None


def _look(root: Path, split: str) -> Iterator[Finding]:
    """Names without classes, labels without an image."""
    images, labels = _folders(root, split)
    names, ignore = read_protocol(labels)
    if names is None:
        text = f'{root} has no classes.json, {{"classes": [names], "ignore_index": number}}'
        yield Finding("odd", text)
    elif (own := read_protocol(root / "labels"))[0] != names:
        file = "classes.json of its own" if own[0] else "classes.json, which labels/ has not"
        yield Finding("odd", f"{labels} has a {file}: `evaluate --labels` would take that")
    elif ignore < len(names):
        text = f"the ignore index {ignore} is also class {names[ignore]!r}, which never counts"
        yield Finding("odd", text)
    used = {sample.label for sample in _samples(images, labels)}
    spare = {p.resolve() for p in labels.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES} - {
        path.resolve() for path in used if path is not None
    }
    if spare:
        text = f"{labels} has {len(spare)} label maps without an image; first: {min(spare)}"
        yield Finding("odd", text)
