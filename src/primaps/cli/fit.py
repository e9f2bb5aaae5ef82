"""Commands that fit models: fit, probe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from annotated_types import Interval

from primaps.cli.app import IMAGES, SCORES, app, command, running
from primaps.cli.console import err, note, result, warn
from primaps.cli.options import (
    CacheContentOption,
    CacheOption,
    DatasetOption,
    DeviceOption,
    EngineOption,
    ImagesArgument,
    OutOption,
    ProjectionOption,
    SplitOption,
    TensorBoardOption,
    cache_folder,
    config_options,
    dataset_by_name,
    label_options,
    labeled_images,
    read_tiling,
    tiling_options,
)
from primaps.config import CacheContent, Classes
from primaps.utils.errors import InputError, MissingPackageError

ReplaceOption = Annotated[
    bool,
    typer.Option(
        "--replace",
        help="If --out has a model with names, edits or annotations, keep it as OUT.bak-N.",
    ),
]


@command(app, rich_help_panel=IMAGES)
@config_options()
@tiling_options("scale", "mpp", "bands", "stretch", "nodata", "alpha")
def fit(
    images: ImagesArgument,
    out: OutOption,
    classes: Annotated[
        str,
        "K, the number of classes to find. A range LOW-HIGH or auto selects K by the "
        "stability of the classes.",
    ],
    options: dict[str, Any],
    tiling: dict[str, Any],
    dataset: DatasetOption = None,
    split: SplitOption = None,
    sample: Annotated[
        Annotated[int, Interval(ge=1, le=10**9)] | None,
        "Number of images to fit on, sampled with --seed. [default: all]",
    ] = None,
    projection: ProjectionOption = None,
    cache: CacheOption = None,
    cache_content: CacheContentOption = "auto",
    scene_tiles: Annotated[
        Annotated[int, Interval(ge=1, le=10**8)] | None,
        typer.Option(
            help="Fit on this number of tiles, sampled with --seed. IMAGES are then scenes.",
            rich_help_panel="Scenes",
        ),
    ] = None,
    replace: ReplaceOption = False,
    allow_collapsed: Annotated[
        bool,
        typer.Option(
            "--allow-collapsed",
            help="Exit with status 0 instead of 3 if nearly everything falls into one class.",
        ),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Only print the expected time, memory and disk space."),
    ] = False,
    tensorboard: TensorBoardOption = None,
    engine: EngineOption = "torch",
    device: DeviceOption = "auto",
) -> None:
    """Find K classes in images without labels and write the model.

    The command ends with a verdict on the fit: good, doubtful or failed. The folder --out can be
    used with `predict`, `classes`, `evaluate` and `studio`. After an interruption, the same command
    continues the fit.
    """
    with running() as progress, _process(device) as own:
        from primaps.data.collection import sample_items
        from primaps.model import PriMaPsEM
        from primaps.persistence import check_replaced
        from primaps.planning import plan as estimate

        if not plan:
            check_replaced(out, replace)  # before the work
        data = dataset_by_name(dataset, images, split, "train")
        if data is not None and data.incomplete:
            warn(data.incomplete)
        found = _files(images, out, data, options, scene_tiles, read_tiling(tiling), own, progress)
        files = sample_items(found, sample, options["seed"])
        options |= {"projection": projection, "engine": engine, "device": own}
        evidence: list[Any] = []
        if classes.isdecimal():
            options["classes"] = int(classes)
        else:
            evidence, options["classes"] = _choose(
                classes, options, files, cache, cache_content, progress
            )
        model = PriMaPsEM(**options)
        if plan:
            expected = estimate(model, files, cache_folder(cache), cache_content, progress)
            result("\n".join(dataclasses.replace(expected, collection=len(found)).lines()))
            return
        note(_schedule_text(model, len(files)))
        _train(
            model, files, None, out, cache, tensorboard, progress, evidence, cache_content, replace
        )
        if model.verdict is not None and model.verdict.level == "good":
            note("the fit is good: its classes separate the collection")
        if model.verdict is not None and model.verdict.level == "failed" and not allow_collapsed:
            raise typer.Exit(3)


@command(app, rich_help_panel=SCORES)
@config_options(
    "backbone", "size", "epochs", "min_steps", "batch_size", "learning_rate", "depth", "precision",
    "seed",
)  # fmt: skip
@label_options()
def probe(
    images: ImagesArgument,
    out: OutOption,
    options: dict[str, Any],
    located: dict[str, Any],
    classes: Annotated[Classes | None, "Number of classes. [default: from classes.json]"] = None,
    projection: ProjectionOption = None,
    cache: CacheOption = None,
    replace: ReplaceOption = False,
    tensorboard: TensorBoardOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a linear probe on labels, the upper bound in the paper."""
    with running() as progress, _process(device) as own:
        from primaps.model import PriMaPsEM

        data = labeled_images(images, "train", **located)
        if data.incomplete:
            warn(data.incomplete)
        if classes is None and data.layout.unnamed:
            raise InputError(
                f"{located['labels'] or images} has no classes.json; add it or give --classes"
            )
        model = PriMaPsEM(
            classes or len(data.classes), method="probe", projection=projection, device=own,
            **options,
        )  # fmt: skip
        _train(model, data.samples, data, out, cache, tensorboard, progress, replace=replace)


