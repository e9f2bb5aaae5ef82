"""The studio: studio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from primaps.cli.app import CLASSES, app, command, running
from primaps.cli.console import note
from primaps.cli.options import DeviceOption, config_options, whole_number
from primaps.utils.typed import Range


@command(app, rich_help_panel=CLASSES)
@config_options("backbone", "size", "recipe", "precision", "seed", optional=True)
def studio(
    photos: Annotated[
        Path,
        typer.Argument(metavar="PHOTOS", help="A folder (recursive); it stays as it is."),
    ],
    options: dict[str, Any],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the studio [default: NAME-studio, here].")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="A model that is there already, to edit its classes.")
    ] = None,
    classes: Annotated[str, typer.Option(help="What is proposed: a number, or auto.")] = "auto",
    port: Annotated[int, Range(0, 65535), typer.Option(help="0 takes a free one.")] = 0,
    host: Annotated[
        str, typer.Option(help="To listen on; other than this machine's needs --allow-host.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Name under which other machines reach this one; may be repeated."),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
    device: DeviceOption = "auto",
) -> None:
    """A page in the browser: from photos to named, corrected, exported classes."""
    with running(bars=False):
        from primaps.studio.serve import run_studio

        run_studio(
            photos, out, model=model, host=host, port=port, allow_host=allow_host or (),
            classes=whole_number(classes), browser=browser,
            device=device, told=note, **options,
        )  # fmt: skip
