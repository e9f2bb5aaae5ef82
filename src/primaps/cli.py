"""The command line. Heavy imports wait inside the commands, so that --help is quick."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find and segment the classes of an image collection **without a single label**.",
)
err = Console(stderr=True)

Inputs = Annotated[
    list[str], typer.Argument(metavar="INPUT...", help="Image files, folders (recursive) or globs.")
]
Images = Annotated[str, typer.Argument(metavar="IMAGES", help="A folder (recursive) or a glob.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="What `fit --out` wrote, or a hub id.")]
Out = Annotated[Path, typer.Option(help="Folder to write to.")]
Backbone = Annotated[
    str,
    typer.Option(
        help="dino-vits8, dino-vitb8, dinov2-vits14, dinov2-vitb14, a hub id, a folder or a .pth."
    ),
]
Size = Annotated[
    int | None, typer.Option(help="Shorter side in pixels [default: 320, or 322 for patch 14].")
]
Crf = Annotated[bool, typer.Option("--crf/--no-crf", help="Refine by the dense CRF.")]
Threshold = Annotated[float, typer.Option(help="psi of Eq. 6: smaller gives larger masks.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from primaps import __version__

        print(__version__)
        raise typer.Exit


@app.command()
def propose(
    inputs: Inputs,
    out: Out,
    backbone: Backbone = "dinov2-vits14",
    threshold: Threshold = 0.4,
    crf: Crf = True,
    size: Size = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also draw how the masks come about.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Mask proposals (PriMaPs): per image a map of masks, 0 = ignore, and a picture."""
    with _progress() as report:
        from primaps.backbones import load_backbone
        from primaps.runs import propose_files

        network = load_backbone(backbone, device)
        err.print(f"backbone {network.name} from {network.source}", highlight=False)
        done = propose_files(
            inputs, out, backbone=network, threshold=threshold, crf=crf, size=size,
            device=device, report=report, problem=_warn,
        )  # fmt: skip
        if explain:
            from primaps.explain import explain_files

            explain_files(
                inputs, out, backbone=network, threshold=threshold, crf=crf, size=size,
                report=report, problem=lambda sentence: None,
            )  # fmt: skip
    _summary(done, out)


@app.command()
def fit(
    images: Images,
    classes: Annotated[int, typer.Option(help="K, the number of classes to find.")],
    out: Annotated[Path, typer.Option(help="Folder of the model.")],
    method: Annotated[str, typer.Option(help="em (PriMaPs-EM) or kmeans (the baseline).")] = "em",
    backbone: Backbone = "dinov2-vits14",
    size: Size = None,
    epochs: Annotated[int, typer.Option(help="Passes of EM over the images.")] = 50,
    init_epochs: Annotated[int, typer.Option(help="Passes of k-means before.")] = 2,
    min_steps: Annotated[int, typer.Option(help="Least steps of EM, for few images.")] = 150,
    min_init_steps: Annotated[int, typer.Option(help="Least steps of k-means.")] = 184,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 0.005,
    momentum: Annotated[float, typer.Option(help="Decay of the moving average (Eq. 11).")] = 0.98,
    momentum_every: Annotated[int, typer.Option(help="Steps between its updates.")] = 10,
    momentum_ramp: Annotated[bool, typer.Option(help="Ramp the decay up (see README).")] = True,
    views: Annotated[int, typer.Option(help="Augmented feature maps per image.")] = 0,
    threshold: Threshold = 0.4,
    crf: Crf = True,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    device: Device = "auto",
) -> None:
    """Find K classes in unlabelled images (PriMaPs-EM) and write the model."""
    options = {k: v for k, v in locals().items() if k not in ("images", "out")}
    with _progress() as report:
        from primaps.data import find_images
        from primaps.preview import model_preview
        from primaps.segmenter import PriMaPsEM

        files = find_images(images, exclude=out)
        model = PriMaPsEM(**options)
        err.print(f"backbone {model.backbone.name} from {model.backbone.source}", highlight=False)
        start, steps = model.config.steps(len(files))
        plan = f"{len(files)} images of {model.size} px, {classes} classes: k-means {start} steps"
        plan += f", EM {steps} steps" if method == "em" else ""
        err.print(f"{plan} of {min(batch_size, len(files))} images", highlight=False)
        model.fit(files, report, _warn)
        model.save_pretrained(out)
        model_preview(model, out / "preview.png")
    dead = int(model.history_[-1].get("empty_classes", 0))
    if dead:
        err.print(f"{dead} of {classes} classes are empty at the end; fewer classes may do")
    print(out)


@app.command()
def predict(
    model: Model,
    inputs: Inputs,
    out: Out,
    crf: Crf = True,
    names: Annotated[str | None, typer.Option(help="Class names for the legend, a,b,c.")] = None,
    device: Device = "auto",
) -> None:
    """Class map of every image by a fitted model, with a picture and legend."""
    with _progress() as report:
        from primaps.runs import predict_files
        from primaps.segmenter import PriMaPsEM

        done = predict_files(
            PriMaPsEM.from_pretrained(model, device=device), inputs, out, crf=crf,
            names=names.split(",") if names else None, report=report, problem=_warn,
        )  # fmt: skip
    _summary(done, out)