def _files(
    images: str, out: Path, data: Any, options: dict[str, Any], scene_tiles: int | None,
    tiling: dict[str, Any], device: str, progress: Any,
) -> Any:  # fmt: skip
    """Return the images to fit on: those of a data set, of a folder, or tiles of scenes."""
    from primaps.backbones.load import load_backbone
    from primaps.data import find_images
    from primaps.scenes.sample import scene_tiles as sample_tiles

    if scene_tiles is None:
        if tiling:
            raise InputError(f"--{min(tiling)} applies to scenes; add --scene-tiles N")
        return find_images(images, exclude=out) if data is None else data.samples
    if data is not None:
        raise InputError("--scene-tiles cannot be combined with --dataset; give one of them")
    size = options["size"] or load_backbone(options["backbone"], device).default_size
    found = sample_tiles(
        images, scene_tiles, size, seed=options["seed"], progress=progress, log=warn, **tiling
    )
    note(f"{len(found)} tiles of {size} px")
    return found


def _schedule_text(model: Any, images: int) -> str:
    """Describe the number of training steps of a fit."""
    from primaps.em.fit import schedule

    steps = schedule(model.config, images, model.clusters)
    text = f"{images} images of {model.size} px, {model.config.classes} classes: "
    if steps.init_steps:
        text += f"{steps.init_steps} k-means steps"
        text += f" in each of {steps.restarts} restarts" if steps.restarts > 1 else ""
    else:
        text += f"initialized with the {model.clusters} clusters of the projection"
    text += f", {steps.steps} EM steps" if steps.steps else ""
    return f"{text}, batches of {min(model.config.batch_size, images)} images"


def _choose(
    wanted: str,
    options: dict[str, Any],
    files: Any,
    cache: str | None,
    cache_content: CacheContent,
    progress: Any,
) -> tuple[list[Any], int]:
    """Print the stability for several numbers of classes and select one of them."""
    from primaps.classes.class_count import choice_of
    from primaps.fitting import class_evidence

    evidence = class_evidence(
        wanted, options, files, cache=cache_folder(cache), cache_content=cache_content,
        progress=progress, log=warn,
    )  # fmt: skip
    for one in evidence:
        bar = "#" * round(40 * max(0.0, one.stability))
        note(f"{one.classes:>4} classes: stability {one.stability:.2f} ± {one.error:.2f} {bar}")
    choice = choice_of(evidence)
    note(
        f"suggested numbers of classes: {choice.coarse} (coarse), {choice.middle} (middle), "
        f"{choice.fine} (fine); using {choice.middle}. The others can be cut from its class tree "
        "with --classes, or fitted."
    )
    return evidence, choice.middle


@contextmanager
def _process(device: str) -> Iterator[str]:
    """Join the processes of torchrun and yield the device; only the first process prints."""
    from primaps.utils import distributed

    with distributed.group(device) as own:
        err.quiet = distributed.rank() > 0
        yield own


def _train(
    model: Any, files: Any, labels: Any, out: Path, cache: str | None, tensorboard: Path | None,
    progress: Any, evidence: Any = (), cache_content: CacheContent = "auto", replace: bool = False,
) -> None:  # fmt: skip
    """Fit the model, write it and print its folder."""
    from primaps.fitting import fit_folder
    from primaps.utils.distributed import rank

    note(f"backbone {model.backbone.name} from {model.backbone.source}")
    with _tensorboard(tensorboard) as write:
        fit_folder(
            model, files, out, labels=labels, evidence=evidence, replace=replace,
            cache=cache_folder(cache), cache_content=cache_content, progress=progress, log=warn,
            on_epoch=write,
        )  # fmt: skip
    if rank() == 0:
        result(out)


@contextmanager
def _tensorboard(folder: Path | None) -> Iterator[Any]:
    """Yield an ``on_epoch`` callback that writes to TensorBoard, or None without a folder."""
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingPackageError(
            "--tensorboard needs the package tensorboard: pip install 'primaps[tensorboard]'"
        ) from None

    def write(metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            if isinstance(value, float):
                writer.add_scalar(f"{metrics['stage']}/{name}", value, metrics["step"])

    with SummaryWriter(str(folder)) as writer:
        yield write
