"""Commands for experiments of the paper: project, projection convert, reproduce."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from annotated_types import Ge

from primaps.cli.app import PAPER, app, command, running
from primaps.cli.console import note, result, warn
from primaps.cli.options import (
    CacheOption,
    DeviceOption,
    ImagesArgument,
    OutOption,
    cache_folder,
    config_options,
)
from primaps.config import Classes, Steps

if TYPE_CHECKING:
    from primaps.reproduction.registry import Experiment
    from primaps.reproduction.settings import Reproduction

projection_app = typer.Typer(
    no_args_is_help=True, help="Convert learned projections of features (STEGO, HP)."
)
app.add_typer(projection_app, name="projection", rich_help_panel=PAPER)


@projection_app.callback()
def _projection() -> None:
    """Convert learned projections of features (STEGO, HP)."""


@command(projection_app)
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="FILE", help="Checkpoint of STEGO (.ckpt) or HP (.pth).")
    ],
    out: OutOption,
    kind: Annotated[
        str | None, "Kind of the checkpoint: stego or hp. [default: detected from FILE]"
    ] = None,
) -> None:
    """Convert a checkpoint, including its backbone, to safetensors.

    Code in the checkpoint is never executed.
    """
    with running():
        from primaps.projections import convert_projection

        convert_projection(checkpoint, out, kind)
        result(out)


@command(app, rich_help_panel=PAPER)
@config_options("backbone", "size", "depth", "precision", "seed")
def project(
    images: ImagesArgument,
    classes: Annotated[Classes, "K, the number of clusters of the projected features."],
    out: OutOption,
    options: dict[str, Any],
    method: Annotated[str, "Training method: stego or hp."] = "stego",
    preset: Annotated[
        str,
        "Training settings: own, or those of the papers for DINO on cityscapes, cocostuff "
        "or potsdam.",
    ] = "own",
    steps: Annotated[Steps, "Number of training steps."] = 300,
    five_crops: Annotated[
        bool, typer.Option("--five-crops", help="Train on five crops of each image as well.")
    ] = False,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a projection of features (STEGO or HP) on images without labels.

    Use the result with `fit --projection`.
    """
    with running() as progress:
        from primaps.backbones.backbone import image_side
        from primaps.backbones.load import load_backbone
        from primaps.data import at_depth, find_images
        from primaps.features.extract import BACKBONE_BATCH, extract
        from primaps.projections import projection_settings, train_projection
        from primaps.projections.training import write_crops
        from primaps.utils.files import temporary_folder

        settings = projection_settings(method, preset)
        network = load_backbone(options["backbone"], device, precision=options["precision"])
        note(f"backbone {network.name} from {network.source}")
        side = image_side(network, options["size"], BACKBONE_BATCH)
        files = at_depth(find_images(images, exclude=out, log=warn), options["depth"])
        with temporary_folder() as folder:
            if five_crops:
                files += write_crops(files, side, folder, warn)
            extracted = extract(
                files, network, side, cache=cache_folder(cache), progress=progress, log=warn
            )
        trained = train_projection(
            extracted.views.clean, method, classes=classes, settings=settings, steps=steps,
            seed=options["seed"], progress=progress,
        )  # fmt: skip
        trained.about["backbone"] = network.weights  # loading refuses other backbones
        trained.save(out)
        result(out)


