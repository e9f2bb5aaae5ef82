"""Commands that exchange labels and models with other tools: export, import, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from primaps.cli.app import EXCHANGE, app, command, running
from primaps.cli.console import note, warn
from primaps.cli.options import ClassesOf, FolderArgument, OutOption
from primaps.exchange.formats import EXPORT_FORMATS, IMPORT_FORMATS


@command(app, "export", rich_help_panel=EXCHANGE)
def export_command(
    result: Annotated[
        Path, typer.Argument(metavar="RESULT", help="Folder that `predict` or `propose` wrote.")
    ],
    images: Annotated[list[str], "Image folder of the RESULT. May be repeated."],
    to: Annotated[str, f"Format: {', '.join(EXPORT_FORMATS)}."],
    out: OutOption,
    classes: ClassesOf = None,
    per: Annotated[
        Literal["class", "region"] | None,
        "What a mask covers: class (all pixels of a class) or region (connected pixels). "
        "[default: depends on the format]",
    ] = None,
) -> None:
    """Convert label maps or mask proposals to the format of another tool."""
    with running() as progress:
        from primaps.exchange.transfer import export_labels

        done = export_labels(
            result, images, to, out, classes=classes, per=per, progress=progress, log=warn
        )
    note(f"{done.images} images: {out}")
    note(f"Next: {done.next}")


@command(app, "import", rich_help_panel=EXCHANGE)
def import_command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="File, folder or zip file of the other tool.")
    ],
    source_format: Annotated[
        str, typer.Option("--from", help=f"Format: {', '.join(IMPORT_FORMATS)}.")
    ],
    out: OutOption,
    classes: ClassesOf = None,
) -> None:
    """Convert labels of another tool to label maps and classes.json."""
    with running() as progress:
        from primaps.exchange.transfer import import_labels

        done = import_labels(path, source_format, out, classes=classes, progress=progress, log=warn)
    note(f"{done.images} label maps of {len(done.classes)} classes: {out}")
    note(f"Next: primaps evaluate MODEL IMAGES --labels {out}")


@command(app, rich_help_panel=EXCHANGE)
def push(
    model: FolderArgument,
    repo: Annotated[
        str, typer.Argument(metavar="ID", help="Repository on the hub, as owner/name.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
    picture: Annotated[
        bool,
        typer.Option(
            "--picture/--no-picture", help="Include preview.png, which shows six training images."
        ),
    ] = True,
    scores: Annotated[
        Path | None, "JSON file that `evaluate --json` wrote, for the model card."
    ] = None,
) -> None:
    """Upload a model to the Hugging Face hub, with a model card."""
    with running():
        from primaps.persistence import push_to_hub

        address = push_to_hub(model, repo, private=private, picture=picture, scores=scores)
    note(str(address))
    note(f"Next: primaps predict {repo} IMAGES --out classes/")
