"""``primaps reproduce``: the paper's tables and figures."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from annotated_types import Ge

from primaps.cli.app import PAPER, app, command, running
from primaps.cli.console import note, result, warn
from primaps.cli.options import (
    CacheOption,
    DeviceOption,
    cache_folder,
    config_options,
)

if TYPE_CHECKING:
    from primaps.reproduction.reproduction import Reproduction
    from primaps.reproduction.rows import Experiment

RUN_OPTIONS = (
    "epochs", "init_epochs", "min_steps", "min_init_steps", "momentum_ramp", "batch_size", "views",
    "size", "precision",
)  # fmt: skip


@command(app, rich_help_panel=PAPER)
@config_options(*RUN_OPTIONS, optional=True)
def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="table1, 2, 3, 4a, 4b, 5, 6; figure1, figure3..figure10; all of these; or "
            "projections or views, of ours, for a folder with labels.",
        ),
    ],
    options: dict[str, Any],
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
        typer.Option(
            help="STEGO=PATH or HP=PATH, a checkpoint to fit on top of; "
            "HP/cityscapes/dino-vits8=PATH where there are several."
        ),
    ] = None,
    protocol: Annotated[
        Literal["paper", "program"],
        typer.Option(
            help="paper, or program: resizing at evaluation, ramp of the moving average and "
            "positions as in the authors' program."
        ),
    ] = "paper",
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("reproduction"),
    cache: CacheOption = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only list the rows, what they need, and their time.")
    ] = False,
    budget: Annotated[
        Annotated[float, Ge(0)] | None,
        typer.Option(help="Minutes: begin no run that would go beyond."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Run a table or figure of the paper and report ours beside the paper's figures.

    What was run before is not run again. Rows that cannot run here stay in the table with the
    reason; with all, tables and figures of which no row can are passed over. Options left out are
    the paper's: 50 epochs, 5 on COCO-Stuff, new views in every step, no ramp of the moving average;
    on a folder with labels they are those of fit.
    """
    with running() as progress:
        from primaps.reproduction import Reproduction, plan_lines
        from primaps.reproduction import reproduce as run
        from primaps.reproduction.data_sources import load_source
        from primaps.reproduction.registry import papers
        from primaps.reproduction.reproduction import read_pairs, read_roots, read_seeds
        from primaps.utils.errors import PrimapsError

        kept, seconds = cache_folder(cache), None if budget is None else 60 * budget
        reproduction = Reproduction(
            out=out, dataset=dataset, backbones=tuple(backbone or ()), options=options,
            seeds=read_seeds(seeds), projections=read_pairs(projection or [], "--projection"),
            protocol=cast(Any, protocol), device=device, cache=Path(kept) if kept else None,
            budget=seconds,
        )  # fmt: skip
        names = papers(dataset) if name == "all" else [name]
        experiments = [reproduction.experiment(each) for each in names]
        reproduction = replace(reproduction, roots=read_roots(root or [], experiments))
        if plan:
            result("\n".join(plan_lines(experiments, reproduction)))
            return
        if name != "all":
            result(run(name, reproduction, progress=progress, log=warn, note=note))
            return
        for each, folder in reproduction.roots.items():
            load_source(each, folder)  # what is wrong with data is said before any work
        began, errors, todo = time.monotonic(), [], _with_data(experiments, reproduction)
        for experiment in todo:
            if seconds is not None:  # what earlier ones left of it
                left = max(0.0, seconds - (time.monotonic() - began))
                reproduction = replace(reproduction, budget=left)
            try:
                done = run(experiment.name, reproduction, progress, log=warn, note=note)
            except PrimapsError as error:
                errors.append(error)
                if len(errors) == len(todo):  # nothing could run
                    raise errors[0] from None
                warn(f"{experiment.name}: not run, {error}")
                continue
            result(done)


def _with_data(experiments: list[Experiment], reproduction: Reproduction) -> list[Experiment]:
    """Those of which a row can run; all if none can, so that the first one says what is asked."""
    found = [
        each for each in experiments if any(r.dataset in reproduction.roots for r in each.rows)
    ]
    lacking = [each.name for each in experiments if each not in found]
    if found and lacking:
        note(f"not run, there is no data: {', '.join(lacking)}")
    return found or experiments[:1]
