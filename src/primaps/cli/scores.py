"""Commands on labeled images: evaluate, oracle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from primaps.cli.app import SCORES, app, command, running
from primaps.cli.console import cell, result, show, warn
from primaps.cli.options import (
    BackboneOption,
    CrfOption,
    CutOption,
    DatasetOption,
    DeviceOption,
    IgnoreIndexOption,
    ImagesArgument,
    JsonOption,
    LabelsOption,
    MaskCrfOption,
    ModelArgument,
    ModelSizeOption,
    ResizeOption,
    SizeOption,
    SplitOption,
    ThresholdOption,
    fitted_model,
    labeled_images,
)
from primaps.config import Config


@command(app, rich_help_panel=SCORES)
def evaluate(
    model: ModelArgument,
    images: ImagesArgument,
    labels: LabelsOption = None,
    dataset: DatasetOption = None,
    split: SplitOption = None,
    ignore_index: IgnoreIndexOption = None,
    size: ModelSizeOption = None,
    crop: Annotated[
        bool, typer.Option("--crop/--no-crop", help="Cut the centered square, or whole images.")
    ] = True,
    flip: Annotated[
        bool, typer.Option("--flip/--no-flip", help="Average with the flipped image.")
    ] = True,
    crf: CrfOption = True,
    resize: ResizeOption = "pillow",
    matching: Annotated[
        Literal["hungarian", "majority"],
        typer.Option(help="hungarian, or majority (for more clusters than classes)."),
    ] = "hungarian",
    json_file: JsonOption = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Draw confusion, IoU and examples into this folder.")
    ] = None,
    classes: CutOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Accuracy, mean IoU and IoU per class after Hungarian matching."""
    with running() as progress:
        from primaps.evaluation.protocol import evaluate as run
        from primaps.results import check_file, write_own_json

        if json_file:
            check_file(json_file)  # before the work
        data = labeled_images(images, labels, dataset, split, "val", ignore_index)
        network = fitted_model(model, device, classes)
        found = run(
            network, data, size=size, crop=crop, flip=flip, crf=crf, resize=resize,
            matching=matching, progress=progress, log=warn,
        )  # fmt: skip
        options = ", ".join(f"{name} {value}" for name, value in asdict(found.options).items())
        line = f"{found.images} images, {options}"
        result(line)
        table = Table("class", "IoU")
        for name, value in found.iou.items():
            table.add_row(cell(name), "-" if value is None else f"{100 * value:.1f}")
        table.add_section()
        table.add_row("mean IoU", f"{100 * found.mean_iou:.1f}")
        table.add_row("accuracy", f"{100 * found.accuracy:.1f}")
        show(table)
        if json_file:
            write_own_json(json_file, found.to_dict())
        if pictures:
            from primaps.pictures.scores import draw_result

            draw_result(network, data, found, pictures)


@command(app, rich_help_panel=SCORES)
def oracle(
    images: ImagesArgument,
    labels: LabelsOption = None,
    dataset: DatasetOption = None,
    split: SplitOption = None,
    ignore_index: IgnoreIndexOption = None,
    backbone: BackboneOption = Config.backbone,
    threshold: ThresholdOption = Config.threshold,
    mask_crf: MaskCrfOption = Config.mask_crf,
    size: SizeOption = None,
    resize: ResizeOption = "pillow",
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
) -> None:
    """How good mask proposals are as such: each gets its most frequent label (Table 5)."""
    with running() as progress:
        from primaps.backbones.load import load_backbone
        from primaps.evaluation.oracle import evaluate_oracle
        from primaps.results import check_file, write_own_json

        if json_file:
            check_file(json_file)
        data = labeled_images(images, labels, dataset, split, "val", ignore_index)
        network = load_backbone(backbone, device)
        found = evaluate_oracle(
            data, backbone=network, size=size, resize=resize, threshold=threshold,
            crf="dense" if mask_crf else None, progress=progress, log=warn,
        )  # fmt: skip
        if json_file:
            write_own_json(json_file, found.to_dict())
        title = f"{found.images} images, {found.masks_per_image:.1f} masks per image"
        title += f", {100 * found.ignored:.1f} % of the pixels in none"
        table = Table("", "accuracy", "mean IoU", title=title)
        parts = {
            "pixels in masks": found.assigned,
            "all pixels": found.all_pixels,
            "all, ignored wrong": found.all_wrong,
        }
        for name, part in parts.items():
            table.add_row(name, f"{100 * part.accuracy:.1f}", f"{100 * part.mean_iou:.1f}")
        show(table)
