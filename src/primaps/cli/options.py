"""Arguments and options that several commands share.

The options of a fit and of inference are the fields of dataclasses in :mod:`primaps.config`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from annotated_types import Ge, Interval

from primaps.config import (
    CacheContent,
    Classes,
    Config,
    CrfTile,
    Engine,
    InferenceOptions,
    Resize,
    Scale,
    option_help,
    option_types,
)
from primaps.utils.errors import InputError

if TYPE_CHECKING:
    from primaps.data import Dataset
    from primaps.model import PriMaPsEM

Command = Callable[..., None]

InputsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="Image files, folders (searched recursively), globs, tar files or URLs.",
    ),
]
ImagesArgument = Annotated[
    str, typer.Argument(metavar="IMAGES", help="Image folder, searched recursively, or a glob.")
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder that `fit --out` wrote, or a hub id.")
]
FolderArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Folder that `fit --out` wrote.")
]
OutOption = Annotated[Path, "Output folder."]
ResultOption = Annotated[
    Path, typer.Option("--out", help="Output folder, or for a scene the .tif file to write.")
]
CrfOption = Annotated[
    bool, typer.Option("--crf/--no-crf", help=option_help("crf", InferenceOptions))
]
EngineOption = Annotated[
    Engine, "Runtime of the backbone. openvino (an extra) is about 1.4 times as fast on a CPU."
]
DeviceOption = Annotated[str, "Device: auto, cpu, cuda, cuda:1, mps (not tested), ..."]
CutOption = Annotated[
    Classes | None,
    typer.Option(
        "--classes", help="Number of classes to cut the class tree at. [default: as in the fit]"
    ),
]
ShardOption = Annotated[
    str,
    "Shard I/N of the images for this process, or auto for the one that torchrun or a "
    "Slurm array assigns.",
]
ClassesOf = Annotated[
    Path | None,
    typer.Option(
        "--classes", help="classes.json or model folder with the names and colors of the classes."
    ),
]
LabelsOption = Annotated[
    str | None, "Folder of label maps, under the relative paths of the images."
]
IgnoreIndexOption = Annotated[
    Annotated[int, Interval(ge=0, le=65_535)] | None,
    "Label value that is not counted. [default: from classes.json, or 255]",
]
DatasetOption = Annotated[
    str | None, "Data set with IMAGES as its root: cityscapes, cocostuff, potsdam or folder."
]
SplitOption = Annotated[
    str | None, "Split of the data set. [default: train for fitting, val for evaluation]"
]
CacheOption = Annotated[
    str | None,
    "Folder of cached features and masks, or none to keep them in memory. [default: "
    "features in the cache folder of primaps]",
]
CacheContentOption = Annotated[
    CacheContent,
    "What is cached for each image: its features, or only the features of its masks, "
    "which need about 1 % of the space and suffice for recipe orthogonal.",
]
ProjectionOption = Annotated[
    str | None,
    "Projection of the features: a folder that `project` wrote, or a checkpoint of STEGO or HP.",
]
TensorBoardOption = Annotated[Path | None, "Folder for TensorBoard logs of the metrics per epoch."]
ResizeOption = Annotated[
    Resize,
    "Resampling of images: pillow (antialiased) or tensor (not antialiased, as in the "
    "evaluation program of the authors).",
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="JSON file for the scores.")]

TILING = {
    "tile_overlap": Annotated[
        Annotated[int, Ge(0)] | None,
        "Overlap of neighboring tiles in network pixels. [default: an eighth of --size]",
    ],
    "crf_tile": Annotated[
        CrfTile | None,
        "Side of the tiles that the CRF refines, in network pixels. [default: 840, "
        "smaller for more than 12 classes]",
    ],
    "scale": Annotated[
        Scale | None,
        "Scene pixels per network pixel, along each side. [default: 1]",
    ],
    "mpp": Annotated[
        Scale | None,
        "Ground size of a network pixel in meters, instead of --scale.",
    ],
    "bands": Annotated[
        str | None,
        "Bands to use as red, green and blue, such as 4,3,2. [default: those that the "
        "file declares]",
    ],
    "stretch": Annotated[
        str | None,
        "Band values that become black and white, such as 0,3000. [default: 2nd and 98th "
        "percentile of the scene]",
    ],
    "nodata": Annotated[
        float | None,
        "Value of pixels without data, such as -9999. [default: as declared in the file]",
    ],
    "alpha": Annotated[
        bool | None,
        typer.Option("--alpha/--no-alpha"),
        "Mask the pixels whose alpha is zero; --no-alpha treats an alpha band as data. [default: "
        "--alpha]",
    ],
}
"""Fields of :class:`primaps.scenes.tiling.TilingOptions` on the command line."""
CONFIG_PANELS = {
    "Masks": ("threshold", "anchor", "iterative", "mask_crf"),
    "Training": (
        "epochs", "init_epochs", "min_steps", "min_init_steps", "batch_size", "learning_rate",
        "momentum", "momentum_every", "momentum_ramp", "cosine_scale", "views", "loss_size",
    ),
}  # fmt: skip
"""Panels of ``primaps fit --help``, with the options in them."""


def option_group(
    parameter: str,
    group: Mapping[str, tuple[Any, Any]],
    given_only: bool = False,
    panels: Mapping[str, str] | None = None,
) -> Callable[[Command], Command]:
    """Give a command several options, which it receives as one dictionary.

    Args:
        parameter: parameter of the command that receives the dictionary.
        group: option name to its annotation and default. Options that are parameters of the
            command are omitted.
        given_only: leave out options that are None.
        panels: option name to its panel of ``--help``.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        parameters = {
            name: one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, one in signature.parameters.items()
            if name != parameter
        }
        names = [name for name in group if name not in parameters]
        for name in names:
            annotation, default = group[name]
            if panels and name in panels:
                annotation = Annotated[annotation, typer.Option(rich_help_panel=panels[name])]
            parameters[name] = inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            options = {name: given.pop(name) for name in names}
            if given_only:
                options = {name: value for name, value in options.items() if value is not None}
            command(**given, **{parameter: options})

        wrapper.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            sorted(parameters.values(), key=lambda one: one.default is not one.empty)
        )
        return wrapper

    return decorate


