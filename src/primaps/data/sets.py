"""The data sets by name."""

from __future__ import annotations

from pathlib import Path

from primaps.data import cityscapes, cocostuff, labeled, potsdam
from primaps.data.dataset import DataError, Dataset, Layout
from primaps.utils.errors import InputError
from primaps.utils.validation import validated

DATASETS = ("cityscapes", "cocostuff", "potsdam", "folder")


def find_layout(name: str, root: str | Path) -> Layout:
    """Classes, splits and files of a data set.

    Args:
        name: ``cityscapes``, ``cocostuff``, ``potsdam``, or ``folder`` (images, labels and
            classes.json, from which everything is read).

    Raises:
        InputError: there is no data set of this name.
        DataError: ``root`` is no folder with labels.
    """
    if name == "folder":
        return labeled.layout(Path(root).expanduser())
    known = (cityscapes.LAYOUT, cocostuff.LAYOUT, potsdam.LAYOUT)
    if found := next((layout for layout in known if layout.name == name), None):
        return found
    raise InputError(f"there is no data set {name!r}; there are {', '.join(DATASETS)}")


@validated
def load_dataset(name: str, root: str | Path, split: str = "val") -> Dataset:
    """A split of a labeled data set, in the layout in which the field keeps it.

    Label maps are read later, one by one, with :meth:`primaps.data.Dataset.label`.

    Args:
        name: ``cityscapes``, ``cocostuff``, ``potsdam`` or ``folder``.
        root: the folder that holds ``leftImg8bit`` and ``gtFine``; ``images``, ``annotations``
            and ``curated``; ``imgs``, ``gt`` and the lists; or ``images``, ``labels`` and
            ``classes.json``.
        split: ``train`` or ``val``; ``unlabeled`` for Potsdam-3 too; ``all`` for a folder. A
            folder without ``train`` and ``val`` has all of its images in each split.

    Raises:
        InputError: there is no such data set or split.
        DataError: it is not laid out like this, or none of its images is on disk.

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
        split = "all" if splits == ["all"] else split
        splits = list(dict.fromkeys([*splits, "all"]))
    if split not in splits:
        raise InputError(f"{root} has no split {split!r}; there are {', '.join(splits)}")
    samples = layout.listed(root, split)
    # One look into each folder is far quicker than one at each of 50,000 files.
    folders = {sample.source.parent for sample in samples}
    there = {path for folder in folders for path in folder.iterdir()}
    present = tuple(sample for sample in samples if sample.source in there)
    absent = tuple(sample.key for sample in samples if sample.source not in there)
    if not present:
        raise DataError(
            f"none of the {len(samples):,} images of {name} {split} is in {root}; run `primaps "
            f"data check {name} {root}`"
        )
    return Dataset(layout, root, split, present, absent)
