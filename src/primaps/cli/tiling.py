"""Options of how a scene is looked at, which several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from primaps.cli.options import bounds
from primaps.config import Window
from primaps.utils.errors import InputError
from primaps.utils.typed import Range

WindowOption = Annotated[
    int | None,
    bounds(Window),
    typer.Option(help="Scenes: side of what the CRF refines at once, in pixels of the network "
                      "[default: 840, less from 13 classes]."),
]  # fmt: skip
OverlapOption = Annotated[
    int | None,
    Range(0, 1 << 16),
    typer.Option(help="Scenes: pixels that neighboring crops have in common [default: an eighth "
                      "of --size]."),
]  # fmt: skip
ScaleOption = Annotated[
    float | None,
    Range(1e-6, 1e6),
    typer.Option(help="Scenes: pixels per side that one pixel of the network covers [default: 1]."),
]
MppOption = Annotated[
    float | None,
    Range(1e-6, 1e6),
    typer.Option(help="Scenes: meters that one pixel of the network covers."),
]
BandsOption = Annotated[
    str | None,
    typer.Option(help="Scenes: bands shown as red, green and blue, such as 4,3,2 [default: the "
                      "file's]."),
]  # fmt: skip
StretchOption = Annotated[
    str | None,
    typer.Option(help="Scenes: values that become black and white, such as 0,3000 [default: 2nd "
                      "and 98th percentile of the scene]."),
]  # fmt: skip


def look_options(
    overlap: int | None, scale: float | None, mpp: float | None, bands: str | None,
    stretch: str | None, window: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Fields of :class:`primaps.scenes.tiling.Look` that were given.

    Raises:
        InputError: bands or stretch are not numbers.
    """
    numbers = {"overlap": overlap, "scale": scale, "mpp": mpp, "window": window}
    look: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    try:
        if bands is not None:
            look["bands"] = [int(band) for band in bands.split(",")]
    except ValueError:
        raise InputError(f"--bands is {bands!r}; it takes numbers of bands: 4,3,2") from None
    try:
        if stretch is not None:
            low, high = map(float, stretch.split(","))
            look["stretch"] = (low, high)
    except ValueError:
        raise InputError(f"--stretch is {stretch!r}; it takes two numbers: 0,3000") from None
    return look
