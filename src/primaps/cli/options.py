"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from primaps.data import Dataset

Inputs = Annotated[
    list[str], typer.Argument(metavar="INPUT...", help="Image files, folders (recursive) or globs.")
]
Images = Annotated[str, typer.Argument(metavar="IMAGES", help="A folder (recursive) or a glob.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="What `fit --out` wrote, or a hub id.")]
Out = Annotated[Path, typer.Option(help="Folder to write to.")]
Backbone = Annotated[
    str,
    typer.Option(
        help="dino-vits8, dino-vitb8, dinov2-vits14, dinov2-vitb14, a hub id, a folder or a .pth."
    ),
]
Size = Annotated[
    int | None, typer.Option(help="Shorter side in pixels [default: 320, or 322 for patch 14].")
]
Crf = Annotated[bool, typer.Option("--crf/--no-crf", help="Refine by the dense CRF.")]
Threshold = Annotated[float, typer.Option(help="psi of Eq. 6: smaller gives larger masks.")]
Cut = Annotated[
    int | None, typer.Option("--classes", help="Cut the tree here [default: classes.json, or K].")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Labels = Annotated[str | None, typer.Option(help="Folder of label maps, named like the images.")]
DatasetName = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="IMAGES is the root of this data set: cityscapes, cocostuff, potsdam or folder.",
    ),
]
Split = Annotated[
    str | None,
    typer.Option(help="Of the data set [default: train where models are fitted, val for scores]."),
]
IgnoreIndex = Annotated[
    int | None, typer.Option(help="Label not counted [default: of classes.json, or 255].")
]
BatchSize = Annotated[int, typer.Option(help="Images per step.")]
LearningRate = Annotated[float, typer.Option(help="Of Adam.")]
Precision = Annotated[
    str, typer.Option(help="float32, or bfloat16: about twice as fast on recent processors.")
]
Seed = Annotated[int, typer.Option(help="Everything random follows from it.")]
Store = Annotated[
    str | None,
    typer.Option(
        help="Folder that keeps features and masks between runs, or none: keep nothing "
        "[default: features in the cache]."
    ),
]
TensorBoard = Annotated[Path | None, typer.Option(help="Write figures per epoch there.")]
Projection = Annotated[
    str | None,
    typer.Option(help="Fit to codes: a folder of `project`, or a checkpoint of STEGO or HP."),
]
NOT_OF_THE_MODEL = (
    "images", "labels", "dataset", "split", "ignore_index", "out", "store", "plan", "tensorboard",
)  # fmt: skip


def named(dataset: str | None, root: str, split: str | None, usual: str) -> Dataset | None:
    """The data set of a name; None without one.

    Raises:
        ValueError: there is a split without a data set.
        DataError: it is not laid out as it should be.
    """
    from primaps.data import load_dataset

    if dataset is None and split is not None:
        raise ValueError(f"--split {split} is of a data set: give --dataset as well")
    return load_dataset(dataset, root, split or usual) if dataset else None


def labelled(
    images: str,
    labels: str | None,
    dataset: str | None,
    split: str | None,
    usual: str,
    ignore_index: int | None,
) -> Dataset:
    """Images with labels: a data set by name, or two folders."""
    from primaps.data import as_dataset

    found = named(dataset, images, split, usual)
    return as_dataset(images if found is None else found, labels, ignore_index)


def store_folder(text: str | None) -> str | Path | None:
    """Of ``--store``: None keeps nothing."""
    from primaps.files import cache_dir

    return None if text == "none" else text or cache_dir() / "features"


def read_views(text: str) -> int | None:
    """Of ``--views``: None is ``fresh``.

    Raises:
        ValueError: it is neither a number nor ``fresh``.
    """
    try:
        return None if text == "fresh" else int(text)
    except ValueError:
        raise ValueError(f"--views is {text!r}; it must be a number or fresh") from None