def config_options(*names: str, optional: bool = False) -> Callable[[Command], Command]:
    """Give a command options of :class:`primaps.Config`, in the parameter ``options``.

    Args:
        names: names of the options. Without names, all options except ``classes``.
        optional: without defaults; ``options`` has those that were given.
    """
    types, defaults = option_types(), {one.name: one.default for one in fields(Config)}
    group = {
        name: (types[name] | None, None) if optional else (types[name], defaults[name])
        for name in names or (name for name in types if name != "classes")
    }
    panels = {} if names else {n: panel for panel, own in CONFIG_PANELS.items() for n in own}
    return option_group("options", group, given_only=optional, panels=panels)


def inference_options(**defaults: Any) -> Callable[[Command], Command]:
    """Give a command the options of :class:`primaps.InferenceOptions`, in ``inference``.

    Args:
        defaults: defaults of the command that differ from those of the class.
    """
    types, group = option_types(InferenceOptions), {}
    for field in fields(InferenceOptions):
        default = defaults.get(field.name, field.default)
        text = option_help(field.name, InferenceOptions)
        if default is not None:  # typer adds it to the help text
            text = text.partition(" [default")[0]
        group[field.name] = (Annotated[types[field.name], typer.Option(help=text)], default)
    return option_group("inference", group)


def tiling_options(*names: str) -> Callable[[Command], Command]:
    """Give a command options of :data:`TILING`, in ``tiling``; :func:`read_tiling` reads them."""
    group = {name: (TILING[name], None) for name in names}
    return option_group("tiling", group, given_only=True, panels=dict.fromkeys(names, "Scenes"))


def label_options() -> Callable[[Command], Command]:
    """Give a command the options that locate labels, in the parameter ``located``.

    The dictionary goes to :func:`labeled_images`.
    """
    options = {
        "labels": LabelsOption,
        "dataset": DatasetOption,
        "split": SplitOption,
        "ignore_index": IgnoreIndexOption,
    }
    return option_group("located", {name: (kind, None) for name, kind in options.items()})


def read_tiling(tiling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of :class:`primaps.scenes.tiling.TilingOptions` from options.

    Raises:
        InputError: bands or stretch are not numbers.
    """
    fields_ = dict(tiling)
    try:
        if "bands" in tiling:
            fields_["bands"] = [int(band) for band in tiling["bands"].split(",")]
    except ValueError:
        raise InputError(
            f"--bands: {tiling['bands']!r} is not a list of band numbers; write it as 4,3,2"
        ) from None
    try:
        if "stretch" in tiling:
            low, high = map(float, tiling["stretch"].split(","))
            fields_["stretch"] = (low, high)
    except ValueError:
        raise InputError(
            f"--stretch: {tiling['stretch']!r} is not two numbers; write it as 0,3000"
        ) from None
    return fields_


def dataset_by_name(
    dataset: str | None, root: str, split: str | None, default_split: str
) -> Dataset | None:
    """Return a data set by its name, or None without a name.

    Raises:
        InputError: a split is given without a data set.
        DataError: the folder does not have the layout of the data set.
    """
    from primaps.data import load_dataset

    if dataset is None and split is not None:
        raise InputError(f"--split {split} needs a data set; add --dataset")
    return load_dataset(dataset, root, split or default_split) if dataset else None


def labeled_images(
    images: str,
    default_split: str,
    labels: str | None,
    dataset: str | None,
    split: str | None,
    ignore_index: int | None,
) -> Dataset:
    """Return images with labels: a data set by its name, or the files of two folders."""
    from primaps.data import as_dataset

    data = dataset_by_name(dataset, images, split, default_split)
    return as_dataset(images if data is None else data, labels, ignore_index)


def fitted_model(
    model: str | Path,
    device: str,
    classes: int | None,
    engine: str | None = None,
) -> PriMaPsEM:
    """Return a fitted model, with its class tree cut at ``classes`` if a number is given."""
    from primaps.cli.console import note
    from primaps.model import PriMaPsEM

    found = PriMaPsEM.from_pretrained(model, device=device, engine=engine)
    if classes is None:
        return found
    if found.taught_ is None and classes > found.config.classes:
        note(
            f"{classes} classes are a split of the {found.config.classes} classes of the fit; "
            f"`fit --classes {classes}` gives better ones"
        )
    return found.cut(classes)


def cache_folder(text: str | None) -> str | Path | None:
    """Return the folder of ``--cache``, or None to cache nothing."""
    from primaps.utils.files import cache_dir

    return None if text == "none" else text or cache_dir() / "features"
