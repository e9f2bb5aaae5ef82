"""Options of scenes that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from annotated_types import Interval

from primaps.config import CrfTile
from primaps.utils.errors import InputError

CrfTileOption = Annotated[
    CrfTile | None,
    typer.Option(help="Scenes: side of the tiles that the CRF refines, in network pixels "
                      "[default: 840, smaller above 12 classes]."),
]  # fmt: skip
TileOverlapOption = Annotated[
    Annotated[int, Interval(ge=0, le=1 << 16)] | None,
    typer.Option(help="Scenes: overlap of neighboring tiles, in network pixels [default: an eighth "
                      "of --size]."),
]  # fmt: skip
ScaleOption = Annotated[
    Annotated[float, Interval(ge=1e-6, le=1e6)] | None,
    typer.Option(help="Scenes: scene pixels per network pixel, along each side [default: 1]."),
]
MppOption = Annotated[
    Annotated[float, Interval(ge=1e-6, le=1e6)] | None,
    typer.Option(help="Scenes: ground size of a network pixel in meters, in place of --scale."),
]
BandsOption = Annotated[
    str | None,
    typer.Option(help="Scenes: bands to use as red, green and blue, such as 4,3,2 [default: as "
                      "the file declares]."),
]  # fmt: skip
StretchOption = Annotated[
    str | None,
    typer.Option(help="Scenes: band values that become black and white, such as 0,3000 [default: "
                      "2nd and 98th percentile of the scene]."),
]  # fmt: skip


def tiling_options(
    tile_overlap: int | None, scale: float | None, mpp: float | None, bands: str | None,
    stretch: str | None, crf_tile: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the fields of :class:`primaps.scenes.tiling.TilingOptions` that were given.

    Raises:
        InputError: bands or stretch are not numbers.
    """
    given = {"tile_overlap": tile_overlap, "scale": scale, "mpp": mpp, "crf_tile": crf_tile}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    try:
        if bands is not None:
            options["bands"] = [int(band) for band in bands.split(",")]
    except ValueError:
        raise InputError(
            f"--bands: {bands!r} is not a list of band numbers; write it as 4,3,2"
        ) from None
    try:
        if stretch is not None:
            low, high = map(float, stretch.split(","))
            options["stretch"] = (low, high)
    except ValueError:
        raise InputError(f"--stretch: {stretch!r} is not two numbers; write it as 0,3000") from None
    return options
