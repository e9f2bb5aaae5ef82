"""Commands on labeled images: evaluate, oracle, data check, data prepare."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from primaps.cli.app import DATA, SCORES, app, command, running
from primaps.cli.console import cell, note, result, show, visible, warn
from primaps.cli.options import (
    CutOption,
    DeviceOption,
    EngineOption,
    ImagesArgument,
    JsonOption,
    ResizeOption,
    config_options,
    fitted_model,
    inference_options,
    label_options,
    labeled_images,
)
from primaps.config import InferenceOptions
from primaps.utils.errors import InputError
from primaps.utils.files import user_path

if TYPE_CHECKING:
    from primaps.evaluation.protocol import Evaluation

DEFAULTS = {one.name: one.default for one in fields(InferenceOptions)} | {"flip": True}


@command(app, rich_help_panel=SCORES)
@inference_options(**DEFAULTS)
@label_options()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Folder that `fit --out` wrote, a hub id, or a folder of label maps, such as the "
            "output of `predict`.",
        ),
    ],
    inference: dict[str, Any],
    located: dict[str, Any],
    images: Annotated[
        str | None,
        typer.Argument(
            metavar="IMAGES",
            help="Image folder, searched recursively, or a glob. May be omitted for label maps.",
        ),
    ] = None,
    crop: Annotated[
        bool, typer.Option("--crop/--no-crop", help="Evaluate center crops or whole images.")
    ] = True,
    resize: ResizeOption = "pillow",
    matching: Annotated[
        Literal["names", "hungarian", "majority", "none"] | None,
        "Matching of clusters and classes: names (a cluster is the class of its name), hungarian "
        "(one to one), majority (for more clusters than classes) or none (cluster k is class k). "
        "[default: names for taught and named models, otherwise hungarian]",
    ] = None,
    include_annotated: Annotated[
        bool,
        typer.Option(
            "--include-annotated", help="Also score the images that the model was taught with."
        ),
    ] = False,
    json_file: JsonOption = None,
    pictures: Annotated[
        Path | None, "Folder for figures: confusion matrix, IoU per class, examples."
    ] = None,
    classes: CutOption = None,
    engine: EngineOption = "torch",
    device: DeviceOption = "auto",
) -> None:
    """Print accuracy, mean IoU and the IoU of each class of a model or of label maps.

    Label maps are evaluated at full size, without cropping or refinement. They must have the same
    relative paths as the labels.
    """
    with running() as progress:
        from primaps.evaluation.protocol import evaluate as run
        from primaps.evaluation.protocol import labels_as_dataset
        from primaps.persistence import is_model
        from primaps.results import check_file, write_marked_json

        if json_file:
            check_file(json_file)  # before the work
        folder = user_path(model)
        source: Any = folder
        if folder.is_dir() and not is_model(folder):
            if classes is not None:
                raise InputError(f"--classes applies to models; {model} is a folder of label maps")
            inference = {k: v for k, v in inference.items() if v != DEFAULTS[k]}
        else:
            source = fitted_model(model, device, classes, engine)
        if images is not None:
            data = labeled_images(images, "val", **located)
        elif source is folder and located["labels"]:
            data = labels_as_dataset(located["labels"], located["ignore_index"])
        else:
            raise InputError(
                "IMAGES is missing; it may be omitted only for label maps with --labels"
            )
        found = run(
            source, data, crop=crop, resize=resize, matching=matching,
            include_annotated=include_annotated, progress=progress, log=warn,
            **inference,
        )  # fmt: skip
        _print_scores(found)
        if json_file:
            write_marked_json(json_file, found.to_dict())
        if pictures:
            from primaps.pictures.charts import draw_result

            draw_result(source, data, found, pictures)


def _print_scores(found: Evaluation) -> None:
    options = {name: value for name, value in asdict(found.options).items() if value is not None}
    result(f"{found.images} images, {', '.join(f'{k} {v}' for k, v in options.items())}")
    if found.annotated:
        what = "scored" if found.options.include_annotated else "left out"
        listed = ", ".join(found.annotated[:5]) + (", ..." if len(found.annotated) > 5 else "")
        note(f"{len(found.annotated):,} images that the model was taught with are {what}: {listed}")
    table = Table("class", "IoU")
    for name, value in found.iou.items():
        table.add_row(cell(name), "-" if value is None else f"{100 * value:.1f}")
    table.add_section()
    table.add_row("mean IoU", f"{100 * found.mean_iou:.1f}")
    table.add_row("accuracy", f"{100 * found.accuracy:.1f}")
    show(table)


@command(app, rich_help_panel=SCORES)
@config_options("backbone", "threshold", "mask_crf", "size", "depth")
@label_options()
def oracle(
    images: ImagesArgument,
    options: dict[str, Any],
    located: dict[str, Any],
    resize: ResizeOption = "pillow",
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Evaluate mask proposals without a model: each mask gets its most frequent label (Table 5)."""
    with running() as progress:
        from primaps.backbones.load import load_backbone
        from primaps.evaluation.oracle import evaluate_oracle
        from primaps.results import check_file, write_marked_json

        if json_file:
            check_file(json_file)
        data = labeled_images(images, "val", **located)
        network = load_backbone(options["backbone"], device)
        found = evaluate_oracle(
            data, backbone=network, size=options["size"], depth=options["depth"], resize=resize,
            threshold=options["threshold"], crf="dense" if options["mask_crf"] else None,
            progress=progress, log=warn,
        )  # fmt: skip
        if json_file:
            write_marked_json(json_file, found.to_dict())
        title = f"{found.images} images, {found.masks_per_image:.1f} masks per image"
        title += f", {100 * found.ignored:.1f} % of the pixels outside of masks"
        table = Table("", "accuracy", "mean IoU", title=title)
        rows = {
            "pixels in masks": found.assigned,
            "all pixels": found.all_pixels,
            "all pixels, those outside of masks as errors": found.all_wrong,
        }
        for name, row in rows.items():
            table.add_row(name, f"{100 * row.accuracy:.1f}", f"{100 * row.mean_iou:.1f}")
        show(table)


