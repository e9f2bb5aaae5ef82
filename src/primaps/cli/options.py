"""Arguments and options that several commands share; those of a fit are the fields of Config."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from annotated_types import Interval

from primaps.config import (
    CacheContent,
    Classes,
    Config,
    Engine,
    Precision,
    PredictPrecision,
    Resize,
    Seed,
    Size,
    Threshold,
    option_help,
    option_types,
)
from primaps.utils.errors import InputError

if TYPE_CHECKING:
    from primaps.data import Dataset
    from primaps.model import PriMaPsEM


InputsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...", help="Image files, folders (recursive), globs, tar files or URLs."
    ),
]
ImagesArgument = Annotated[
    str, typer.Argument(metavar="IMAGES", help="A folder (recursive) or a glob.")
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="What `fit --out` wrote, or a hub id.")
]
OutOption = Annotated[Path, typer.Option(help="Folder to write to.")]
ResultOption = Annotated[
    Path, typer.Option("--out", help="Folder to write to; for a scene the .tif to write.")
]
ModelOutOption = Annotated[Path, typer.Option(help="Folder of the model.")]
BackboneOption = Annotated[str, typer.Option(help=option_help("backbone"))]
SizeOption = Annotated[Size | None, typer.Option(help=option_help("size"))]
ModelSizeOption = Annotated[
    Size | None,
    typer.Option(help="Shorter side in pixels; of scenes side of crops [default: the model's]."),
]  # fmt: skip
ThresholdOption = Annotated[Threshold, typer.Option(help=option_help("threshold"))]
MaskCrfOption = Annotated[
    bool, typer.Option("--mask-crf/--no-mask-crf", help=option_help("mask_crf"))
]
CrfOption = Annotated[
    bool, typer.Option("--crf/--no-crf", help="Refine predictions by the dense CRF.")
]
PrecisionOption = Annotated[Precision, typer.Option(help=option_help("precision"))]
PredictPrecisionOption = Annotated[
    PredictPrecision,
    typer.Option(help="Of the backbone; auto: bfloat16 on processors with instructions for it."),
]
EngineOption = Annotated[
    Engine,
    typer.Option(help="Of the backbone; openvino, an extra, is 1.4 times as fast on a CPU."),
]
SeedOption = Annotated[Seed, typer.Option(help=option_help("seed"))]
CutOption = Annotated[
    Classes | None,
    typer.Option("--classes", help="Cut the tree here [default: classes.json, or K]."),
]
ShardOption = Annotated[
    str,
    typer.Option(
        help="I/N: the I-th of N shares of the images; auto: that of torchrun or a Slurm array."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
LabelsOption = Annotated[
    str | None, typer.Option(help="Folder of label maps, named like the images.")
]
DatasetOption = Annotated[
    str | None,
    typer.Option(help="IMAGES is the root of a data set: cityscapes, cocostuff, potsdam, folder."),
]
SplitOption = Annotated[
    str | None,
    typer.Option(help="Of the data set [default: train where models are fitted, val for scores]."),
]
IgnoreIndexOption = Annotated[
    Annotated[int, Interval(ge=0, le=65_535)] | None,
    typer.Option(help="Label not counted [default: of classes.json, or 255]."),
]
CacheOption = Annotated[
    str | None,
    typer.Option(
        help="Folder that keeps features and masks between runs, or none: cache_content nothing "
        "[default: features in the cache]."
    ),
]
CacheContentOption = Annotated[
    CacheContent,
    typer.Option(
        help="What is kept of every image: its features, or those of its masks alone, which is "
        "enough for the recipe orthogonal and a hundredth: auto, features or masks.",
    ),
]
TensorBoardOption = Annotated[Path | None, typer.Option(help="Write figures per epoch there.")]
ProjectionOption = Annotated[
    str | None,
    typer.Option(help="Fit to codes: a folder of `project`, or a checkpoint of STEGO or HP."),
]
ResizeOption = Annotated[
    Resize,
    typer.Option(help="pillow, or tensor: not antialiased, as the authors' program at evaluation."),
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the scores here.")]


def config_options(
    *names: str, optional: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command options of :class:`primaps.Config`, in the parameter ``options``.

    Names, types, defaults and help are those of the fields; a command has a parameter of its own
    for whatever differs.

    Args:
        names: of the fields; none means all those that the command has no parameter for.
        optional: without defaults; only what was given is in ``options``.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [one for name, one in signature.parameters.items() if name != "options"]
        taken = {one.name for one in own}
        chosen = [f for f in fields(Config) if (f.name in names if names else f.name not in taken)]
        types, extra = option_types(), []
        for field in chosen:
            required, kind = field.default is MISSING, types[field.name]
            kind = kind | None if optional and not required else kind
            extra.append(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=None if optional and not required else field.default,
                    annotation=Annotated[
                        types[field.name] | None
                        if optional and not required
                        else types[field.name],
                        typer.Option(),
                    ],
                )
            )

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            options = {field.name: given.pop(field.name) for field in chosen}
            if optional:
                options = {name: value for name, value in options.items() if value is not None}
            command(**given, options=options)

        keyword = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
        parameters = [*keyword, *extra]
        parameters.sort(key=lambda one: one.default is not inspect.Parameter.empty)
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return wrapper

    return decorate


def dataset_by_name(
    dataset: str | None, root: str, split: str | None, default_split: str
) -> Dataset | None:
    """The data set of a name; None without one.

    Raises:
        InputError: there is a split without a data set.
        DataError: it is not laid out as it should be.
    """
    from primaps.data import load_dataset

    if dataset is None and split is not None:
        raise InputError(f"--split {split} is of a data set: give --dataset as well")
    return load_dataset(dataset, root, split or default_split) if dataset else None


def labeled_images(
    images: str,
    labels: str | None,
    dataset: str | None,
    split: str | None,
    default_split: str,
    ignore_index: int | None,
) -> Dataset:
    """Images with labels: a data set by name, or two folders."""
    from primaps.data import as_dataset

    data = dataset_by_name(dataset, images, split, default_split)
    return as_dataset(images if data is None else data, labels, ignore_index)


def fitted_model(
    model: str | Path,
    device: str,
    classes: int | None,
    precision: str | None = None,
    engine: str | None = None,
) -> PriMaPsEM:
    """A fitted model, cut at another number of classes if one is given."""
    from primaps.cli.console import note
    from primaps.model import PriMaPsEM

    found = PriMaPsEM.from_pretrained(model, device=device, precision=precision, engine=engine)
    if classes is None:
        return found
    if classes > found.config.classes:
        note(
            f"{classes} classes are a split of the {found.config.classes} that the model was fitted"
            f" with; `fit --classes {classes}` finds better ones"
        )
    return found.cut(classes)


def cache_folder(text: str | None) -> str | Path | None:
    """Of ``--cache``: None keeps nothing."""
    from primaps.utils.files import cache_dir

    return None if text == "none" else text or cache_dir() / "features"
