"""Commands that fit: fit, probe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from primaps.cli.app import app, err, note, progress, warn
from primaps.cli.options import (
    NOT_OF_THE_MODEL,
    Backbone,
    BatchSize,
    Crf,
    DatasetName,
    Device,
    IgnoreIndex,
    Images,
    Labels,
    LearningRate,
    Precision,
    Projection,
    Seed,
    Size,
    Split,
    Store,
    TensorBoard,
    Threshold,
    labelled,
    named,
    read_views,
    store_folder,
)


@app.command()
def fit(
    images: Images,
    classes: Annotated[
        str, typer.Option(help="K, the number of classes to find; LOW-HIGH or auto to choose one.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the model.")],
    dataset: DatasetName = None,
    split: Split = None,
    method: Annotated[str, typer.Option(help="em (PriMaPs-EM) or kmeans (the baseline).")] = "em",
    recipe: Annotated[
        str, typer.Option(help="paper, or orthogonal: orthonormal prototypes on mask features.")
    ] = "paper",
    backbone: Backbone = "dinov2-vits14",
    size: Size = None,
    epochs: Annotated[int, typer.Option(help="Passes of EM over the images.")] = 50,
    init_epochs: Annotated[int, typer.Option(help="Passes of k-means before.")] = 2,
    min_steps: Annotated[int, typer.Option(help="Least steps of EM, for few images.")] = 150,
    min_init_steps: Annotated[int, typer.Option(help="Least steps of k-means.")] = 184,
    batch_size: BatchSize = 32,
    learning_rate: LearningRate = 0.005,
    momentum: Annotated[float, typer.Option(help="Decay of the moving average (Eq. 11).")] = 0.98,
    momentum_every: Annotated[int, typer.Option(help="Steps between its updates.")] = 10,
    momentum_ramp: Annotated[bool, typer.Option(help="Ramp the decay up (see README).")] = True,
    cosine_scale: Annotated[
        float | None,
        typer.Option(help="Of cosine logits [default: 1 for k-means, 10 for orthogonal]."),
    ] = None,
    views: Annotated[
        str, typer.Option(help="Augmented views per image, kept; fresh: new ones in every step.")
    ] = "0",
    loss_size: Annotated[str, typer.Option(help="Votes and loss at image or feature size.")] = (
        "image"
    ),
    projection: Projection = None,
    threshold: Threshold = 0.4,
    anchor: Annotated[bool, typer.Option(help="Compare with the anchor of Eq. 4.")] = True,
    iterative: Annotated[bool, typer.Option(help="Decompose anew for each mask.")] = True,
    crf: Crf = True,
    precision: Precision = "float32",
    seed: Seed = 0,
    store: Store = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it will take: bytes, memory, time.")
    ] = False,
    tensorboard: TensorBoard = None,
    device: Device = "auto",
) -> None:
    """Find K classes in unlabelled images (PriMaPs-EM) and write the model."""
    options = {k: v for k, v in locals().items() if k not in NOT_OF_THE_MODEL}
    with progress() as report, _process(device) as own:
        from primaps.data import find_images
        from primaps.fitting import all_steps
        from primaps.planning import plan as estimate
        from primaps.segmenter import PriMaPsEM

        options |= {"views": read_views(views), "device": own}
        data = named(dataset, images, split, "train")
        if data is not None and data.incomplete:
            warn(data.incomplete)
        files = find_images(images, exclude=out) if data is None else data.samples
        evidence: list[Any] = []
        if not classes.isdecimal():
            evidence, options["classes"] = _choose(classes, options, files, store, report)
        else:
            options["classes"] = int(classes)
        model = PriMaPsEM(**options)
        if plan:
            print("\n".join(estimate(model, files, store_folder(store)).lines()))
            return
        start, steps = all_steps(model.config, len(files))
        wanted = model.config.classes
        text = f"{len(files)} images of {model.size} px, {wanted} classes: k-means {start} steps"
        text += f", EM {steps} steps" if steps else ""
        note(f"{text} of {min(batch_size, len(files))} images")
        _train(model, files, None, out, store, tensorboard, report, evidence)
        dead = model.history_[-1].get("empty", [])
    if dead:
        note(f"{len(dead)} of {wanted} classes are empty at the end; fewer classes may do")


@app.command()
def probe(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder of the model.")],
    labels: Labels = None,
    dataset: DatasetName = None,
    split: Split = None,
    ignore_index: IgnoreIndex = None,
    classes: Annotated[
        int | None, typer.Option(help="Number of classes [default: those of classes.json].")
    ] = None,
    backbone: Backbone = "dinov2-vits14",
    size: Size = None,
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 50,
    min_steps: Annotated[int, typer.Option(help="Least steps, for few images.")] = 150,
    batch_size: BatchSize = 32,
    learning_rate: LearningRate = 0.005,
    precision: Precision = "float32",
    projection: Projection = None,
    seed: Seed = 0,
    store: Store = None,
    tensorboard: TensorBoard = None,
    device: Device = "auto",
) -> None:
    """Train a linear probe on labels: the upper bound that the paper compares with."""
    options = {k: v for k, v in locals().items() if k not in NOT_OF_THE_MODEL}
    with progress() as report, _process(device) as own:
        from primaps.segmenter import PriMaPsEM

        data = labelled(images, labels, dataset, split, "train", ignore_index)
        if data.incomplete:
            warn(data.incomplete)
        if classes is None and data.layout.guessed:
            raise ValueError(
                f"{labels or images} has no classes.json: give the number of --classes"
            )
        options |= {"classes": classes or len(data.classes), "device": own}
        model = PriMaPsEM(**options, method="probe")
        _train(model, data.samples, data, out, store, tensorboard, report)


def _choose(
    wanted: str, options: dict[str, Any], files: Any, store: str | None, report: Any
) -> tuple[list[Any], int]:
    """Evidence for several K, printed, and the middle one of the three that it speaks for."""
    from primaps.classes.choose import curve, parse_range, propose
    from primaps.classes.grow import SAMPLE
    from primaps.classes.masks import gathered, mask_table
    from primaps.extraction import extract
    from primaps.segmenter import PriMaPsEM

    candidates = parse_range(wanted)
    model = PriMaPsEM(**{**options, "classes": 2})
    found = extract(
        files, model.backbone, model.size, masks=model.mask_maker(), store=store_folder(store),
        report=report, problem=warn,
    )  # fmt: skip
    assert found.masks is not None
    masks = gathered(
        mask_table(replace(found.views, projection=model.projection), found.masks), SAMPLE
    )
    evidence = curve(
        masks.features, masks.images, candidates, seed=model.config.seed, report=report
    )
    for one in evidence:
        bar = "#" * round(40 * max(0.0, one.stability))
        note(f"{one.classes:>4} classes: stability {one.stability:.2f} ± {one.error:.2f} {bar}")
    choice = propose(evidence)
    note(
        f"coarse {choice.coarse}, middle {choice.middle}, fine {choice.fine}: taking the middle "
        "one; the others are cuts of its tree (--classes) or fits of their own"
    )
    return evidence, choice.middle


@contextmanager
def _process(device: str) -> Iterator[str]:
    """Join the other processes under torchrun; only the first one speaks."""
    from primaps import distributed

    with distributed.group(device) as own:
        err.quiet = distributed.rank() > 0
        yield own


def _train(
    model: Any, files: Any, labels: Any, out: Path, store: str | None, log: Path | None,
    report: Any, evidence: Any = (),
) -> None:  # fmt: skip
    """Fit, save and draw; the state of training lives beside the model until it is complete."""
    from primaps import distributed
    from primaps.preview import model_preview

    note(f"backbone {model.backbone.name} from {model.backbone.source}")
    with _tensorboard(log) as write:
        model.fit(
            files, labels, store=store_folder(store), checkpoints=out, report=report, problem=warn,
            log=write,
        )  # fmt: skip
    if model.inventory_ is not None and evidence:
        model.inventory_ = replace(model.inventory_, curve=tuple(evidence))
    if distributed.rank() == 0:
        model.save_pretrained(out)
        model_preview(model, out / "preview.png")
        print(out)
    for pattern in ("training-*.safetensors", ".writing-*"):  # the run is complete
        for path in out.glob(pattern):
            path.unlink(missing_ok=True)


@contextmanager
def _tensorboard(folder: Path | None) -> Iterator[Any]:
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(
            "--tensorboard needs its package: pip install 'primaps[tensorboard]'"
        ) from None

    def write(line: dict[str, Any]) -> None:
        for name, value in line.items():
            if isinstance(value, float):
                writer.add_scalar(f"{line['stage']}/{name}", value, line["step"])

    with SummaryWriter(str(folder)) as writer:
        yield write
