"""``primaps data``: labeled data sets, checked and prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from primaps.cli.app import DATA, app, command, running
from primaps.cli.console import note, result, visible
from primaps.utils.errors import InputError

data_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Labeled data sets: check, prepare."
)
app.add_typer(data_app, name="data", rich_help_panel=DATA)
Root = Annotated[Path, typer.Argument(metavar="ROOT", help="Folder of the data set.")]


@command(data_app)
def check(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="cityscapes, cocostuff, potsdam or folder.")
    ],
    root: Root,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not read the values of the label maps.")
    ] = False,
) -> None:
    """Is a data set on disk what the protocol expects? Exit status 1 if something is wrong."""
    wrong = 0
    with running() as progress:
        from primaps.data.check import check_dataset

        for finding in check_dataset(name, root, quick, progress):
            color = {"fine": "green", "odd": "yellow", "wrong": "red"}[finding.level]
            line = Text.assemble((finding.level, color), f": {visible(finding.text)}")
            Console(soft_wrap=True).print(line)
            wrong += finding.level == "wrong"
    if wrong:
        raise typer.Exit(1)


@command(data_app)
def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="potsdam or cocostuff.")],
    raw: Annotated[Path, typer.Argument(metavar="RAW", help="Folder of the downloads.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write the data set to.")],
    make_lists: Annotated[
        bool,
        typer.Option(
            "--make-lists",
            help="cocostuff: make missing curated lists by their rule (75 % of the pixels stuff).",
        ),
    ] = False,
) -> None:
    """Bring downloads into the layout of the field: cut ISPRS tiles, lay out COCO-Stuff."""
    with running() as progress:
        from primaps.data.prepare_cocostuff import prepare_cocostuff
        from primaps.data.prepare_potsdam import prepare_potsdam

        if name == "potsdam" and not make_lists:
            done = prepare_potsdam(raw, out, progress, note)
        elif name == "cocostuff":
            done = prepare_cocostuff(raw, out, make_lists, progress, note)
        else:
            raise InputError(
                "prepare knows `potsdam` and `cocostuff`, and --make-lists is for the latter; "
                "Cityscapes needs no preparation"
            )
    for part, number in done.items():
        result(f"{out / part}: {number:,}")
