"""Commands that fit: fit, probe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
    IgnoreIndexOption,
    ImagesArgument,
    LabelsOption,
    ModelOutOption,
    ProjectionOption,
    SplitOption,
    TensorBoardOption,
    cache_folder,
    config_options,
    dataset_by_name,
    labeled_images,
)
from primaps.cli.tiling import BandsOption, MppOption, ScaleOption, StretchOption, tiling_options
from primaps.config import CacheContent, Classes
from primaps.utils.errors import InputError, MissingPackageError

PROBE_OPTIONS = (
    "backbone", "size", "epochs", "min_steps", "batch_size", "learning_rate", "precision", "seed",
)  # fmt: skip


@command(app, rich_help_panel=IMAGES)
@config_options()
def fit(
    images: ImagesArgument,
    out: ModelOutOption,
    classes: Annotated[
        str, typer.Option(help="K, the number of classes to find; LOW-HIGH or auto to choose one.")
    ],
    options: dict[str, Any],
    dataset: DatasetOption = None,
    split: SplitOption = None,
    projection: ProjectionOption = None,
    cache: CacheOption = None,
    cache_content: CacheContentOption = "auto",
    scene_tiles: Annotated[
        Annotated[int, Interval(ge=1, le=10**8)] | None,
        typer.Option(help="Fit on this many tiles, sampled from scenes by --seed."),
    ] = None,
    scale: ScaleOption = None,
    mpp: MppOption = None,
    bands: BandsOption = None,
    stretch: StretchOption = None,
    sample: Annotated[
        Annotated[int, Interval(ge=1, le=10**9)] | None,
        typer.Option(help="Fit to this many of the images, drawn by --seed."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it will take: bytes, memory, time.")
    ] = False,
    tensorboard: TensorBoardOption = None,
    engine: EngineOption = "torch",
    device: DeviceOption = "auto",
) -> None:
    """Find K classes in unlabeled images and write the model."""
    with running() as progress, _process(device) as own:
        from primaps.data.sampling import drawn
        from primaps.em.fit import schedule
        from primaps.model import PriMaPsEM
        from primaps.planning import plan as estimate

        data = dataset_by_name(dataset, images, split, "train")
        if data is not None and data.incomplete:
            warn(data.incomplete)
        tiling = tiling_options(None, scale, mpp, bands, stretch)
        found = _files(images, out, data, options, scene_tiles, tiling, own, progress)
        files = drawn(found, sample, options["seed"])
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
            result("\n".join(replace(expected, collection=len(found)).lines()))
            return
        steps = schedule(model.config, len(files), model.clusters)
        number = model.config.classes
        text = f"{len(files)} images of {model.size} px, {number} classes: "
        text += f"k-means {steps.init_steps} steps"
        text += f" of each of {steps.restarts} restarts" if steps.restarts > 1 else ""
        if not steps.init_steps:
            text = f"{text.partition(': ')[0]}: from the {number} clusters of the projection"
        text += f", EM {steps.steps} steps" if steps.steps else ""
        note(f"{text}, batches of {min(model.config.batch_size, len(files))} images")
        _train(model, files, None, out, cache, tensorboard, progress, evidence, cache_content)
        last = model.history_[-1] if model.history_ else {}
        if empty := last.get("empty", []):
            note(f"{len(empty)} of {number} classes are empty at the end; fewer classes may do")


@command(app, rich_help_panel=SCORES)
@config_options(*PROBE_OPTIONS)
def probe(
    images: ImagesArgument,
    out: ModelOutOption,
    options: dict[str, Any],
    labels: LabelsOption = None,
    dataset: DatasetOption = None,
    split: SplitOption = None,
    ignore_index: IgnoreIndexOption = None,
    classes: Annotated[
        Classes | None,
        typer.Option(help="Number of classes [default: those of classes.json]."),
    ] = None,
    projection: ProjectionOption = None,
    cache: CacheOption = None,
    tensorboard: TensorBoardOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a linear probe on labels: the upper bound that the paper compares with."""
    with running() as progress, _process(device) as own:
        from primaps.model import PriMaPsEM

        data = labeled_images(images, labels, dataset, split, "train", ignore_index)
        if data.incomplete:
            warn(data.incomplete)
        if classes is None and data.layout.guessed:
            raise InputError(
                f"{labels or images} has no classes.json: give the number of --classes"
            )
        model = PriMaPsEM(
            classes or len(data.classes), method="probe", projection=projection, device=own,
            **options,
        )  # fmt: skip
        _train(model, data.samples, data, out, cache, tensorboard, progress)


def _files(
    images: str, out: Path, data: Any, options: dict[str, Any], count: int | None,
    tiling: dict[str, Any], device: str, progress: Any,
) -> Any:  # fmt: skip
    """Return the images to fit on: of a data set, of a folder, or tiles of scenes."""
    from primaps.backbones.load import load_backbone
    from primaps.data import find_images
    from primaps.scenes.sample import scene_tiles

    if count is None:
        if tiling:
            raise InputError(f"--{min(tiling)} applies to scenes: give --scene-tiles N as well")
        return find_images(images, exclude=out) if data is None else data.samples
    if data is not None:
        raise InputError("--scene-tiles and --dataset exclude each other: give one of them")
    size = options["size"] or load_backbone(options["backbone"], device).default_size
    found = scene_tiles(images, count, size, seed=options["seed"], progress=progress, **tiling)
    note(f"{len(found)} tiles of {size} px")
    return found


def _choose(
    wanted: str,
    options: dict[str, Any],
    files: Any,
    cache: str | None,
    cache_content: CacheContent,
    progress: Any,
) -> tuple[list[Any], int]:
    """Evidence for several K, printed, and the middle one of the three that it speaks for."""
    from primaps.classes.choose import choice_of
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
        f"coarse {choice.coarse}, middle {choice.middle}, fine {choice.fine}: taking the middle "
        "one; the others are cuts of its tree (--classes) or fits of their own"
    )
    return evidence, choice.middle


@contextmanager
def _process(device: str) -> Iterator[str]:
    """Join the other processes under torchrun; only the first one speaks."""
    from primaps.utils import distributed

    with distributed.group(device) as own:
        err.quiet = distributed.rank() > 0
        yield own


def _train(
    model: Any, files: Any, labels: Any, out: Path, cache: str | None, tensorboard: Path | None,
    progress: Any, evidence: Any = (), cache_content: CacheContent = "auto",
) -> None:  # fmt: skip
    """Fit, with figures for TensorBoard if they are wanted, and say where the model is."""
    from primaps.fitting import fit_folder
    from primaps.utils.distributed import rank

    note(f"backbone {model.backbone.name} from {model.backbone.source}")
    with _tensorboard(tensorboard) as write:
        fit_folder(
            model, files, out, labels=labels, evidence=evidence, cache=cache_folder(cache),
            cache_content=cache_content, progress=progress, log=warn, on_epoch=write,
        )  # fmt: skip
    if rank() == 0:
        result(out)


@contextmanager
def _tensorboard(folder: Path | None) -> Iterator[Any]:
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingPackageError(
            "--tensorboard needs its package: pip install 'primaps[tensorboard]'"
        ) from None

    def write(line: dict[str, Any]) -> None:
        for name, value in line.items():
            if isinstance(value, float):
                writer.add_scalar(f"{line['stage']}/{name}", value, line["step"])

    with SummaryWriter(str(folder)) as writer:
        yield write
