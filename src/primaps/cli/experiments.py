"""``primaps reproduce``: the paper's tables and figures."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from primaps.cli.app import app, note, progress, warn
from primaps.cli.options import Device, Store, read_views, store_folder


@app.command()
def reproduce(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="table1..table6, figure3..figure10, or all.")
    ],
    root: Annotated[
        list[str] | None,
        typer.Option(help="Folder of the data set; NAME=FOLDER where there are several."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Only this data set of the table, or folder: a folder with labels."),
    ] = None,
    backbone: Annotated[
        list[str] | None, typer.Option(help="Several may be given [default: those of the paper].")
    ] = None,
    seeds: Annotated[str, typer.Option(help="One run of each row per seed.")] = "0,1,2",
    projection: Annotated[
        list[str] | None,
        typer.Option(help="STEGO=PATH or HP=PATH: a checkpoint to fit on top of."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Of EM [default: the paper's for the data set].")
    ] = None,
    init_epochs: Annotated[int | None, typer.Option(help="Of k-means [default: 2].")] = None,
    min_steps: Annotated[int | None, typer.Option(help="Least steps of EM.")] = None,
    min_init_steps: Annotated[int | None, typer.Option(help="Least steps of k-means.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    views: Annotated[
        str | None,
        typer.Option(
            help="Augmented views per image, kept, or fresh [default: fresh as in the paper, 0 for "
            "a folder]."
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Shorter side in pixels.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("reproduction"),
    store: Store = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only list the rows, what they need, and their time.")
    ] = False,
    budget: Annotated[
        float | None, typer.Option(help="Minutes: begin no row that would go beyond.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Run a table or figure of the paper and report ours beside the paper's figures.

    Rows that were run before are not run again. Those that cannot run here stay in the table with
    the reason.
    """
    options: dict[str, Any] = {
        "epochs": epochs, "init_epochs": init_epochs, "min_steps": min_steps,
        "min_init_steps": min_init_steps, "batch_size": batch_size, "size": size,
        "precision": precision,
    }  # fmt: skip
    with progress() as report:
        from primaps.experiments import TABLES, Settings, plan_lines
        from primaps.experiments import reproduce as run
        from primaps.experiments.settings import read_pairs, read_roots, read_seeds

        chosen = {key: value for key, value in options.items() if value is not None}
        if views is not None:
            chosen["views"] = read_views(views)
        kept = store_folder(store)
        settings = Settings(
            out=out, dataset=dataset, backbones=tuple(backbone or ()), options=chosen,
            seeds=read_seeds(seeds), projections=read_pairs(projection or [], "--projection"),
            device=device, store=Path(kept) if kept else None,
        )  # fmt: skip
        names = list(TABLES) if name == "all" else [name]
        experiments = [settings.experiment(each) for each in names]
        settings = replace(settings, roots=read_roots(root or [], experiments))
        if plan:
            print("\n".join(plan_lines(experiments, settings)))
            return
        began = time.monotonic()
        for each in names:
            if budget is not None:  # what earlier tables left of it
                left = max(0.0, 60 * budget - (time.monotonic() - began))
                settings = replace(settings, budget=left)
            print(run(each, settings, report=report, problem=warn, note=note))
