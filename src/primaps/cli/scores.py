"""Commands on labelled images: evaluate, oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from primaps.cli.app import app, progress, warn
from primaps.cli.options import (
    Backbone,
    Crf,
    Cut,
    DatasetName,
    Device,
    IgnoreIndex,
    Images,
    Labels,
    Model,
    Size,
    Split,
    Threshold,
    labelled,
)


@app.command()
def evaluate(
    model: Model,
    images: Images,
    labels: Labels = None,
    dataset: DatasetName = None,
    split: Split = None,
    ignore_index: IgnoreIndex = None,
    size: Annotated[
        int | None, typer.Option(help="Shorter side in pixels [default: that of the model].")
    ] = None,
    crop: Annotated[
        bool, typer.Option("--crop/--no-crop", help="Cut the centred square, or whole images.")
    ] = True,
    mirror: Annotated[
        bool, typer.Option("--mirror/--no-mirror", help="Average with the mirrored image.")
    ] = True,
    crf: Crf = True,
    matching: Annotated[
        str, typer.Option(help="hungarian, or majority (for more clusters than classes).")
    ] = "hungarian",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the scores here.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Draw confusion, IoU and examples into this folder.")
    ] = None,
    classes: Cut = None,
    device: Device = "auto",
) -> None:
    """Accuracy, mean IoU and IoU per class after Hungarian matching."""
    with progress() as report:
        from primaps.files import write_json
        from primaps.protocol import evaluate as run
        from primaps.segmenter import PriMaPsEM

        data = labelled(images, labels, dataset, split, "val", ignore_index)
        network = PriMaPsEM.from_pretrained(model, device=device)
        if classes is not None:
            network = network.cut(classes)
        result = run(
            network, data, size=size, crop=crop, mirror=mirror, crf=crf, matching=matching,
            report=report, problem=warn,
        )  # fmt: skip
        if json_file:
            write_json(json_file, result)
        if pictures:
            from primaps.charts import draw_result

            draw_result(network, data, result, pictures)
    options = ", ".join(f"{name} {value}" for name, value in result["options"].items())
    Console(soft_wrap=True).print(f"{result['images']} images, {options}", highlight=False)
    table = Table("class", "IoU")
    for name, value in result["iou"].items():
        table.add_row(name, "-" if value is None else f"{100 * value:.1f}")
    table.add_section()
    table.add_row("mean IoU", f"{100 * result['mean_iou']:.1f}")
    table.add_row("accuracy", f"{100 * result['accuracy']:.1f}")
    Console().print(table)


@app.command()
def oracle(
    images: Images,
    labels: Labels = None,
    dataset: DatasetName = None,
    split: Split = None,
    ignore_index: IgnoreIndex = None,
    backbone: Backbone = "dinov2-vits14",
    threshold: Threshold = 0.4,
    crf: Crf = True,
    size: Size = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the scores here.")] = None,
    device: Device = "auto",
) -> None:
    """How good mask proposals are as such: each gets its most frequent label (Table 5)."""
    with progress() as report:
        from primaps.backbones import load_backbone
        from primaps.files import write_json
        from primaps.oracle import evaluate_oracle

        data = labelled(images, labels, dataset, split, "val", ignore_index)
        network = load_backbone(backbone, device)
        result = evaluate_oracle(
            data, backbone=network, size=size, threshold=threshold,
            crf="dense" if crf else None, report=report, problem=warn,
        )  # fmt: skip
        if json_file:
            write_json(json_file, result)
    title = f"{result['images']} images, {result['masks_per_image']:.1f} masks per image"
    title += f", {100 * result['ignored']:.1f} % of the pixels in none"
    table = Table("", "accuracy", "mean IoU", title=title)
    for name, kind in (("pixels in masks", "assigned"), ("all pixels", "all_pixels")):
        values = (f"{100 * result[kind][figure]:.1f}" for figure in ("accuracy", "mean_iou"))
        table.add_row(name, *values)
    Console().print(table)