@app.command()
def evaluate(
    model: Model,
    images: Images,
    labels: Annotated[str, typer.Option(help="Folder of label maps, named like the images.")],
    ignore_index: Annotated[
        int | None, typer.Option(help="Label not counted [default: of classes.json, or 255].")
    ] = None,
    crf: Crf = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the scores here.")] = None,
    device: Device = "auto",
) -> None:
    """Accuracy, mean IoU and IoU per class after Hungarian matching."""
    with _progress() as report:
        from primaps.files import write_json
        from primaps.runs import evaluate as run
        from primaps.segmenter import PriMaPsEM

        result = run(
            PriMaPsEM.from_pretrained(model, device=device), images, labels,
            ignore_index=ignore_index, crf=crf, report=report, problem=_warn,
        )  # fmt: skip
        if json_file:
            write_json(json_file, result)
    options = ", ".join(f"{name} {value}" for name, value in result["options"].items())
    table = Table("class", "IoU", title=f"{result['images']} images, {options}")
    for name, value in result["iou"].items():
        table.add_row(name, "-" if value is None else f"{100 * value:.1f}")
    table.add_section()
    table.add_row("mean IoU", f"{100 * result['mean_iou']:.1f}")
    table.add_row("accuracy", f"{100 * result['accuracy']:.1f}")
    Console().print(table)


@app.command()
def oracle(
    images: Images,
    labels: Annotated[str, typer.Option(help="Folder of label maps, named like the images.")],
    backbone: Backbone = "dinov2-vits14",
    threshold: Threshold = 0.4,
    crf: Crf = True,
    size: Size = None,
    ignore_index: Annotated[
        int | None, typer.Option(help="Label not counted [default: of classes.json, or 255].")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the scores here.")] = None,
    device: Device = "auto",
) -> None:
    """How good mask proposals are as such: each gets its most frequent label (Table 5)."""
    with _progress() as report:
        from primaps.backbones import load_backbone
        from primaps.files import write_json
        from primaps.oracle import evaluate_oracle

        network = load_backbone(backbone, device)
        result = evaluate_oracle(
            images, labels, backbone=network, size=size, ignore_index=ignore_index,
            threshold=threshold, crf="dense" if crf else None, report=report, problem=_warn,
        )  # fmt: skip
        if json_file:
            write_json(json_file, result)
    title = f"{result['images']} images, {result['masks_per_image']:.1f} masks per image"
    title += f", {100 * result['ignored']:.1f} % of the pixels in none"
    table = Table("", "accuracy", "mean IoU", title=title)
    for name, kind in (("pixels in masks", "assigned"), ("all pixels", "all_pixels")):
        values = (f"{100 * result[kind][figure]:.1f}" for figure in ("accuracy", "mean_iou"))
        table.add_row(name, *values)
    Console().print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("primaps-demo"),
    device: Device = "auto",
) -> None:
    """Propose, fit and predict on photographs that scikit-image and scikit-learn bring along."""
    with _progress() as report:
        from primaps.demo import demo as run

        picture = run(out, device=device, report=report)
    print(picture)


projection = typer.Typer(no_args_is_help=True, help="Projections of features (STEGO, HP).")
app.add_typer(projection, name="projection")


@projection.callback()
def _projection() -> None:
    """Projections of features (STEGO, HP)."""


@projection.command()
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .ckpt of STEGO or a .pth of HP.")
    ],
    out: Out,
    kind: Annotated[str | None, typer.Option(help="stego or hp [default: seen from FILE].")] = None,
) -> None:
    """Convert a checkpoint to safetensors, the backbone that it carries included.

    Nothing that the file contains is executed.
    """
    with _progress():
        from primaps.projections import convert_projection

        convert_projection(checkpoint, out, kind)
    print(out)


@contextmanager
def _progress() -> Iterator[Any]:
    """Progress on the terminal; what users can mend becomes one sentence and exit status 1."""
    from primaps.progress import Progress

    logger = logging.getLogger("primaps")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(
            RichHandler(console=err, show_time=False, show_path=False, show_level=False)
        )
    try:
        with Progress(err) as report:
            yield report
    except KeyboardInterrupt:
        err.print("stopped: propose and predict go on where they stopped, fit starts anew")
        raise typer.Exit(130) from None
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if isinstance(error, RuntimeError) and not type(error).__module__.startswith("primaps"):
            raise  # a defect, so the traceback is wanted
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        err.print(f"[red]error[/red]: {where}{reason}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _warn(sentence: str) -> None:
    err.print(f"[yellow]left out[/yellow]: {sentence}", highlight=False, soft_wrap=True)


def _summary(done: Any, out: Path) -> None:
    text = f"{len(done.written)} written"
    text += f", {len(done.kept)} kept from before" if done.kept else ""
    text += f", {len(done.problems)} left out" if done.problems else ""
    err.print(f"{text}: {out}", highlight=False)


def main() -> None:
    """Entry point of the ``primaps`` command."""
    app()


if __name__ == "__main__":
    main()
