"""Commands on images: propose, predict, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from primaps.cli.app import app, note, progress, summary, warn
from primaps.cli.options import (
    Backbone,
    Crf,
    Cut,
    Device,
    Inputs,
    Model,
    Out,
    Size,
    Threshold,
)


@app.command()
def propose(
    inputs: Inputs,
    out: Out,
    backbone: Backbone = "dinov2-vits14",
    threshold: Threshold = 0.4,
    crf: Crf = True,
    size: Size = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also draw how the masks come about.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Mask proposals (PriMaPs): per image a map of masks, 0 = ignore, and a picture."""
    with progress() as report:
        from primaps.backbones import load_backbone
        from primaps.runs import propose_files

        network = load_backbone(backbone, device)
        note(f"backbone {network.name} from {network.source}")
        done = propose_files(
            inputs, out, backbone=network, threshold=threshold, crf=crf, size=size,
            device=device, report=report, problem=warn,
        )  # fmt: skip
        if explain:
            from primaps.explain import explain_files

            explain_files(
                inputs, out, backbone=network, threshold=threshold, crf=crf, size=size,
                report=report, problem=lambda sentence: None,
            )  # fmt: skip
    summary(done, out)


@app.command()
def predict(
    model: Model,
    inputs: Inputs,
    out: Out,
    crf: Crf = True,
    names: Annotated[str | None, typer.Option(help="Class names for the legend, a,b,c.")] = None,
    classes: Cut = None,
    device: Device = "auto",
) -> None:
    """Class map of every image by a fitted model, with a picture and legend."""
    with progress() as report:
        from primaps.runs import predict_files
        from primaps.segmenter import PriMaPsEM

        network = PriMaPsEM.from_pretrained(model, device=device)
        if classes is not None:
            network = network.cut(classes)
        done = predict_files(
            network, inputs, out, crf=crf,
            names=names.split(",") if names else None, report=report, problem=warn,
        )  # fmt: skip
    summary(done, out)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("primaps-demo"),
    device: Device = "auto",
) -> None:
    """Propose, fit and predict on photographs that scikit-image and scikit-learn bring along."""
    with progress() as report:
        from primaps.demo import demo as run

        picture = run(out, device=device, report=report)
    print(picture)