@command(app, rich_help_panel=PAPER)
@config_options(
    "epochs", "init_epochs", "min_steps", "min_init_steps", "momentum_ramp", "batch_size", "views",
    "size", "precision", optional=True,
)  # fmt: skip
def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Experiment: table1, 2, 3, 4a, 4b, 5 or 6; figure1, figure3 to figure10; all of "
            "these; projections or views, which are not in the paper and run on a folder with "
            "labels.",
        ),
    ],
    options: dict[str, Any],
    root: Annotated[
        list[str] | None, "Root folder of the data set, or NAME=FOLDER for several data sets."
    ] = None,
    dataset: Annotated[
        str | None, "Data set to run, or folder for a labeled folder of your own (--root)."
    ] = None,
    backbone: Annotated[
        list[str] | None, "Backbone. May be repeated. [default: those of the paper]"
    ] = None,
    seeds: Annotated[str, "Random seeds; each row runs once per seed."] = "0,1,2",
    projection: Annotated[
        list[str] | None,
        "Checkpoint of a projection: STEGO=PATH or HP=PATH, or "
        "HP/cityscapes/dino-vits8=PATH for one data set and backbone.",
    ] = None,
    protocol: Annotated[
        Literal["paper", "program"],
        "Evaluation protocol: paper, or program for the resizing, the ramp of the moving "
        "average and the positions of the authors' program.",
    ] = "paper",
    out: Annotated[Path, "Output folder."] = Path("reproduction"),
    cache: CacheOption = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Only list the rows, their requirements and expected times."),
    ] = False,
    budget: Annotated[
        Annotated[float, Ge(0)] | None,
        "Time budget in minutes. Runs that would exceed it do not start.",
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Run a table or figure of the paper and compare the scores with those of the paper.

    Finished runs are not repeated. Rows that cannot run remain in the table with the reason.
    Options have the defaults of the paper: 50 epochs (5 on COCO-Stuff), new views in every step, no
    ramp of the moving average. On a folder with labels, they have the defaults of `fit`.
    """
    with running() as progress:
        from primaps.reproduction import Reproduction, plan_lines
        from primaps.reproduction import reproduce as run
        from primaps.reproduction.registry import papers
        from primaps.reproduction.settings import read_pairs, read_roots, read_seeds

        kept, seconds = cache_folder(cache), None if budget is None else 60 * budget
        reproduction = Reproduction(
            out=out, dataset=dataset, backbones=tuple(backbone or ()), options=options,
            seeds=read_seeds(seeds), projections=read_pairs(projection or [], "--projection"),
            protocol=protocol, device=device, cache=Path(kept) if kept else None, budget=seconds,
        )  # fmt: skip
        names = papers(dataset) if name == "all" else [name]
        experiments = [reproduction.experiment(each) for each in names]
        reproduction = replace(reproduction, roots=read_roots(root or [], experiments))
        if plan:
            result("\n".join(plan_lines(experiments, reproduction)))
        elif name == "all":
            _reproduce_all(experiments, reproduction, progress)
        else:
            result(run(name, reproduction, progress=progress, log=warn, note=note))


def _reproduce_all(
    experiments: list[Experiment], reproduction: Reproduction, progress: Any
) -> None:
    """Run several experiments; one that cannot run does not stop the others."""
    from primaps.reproduction import reproduce as run
    from primaps.reproduction.run_context import load_source
    from primaps.utils.errors import PrimapsError

    for each, folder in reproduction.roots.items():
        load_source(each, folder)  # reports errors of the data before any work
    began, budget, errors = time.monotonic(), reproduction.budget, []
    runnable = _with_data(experiments, reproduction)
    for experiment in runnable:
        if budget is not None:
            left = max(0.0, budget - (time.monotonic() - began))
            reproduction = replace(reproduction, budget=left)
        try:
            done = run(experiment.name, reproduction, progress, log=warn, note=note)
        except PrimapsError as error:
            errors.append(error)
            if len(errors) == len(runnable):
                raise errors[0] from None
            warn(f"{experiment.name}: {error}")
            continue
        result(done)


def _with_data(experiments: list[Experiment], reproduction: Reproduction) -> list[Experiment]:
    """Return the experiments with data for at least one row.

    Without any data, return the first experiment, whose error names the missing data.
    """
    found = [
        each for each in experiments if any(r.dataset in reproduction.roots for r in each.rows)
    ]
    missing = [each.name for each in experiments if each not in found]
    if found and missing:
        note(f"not run because of missing data: {', '.join(missing)}")
    return found or experiments[:1]
