"""Commands on images: demo, propose, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from primaps.cli.app import IMAGES, app, command, running
from primaps.cli.console import note, result, summary, warn
from primaps.cli.options import (
    BackboneOption,
    CrfOption,
    CutOption,
    DeviceOption,
    EngineOption,
    InputsArgument,
    MaskCrfOption,
    ModelArgument,
    ModelSizeOption,
    PredictPrecisionOption,
    ResultOption,
    ShardOption,
    SizeOption,
    ThresholdOption,
    fitted_model,
)
from primaps.cli.tiling import (
    BandsOption,
    CrfTileOption,
    MppOption,
    ScaleOption,
    StretchOption,
    TileOverlapOption,
    tiling_options,
)
from primaps.config import Config
from primaps.utils.errors import InputError

TILED = {"tile_overlap", "scale", "crf_tile"}
"""Tiling options that predict --tiles applies to images as well."""


@command(app, rich_help_panel=IMAGES)
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("primaps-demo"),
    device: DeviceOption = "auto",
) -> None:
    """Propose, fit and predict on images that scikit-image and scikit-learn bring along."""
    with running() as progress:
        from primaps.demo import demo as run

        picture = run(out, device=device, progress=progress)
        result(picture)


@command(app, rich_help_panel=IMAGES)
def propose(
    inputs: InputsArgument,
    out: ResultOption,
    backbone: BackboneOption = Config.backbone,
    threshold: ThresholdOption = Config.threshold,
    mask_crf: MaskCrfOption = Config.mask_crf,
    size: SizeOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also draw how the masks come about.")
    ] = False,
    tile_overlap: TileOverlapOption = None,
    scale: ScaleOption = None,
    mpp: MppOption = None,
    bands: BandsOption = None,
    stretch: StretchOption = None,
    shard: ShardOption = "auto",
    engine: EngineOption = "torch",
    device: DeviceOption = "auto",
) -> None:
    """Mask proposals (PriMaPs): per image a map of masks, 0 = ignore, and a picture.

    With one INPUT and an --out that ends in .tif: one map of the masks of this scene.
    """
    with running() as progress:
        from primaps.backbones.load import load_backbone
        from primaps.label_maps import explain_files, propose_files
        from primaps.scenes.propose import propose_scene
        from primaps.scenes.tiling import is_scene
        from primaps.utils.distributed import own_device

        tiling = tiling_options(tile_overlap, scale, mpp, bands, stretch)
        scene = is_scene(inputs, out)
        _refuse_tiling(tiling, scene, shard)
        network = load_backbone(backbone, own_device(device), engine=engine)
        note(f"backbone {network.name} from {network.source}")
        if scene:
            if explain:
                raise InputError("--explain is for images: leave it out")
            count = propose_scene(
                inputs[0], out, backbone=network, threshold=threshold, mask_crf=mask_crf,
                size=size, progress=progress, **tiling,
            )  # fmt: skip
            note(f"kept from before: {out}" if count is None else f"{count} masks: {out}")
            return
        shown = _share(shard, progress)
        done = propose_files(
            inputs, out, backbone=network, threshold=threshold, mask_crf=mask_crf, size=size,
            shard=shard, progress=shown, log=warn,
        )  # fmt: skip
        if explain:
            explain_files(
                inputs, out, backbone=network, threshold=threshold, mask_crf=mask_crf, size=size,
                shard=shard, progress=shown, log=lambda sentence: None,
            )  # fmt: skip
        summary(done, out)


@command(app, rich_help_panel=IMAGES)
def predict(
    model: ModelArgument,
    inputs: InputsArgument,
    out: ResultOption,
    crf: CrfOption = True,
    size: ModelSizeOption = None,
    names: Annotated[str | None, typer.Option(help="Class names for the legend, a,b,c.")] = None,
    classes: CutOption = None,
    tiles: Annotated[
        bool,
        typer.Option("--tiles", help="Process images in tiles at their own resolution, as scenes."),
    ] = False,
    polygons: Annotated[
        Path | None, typer.Option(help="Scenes: also write regions to this .gpkg.")
    ] = None,
    tile_overlap: TileOverlapOption = None,
    scale: ScaleOption = None,
    mpp: MppOption = None,
    bands: BandsOption = None,
    stretch: StretchOption = None,
    crf_tile: CrfTileOption = None,
    shard: ShardOption = "auto",
    precision: PredictPrecisionOption = "auto",
    engine: EngineOption = "torch",
    device: DeviceOption = "auto",
) -> None:
    """Class map of every image by a fitted model, with a picture and legend.

    With one INPUT and an --out that ends in .tif: one georeferenced map of this scene.
    """
    with running() as progress:
        from primaps.label_maps import predict_files
        from primaps.scenes.predict import predict_scene
        from primaps.scenes.tiling import is_scene
        from primaps.utils.distributed import own_device

        tiling = tiling_options(tile_overlap, scale, mpp, bands, stretch, crf_tile)
        scene = is_scene(inputs, out)
        _refuse_tiling(tiling | ({"polygons": polygons} if polygons else {}), scene, shard, tiles)
        network = fitted_model(model, own_device(device), classes, precision, engine)
        titles = names.split(",") if names else None
        if scene:
            new = predict_scene(
                network, inputs[0], out, crf=crf, names=titles, polygons=polygons,
                size=size, progress=progress, **tiling,
            )  # fmt: skip
            note(f"written: {out}" if new else f"kept from before: {out}")
            return
        shown = _share(shard, progress)
        done = predict_files(
            network, inputs, out, crf=crf, size=size, names=titles,
            tiles=tiling if tiles else None, shard=shard, progress=shown, log=warn,
        )  # fmt: skip
        summary(done, out)


def _refuse_tiling(
    tiling: dict[str, Any], scene: bool, shard: str, tiles: bool | None = None
) -> None:
    """Refuse options that would have no effect; ``tiles`` is None for a command without it."""
    if scene and shard != "auto":
        raise InputError(f"--shard {shard} applies to collections of images; leave it out")
    if scene and tiles:
        raise InputError("--tiles applies to images; scenes are always tiled: leave it out")
    unused = [] if scene else sorted({*tiling} - (TILED if tiles else set()))
    if unused:
        raise InputError(
            f"--{unused[0].replace('_', '-')} applies to scenes: give one INPUT, and an --out that "
            "ends in .tif"
            + ("; or add --tiles for images" if tiles is False and tiling.keys() <= TILED else "")
        )


def _share(shard: str, progress: Any) -> Any:
    """Say which share this process has; the progress of the first one is shown."""
    from primaps.utils.progress import silent
    from primaps.utils.shards import read_shard

    share = read_shard(shard)
    if share.total > 1:
        note(f"shard {share} of the images; --shard 1/1 takes them all")
    return progress if share.number == 1 else silent
