"""``primaps project`` and ``primaps projection``: learned projections of features (STEGO, HP)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from primaps.cli.app import PAPER, app, command, running
from primaps.cli.console import note, result, warn
from primaps.cli.options import (
    BackboneOption,
    CacheOption,
    DeviceOption,
    ImagesArgument,
    OutOption,
    PrecisionOption,
    SeedOption,
    SizeOption,
    cache_folder,
)
from primaps.config import Classes, Config, Steps

projection = typer.Typer(no_args_is_help=True, help="Projections of features (STEGO, HP).")
app.add_typer(projection, name="projection", rich_help_panel=PAPER)


@projection.callback()
def _projection() -> None:
    """Projections of features (STEGO, HP)."""


@command(projection)
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .ckpt of STEGO or a .pth of HP.")
    ],
    out: OutOption,
    kind: Annotated[str | None, typer.Option(help="stego or hp [default: seen from FILE].")] = None,
) -> None:
    """Convert a checkpoint to safetensors, the backbone that it carries included.

    Nothing that the file contains is executed.
    """
    with running():
        from primaps.projections import convert_projection

        convert_projection(checkpoint, out, kind)
        result(out)


@command(app, rich_help_panel=PAPER)
def project(
    images: ImagesArgument,
    classes: Annotated[
        Classes, typer.Option(help="K, the number of clusters to find in the codes.")
    ],
    out: OutOption,
    method: Annotated[str, typer.Option(help="stego or hp.")] = "stego",
    preset: Annotated[
        str, typer.Option(help="own, or the papers' cityscapes, cocostuff, potsdam (for DINO).")
    ] = "own",
    steps: Annotated[Steps, typer.Option(help="Of the optimizer.")] = 300,
    five_crops: Annotated[
        bool, typer.Option("--five-crops", help="Also train on five crops of each image.")
    ] = False,
    backbone: BackboneOption = Config.backbone,
    size: SizeOption = None,
    precision: PrecisionOption = Config.precision,
    seed: SeedOption = Config.seed,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a projection (STEGO or HP) on unlabeled images, for `fit --projection`."""
    with running() as progress:
        from primaps.backbones.backbone import image_side
        from primaps.backbones.load import load_backbone
        from primaps.data import find_images
        from primaps.features.extract import BACKBONE_BATCH, extract
        from primaps.projections import projection_settings, train_projection
        from primaps.projections.crops import write_crops
        from primaps.utils.files import temporary_folder

        settings = projection_settings(method, preset)
        network = load_backbone(backbone, device, precision=precision)
        note(f"backbone {network.name} from {network.source}")
        side, files = image_side(network, size, BACKBONE_BATCH), find_images(images, exclude=out)
        with temporary_folder() as folder:
            if five_crops:
                files += write_crops(files, side, folder, warn)
            extracted = extract(
                files, network, side, cache=cache_folder(cache), progress=progress, log=warn
            )
        trained = train_projection(
            extracted.views.clean, method, classes=classes, settings=settings, steps=steps,
            seed=seed, progress=progress,
        )  # fmt: skip
        trained.about["backbone"] = network.weights  # another one is refused
        trained.save(out)
        result(out)
