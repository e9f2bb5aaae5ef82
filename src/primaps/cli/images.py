"""Commands on images without labels: demo, propose, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from primaps.cli.app import IMAGES, app, command, running
from primaps.cli.console import note, result, summary, warn
from primaps.cli.options import (
    CutOption,
    DeviceOption,
    EngineOption,
    InputsArgument,
    ModelArgument,
    ResultOption,
    ShardOption,
    config_options,
    fitted_model,
    inference_options,
    read_tiling,
    tiling_options,
)
from primaps.utils.errors import InputError

TILED = {"tile_overlap", "scale", "crf_tile"}
"""Tiling options that predict --tiles applies to images as well."""


@command(app, rich_help_panel=IMAGES)
def demo(
    out: Annotated[Path, "Output folder."] = Path("primaps-demo"),
    device: DeviceOption = "auto",
) -> None:
    """Run propose, fit and predict on six sample images."""
    with running() as progress:
        from primaps.demo import demo as run

        overlays = run(out, device=device, progress=progress)
        result(overlays)


@command(app, rich_help_panel=IMAGES)
@config_options("backbone", "threshold", "mask_crf", "size", "depth")
@tiling_options("tile_overlap", "scale", "mpp", "bands", "stretch", "nodata", "alpha")
def propose(
    inputs: InputsArgument,
    out: ResultOption,
    options: dict[str, Any],
    tiling: dict[str, Any],
    explain: Annotated[
        bool, typer.Option("--explain", help="Also draw the steps that lead to the masks.")
    ] = False,
    shard: ShardOption = "auto",
    engine: EngineOption = "torch",
    device: DeviceOption = "auto",
) -> None:
    """Compute mask proposals (PriMaPs) of images, with an overlay for each.

    A mask map has the value 0 for ignored pixels and 1, 2, ... for the masks. For a scene of any
    size, give one INPUT and an --out that ends in .tif.
    """
    with running() as progress:
        from primaps.backbones.load import load_backbone
        from primaps.batch import explain_files, propose_files
        from primaps.scenes.propose import propose_scene
        from primaps.scenes.tiling import is_scene
        from primaps.utils.distributed import own_device

        tiles = read_tiling(tiling)
        scene = is_scene(inputs, out)
        _refuse_tiling(tiles, scene, shard)
        network = load_backbone(options["backbone"], own_device(device), engine=engine)
        options["backbone"] = network
        note(f"backbone {network.name} from {network.source}")
        if scene:
            if options.pop("depth") is not None:
                raise InputError("--depth applies to image collections; give --stretch for a scene")
            if explain:
                raise InputError("--explain applies to images; omit it for a scene")
            count = propose_scene(inputs[0], out, progress=progress, log=warn, **options, **tiles)
            note(f"kept from an earlier run: {out}" if count is None else f"{count} masks: {out}")
            return
        shown = _shard_progress(shard, progress)
        done = propose_files(inputs, out, shard=shard, progress=shown, log=warn, **options)
        if explain:
            explain_files(
                inputs, out, shard=shard, progress=shown, log=lambda sentence: None, **options
            )
        summary(done, out)


@command(app, rich_help_panel=IMAGES)
@inference_options(precision="auto")
@tiling_options("tile_overlap", "crf_tile", "scale", "mpp", "bands", "stretch", "nodata", "alpha")
def predict(
    model: ModelArgument,
    inputs: InputsArgument,
    out: ResultOption,
    inference: dict[str, Any],
    tiling: dict[str, Any],
    names: Annotated[str | None, "Class names for the legend, separated by commas."] = None,
    classes: CutOption = None,
    tiles: Annotated[
        bool,
        typer.Option(
            "--tiles", help="Process images in overlapping tiles at native resolution, like scenes."
        ),
    ] = False,
    polygons: Annotated[
        Path | None,
        typer.Option(
            help="GeoPackage (.gpkg) for the regions of the scene.", rich_help_panel="Scenes"
        ),
    ] = None,
    shard: ShardOption = "auto",
    engine: EngineOption = "torch",
    device: DeviceOption = "auto",
) -> None:
    """Write a label map of every image, with an overlay and a legend.

    For a georeferenced label map of a scene of any size, give one INPUT and an --out that ends in
    .tif.
    """
    with running() as progress:
        from primaps.batch import predict_files
        from primaps.scenes.predict import predict_scene
        from primaps.scenes.tiling import is_scene
        from primaps.utils.distributed import own_device

        chosen = read_tiling(tiling)
        scene = is_scene(inputs, out)
        _refuse_tiling(chosen | ({"polygons": polygons} if polygons else {}), scene, shard, tiles)
        network = fitted_model(model, own_device(device), classes, engine)
        titles = names.split(",") if names else None
        if scene:
            new = predict_scene(
                network, inputs[0], out, names=titles, polygons=polygons, progress=progress,
                log=warn, **inference, **chosen,
            )  # fmt: skip
            note(f"written: {out}" if new else f"kept from an earlier run: {out}")
            return
        shown = _shard_progress(shard, progress)
        done = predict_files(
            network, inputs, out, names=titles, tiles=chosen if tiles else None, shard=shard,
            progress=shown, log=warn, **inference,
        )  # fmt: skip
        summary(done, out)


def _refuse_tiling(
    tiling: dict[str, Any], scene: bool, shard: str, tiles: bool | None = None
) -> None:
    """Refuse options that would have no effect; ``tiles`` is None for a command without it."""
    if scene and shard != "auto":
        raise InputError(f"--shard {shard} applies to image collections; omit it for a scene")
    if scene and tiles:
        raise InputError("--tiles applies to images; scenes are always tiled, omit the option")
    unused = [] if scene else sorted({*tiling} - (TILED if tiles else set()))
    if unused:
        raise InputError(
            f"--{unused[0].replace('_', '-')} applies to scenes: give one INPUT and an --out that "
            "ends in .tif"
            + (", or add --tiles for images" if tiles is False and tiling.keys() <= TILED else "")
        )


def _shard_progress(shard: str, progress: Any) -> Any:
    """Print the shard of this process; return the progress callback of the first shard only."""
    from primaps.utils.progress import silent
    from primaps.utils.shards import read_shard

    share = read_shard(shard)
    if share.total > 1:
        note(f"shard {share} of the images; --shard 1/1 processes all of them")
    return progress if share.number == 1 else silent