data_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Check and prepare labeled data sets.",
)
app.add_typer(data_app, name="data", rich_help_panel=DATA)


@command(data_app)
def check(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Data set: cityscapes, cocostuff, potsdam or folder."),
    ],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Root folder of the data set.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not check the values of the label maps.")
    ] = False,
) -> None:
    """Check whether a data set is complete and has the expected layout.

    The exit status is 1 if there is an error.
    """
    errors = 0
    with running() as progress:
        from primaps.data.check import check_dataset

        for finding in check_dataset(name, root, quick, progress):
            color = {"ok": "green", "warning": "yellow", "error": "red"}[finding.level]
            line = Text.assemble((finding.level, color), f": {visible(finding.text)}")
            Console(soft_wrap=True).print(line)
            errors += finding.level == "error"
    if errors:
        raise typer.Exit(1)


@command(data_app)
def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set: potsdam or cocostuff.")],
    raw: Annotated[Path, typer.Argument(metavar="RAW", help="Folder of the downloaded files.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of the data set.")],
    make_lists: Annotated[
        bool,
        typer.Option(
            "--make-lists",
            help="For cocostuff: compute missing curated lists (images with at least 75 % stuff).",
        ),
    ] = False,
) -> None:
    """Convert downloads to the expected layout: cut the tiles of Potsdam, arrange COCO-Stuff."""
    with running() as progress:
        from primaps.data.cocostuff import prepare_cocostuff
        from primaps.data.potsdam import prepare_potsdam

        if name == "potsdam" and not make_lists:
            done = prepare_potsdam(raw, out, progress, note)
        elif name == "cocostuff":
            done = prepare_cocostuff(raw, out, make_lists, progress, note)
        else:
            raise InputError(
                "prepare supports potsdam and cocostuff, and --make-lists only cocostuff; "
                "Cityscapes needs no preparation"
            )
    for part, number in done.items():
        result(f"{out / part}: {number:,}")
