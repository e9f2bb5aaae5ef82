"""Commands to and from other tools: export, import, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from primaps.cli.app import EXCHANGE, app, command, running
from primaps.cli.console import note, warn
from primaps.cli.options import OutOption

FORMATS = "coco, coco-panoptic, cvat, cvat-mask, labelstudio, labelme, voc, yolo-semantic, yolo, hf"
ClassesOf = Annotated[
    Path | None,
    typer.Option("--classes", help="classes.json, or a model: names and colors of the values."),
]


@command(app, "export", rich_help_panel=EXCHANGE)
def export_command(
    result: Annotated[
        Path, typer.Argument(metavar="RESULT", help="What `predict --out` or `propose` wrote.")
    ],
    images: Annotated[
        list[str], typer.Option(help="The images that it was made of; may be repeated.")
    ],
    to: Annotated[str, typer.Option(help=f"{FORMATS}, geojson or gpkg.")],
    out: OutOption,
    classes: ClassesOf = None,
    per: Annotated[
        str | None,
        typer.Option(help="class or region: what a mask is [default: what suits the tool]."),
    ] = None,
) -> None:
    """Label maps or proposals in the format of another tool."""
    with running() as progress:
        from primaps.exchange import export_labels

        done = export_labels(
            result, images, to, out, classes=classes, per=per, progress=progress, log=warn
        )
    note(f"{done.images} images: {out}")
    note(f"Next: {done.next}")


@command(app, "import", rich_help_panel=EXCHANGE)
def import_command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A file, folder or zip file of the tool.")
    ],
    source_format: Annotated[str, typer.Option("--from", help=f"{FORMATS}.")],
    out: OutOption,
    classes: ClassesOf = None,
) -> None:
    """Labels of another tool as label maps and classes.json, for `evaluate` and `export`."""
    with running() as progress:
        from primaps.exchange import import_labels

        done = import_labels(path, source_format, out, classes=classes, progress=progress)
    note(f"{done.images} label maps of {len(done.classes)} classes: {out}")
    note(f"Next: primaps evaluate MODEL IMAGES --labels {out}")


@command(app, rich_help_panel=EXCHANGE)
def push(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="What `fit --out` wrote.")],
    repo: Annotated[str, typer.Argument(metavar="ID", help="owner/name on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="For you alone.")] = False,
    picture: Annotated[
        bool,
        typer.Option("--picture/--no-picture", help="preview.png: six of your training images."),
    ] = True,
    scores: Annotated[
        Path | None, typer.Option(help="What `evaluate --json` wrote, for the model card.")
    ] = None,
) -> None:
    """A model to the Hugging Face hub, with a card; it loads by its id from then on."""
    with running():
        from primaps.exchange.hub import push_to_hub

        address = push_to_hub(model, repo, private=private, picture=picture, scores=scores)
    note(str(address))
    note(f"Next: primaps predict {repo} IMAGES --out classes/")
