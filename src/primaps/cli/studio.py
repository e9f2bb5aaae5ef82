"""The command ``primaps studio``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from annotated_types import Interval

from primaps.cli.app import CLASSES, app, command, running
from primaps.cli.console import note
from primaps.cli.options import DeviceOption, config_options
from primaps.config import Classes


@command(app, rich_help_panel=CLASSES)
@config_options("backbone", "size", "recipe", "precision", "seed", optional=True)
def studio(
    images: Annotated[
        Path,
        typer.Argument(metavar="IMAGES", help="Image folder, searched recursively. Not modified."),
    ],
    options: dict[str, Any],
    out: Annotated[
        Path | None, typer.Option(help="Output folder of the studio. [default: NAME-studio]")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder of an existing model whose classes are edited.")
    ] = None,
    classes: Annotated[
        Classes | Literal["auto"],
        typer.Option(help="Number of classes that the page suggests, or auto."),
    ] = "auto",
    port: Annotated[
        int, Interval(ge=0, le=65535), typer.Option(help="Port to listen on; 0 selects a free one.")
    ] = 0,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. Other than loopback also needs --allow-host."),
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Name under which other machines reach this one. May be repeated."),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
    device: DeviceOption = "auto",
) -> None:
    """Name, correct, audit and export the classes of an image folder in the browser."""
    with running(bars=False):
        from primaps.studio.serve import run_studio

        run_studio(
            images, out, model=model, host=host, port=port, allow_host=allow_host or (),
            classes=classes, browser=browser,
            device=device, log=note, **options,
        )  # fmt: skip
