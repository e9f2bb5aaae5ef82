"""Commands on labelled images: evaluate, oracle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from primaps.cli.app import SCORES, app, running, visible, warn
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
    OldCrfOption,
    ResizeOption,
    SizeOption,
    SplitOption,
    ThresholdOption,
    fitted_model,
    labelled_images,
)
from primaps.config import Config


@app.command(rich_help_panel=SCORES)
def evaluate(
    model: ModelArgument,
    images: ImagesArgument,
    labels: LabelsOption = None,
    dataset: DatasetOption = None,
    split: SplitOption = None,
    ignore_index: IgnoreIndexOption = None,
    size: Annotated[
        int | None, typer.Option(help="Shorter side in pixels [default: that of the model].")
    ] = None,
    crop: Annotated[
        bool, typer.Option("--crop/--no-crop", help="Cut the centred square, or whole images.")
    ] = True,
    mirror: Annotated[
        bool, typer.Option("--mirror/--no-mirror", help="Average with the mirrored image.")
    ] = True,
    crf: CrfOption = True,
    resize: ResizeOption = "pillow",
    matching: Annotated[
        str, typer.Option(help="hungarian, or majority (for more clusters than classes).")
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
        from primaps.support.files import write_json

        data = labelled_images(images, labels, dataset, split, "val", ignore_index)
        network = fitted_model(model, device, classes)
        result = run(
            network, data, size=size, crop=crop, mirror=mirror, crf=crf, resize=resize,
            matching=matching, progress=progress, problem=warn,
        )  # fmt: skip
        if json_file:
            write_json(json_file.expanduser(), result.to_dict())
        if pictures:
            from primaps.pictures.scores import draw_result

            draw_result(network, data, result, pictures.expanduser())
        options = ", ".join(f"{name} {value}" for name, value in asdict(result.options).items())
        line = f"{result.images} images, {options}"
        Console(soft_wrap=True).print(line, highlight=False, markup=False)
        table = Table("class", "IoU")
        for name, value in result.iou.items():
            table.add_row(escape(visible(name)), "-" if value is None else f"{100 * value:.1f}")
        table.add_section()
        table.add_row("mean IoU", f"{100 * result.mean_iou:.1f}")
        table.add_row("accuracy", f"{100 * result.accuracy:.1f}")
        Console().print(table)


@app.command(rich_help_panel=SCORES)
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
    crf: OldCrfOption = None,
) -> None:
    """How good mask proposals are as such: each gets its most frequent label (Table 5)."""
    with running() as progress:
        from primaps.backbones.load import load_backbone
        from primaps.evaluation.oracle import evaluate_oracle
        from primaps.support.files import write_json

        data = labelled_images(images, labels, dataset, split, "val", ignore_index)
        network = load_backbone(backbone, device)
        result = evaluate_oracle(
            data, backbone=network, size=size, resize=resize, threshold=threshold,
            crf="dense" if mask_crf else None, progress=progress, problem=warn,
        )  # fmt: skip
        if json_file:
            write_json(json_file.expanduser(), result.to_dict())
        title = f"{result.images} images, {result.masks_per_image:.1f} masks per image"
        title += f", {100 * result.ignored:.1f} % of the pixels in none"
        table = Table("", "accuracy", "mean IoU", title=title)
        parts = {
            "pixels in masks": result.assigned,
            "all pixels": result.all_pixels,
            "all, ignored wrong": result.all_wrong,
        }
        for name, part in parts.items():
            table.add_row(name, f"{100 * part.accuracy:.1f}", f"{100 * part.mean_iou:.1f}")
        Console().print(table)
