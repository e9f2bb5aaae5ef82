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
from rich.markup import escape
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
Labels = Annotated[str, typer.Option(help="Folder of label maps, named like the images.")]
BatchSize = Annotated[int, typer.Option(help="Images per step.")]
LearningRate = Annotated[float, typer.Option(help="Of Adam.")]
Precision = Annotated[
    str, typer.Option(help="float32, or bfloat16: about twice as fast on recent processors.")
]
Seed = Annotated[int, typer.Option(help="Everything random follows from it.")]
Store = Annotated[
    str | None,
    typer.Option(
        help="Folder that keeps features and masks between runs, or none: keep nothing "
        "[default: features in the cache]."
    ),
]
TensorBoard = Annotated[Path | None, typer.Option(help="Write figures per epoch there.")]
NOT_OF_THE_MODEL = ("images", "labels", "out", "store", "plan", "tensorboard")


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
    batch_size: BatchSize = 32,
    learning_rate: LearningRate = 0.005,
    momentum: Annotated[float, typer.Option(help="Decay of the moving average (Eq. 11).")] = 0.98,
    momentum_every: Annotated[int, typer.Option(help="Steps between its updates.")] = 10,
    momentum_ramp: Annotated[bool, typer.Option(help="Ramp the decay up (see README).")] = True,
    views: Annotated[
        str, typer.Option(help="Augmented views per image, kept; fresh: new ones in every step.")
    ] = "0",
    loss_size: Annotated[str, typer.Option(help="Votes and loss at image or feature size.")] = (
        "image"
    ),
    threshold: Threshold = 0.4,
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
    with _progress() as report, _process(device) as own:
        from primaps.data import find_images
        from primaps.segmenter import PriMaPsEM

        options |= {"views": None if views == "fresh" else _number(views), "device": own}
        files = find_images(images, exclude=out)
        model = PriMaPsEM(**options)
        if plan:
            from primaps.planning import plan as estimate

            print("\n".join(estimate(model, files, _store(store)).lines()))
            return
        start, steps = model.config.steps(len(files))
        text = f"{len(files)} images of {model.size} px, {classes} classes: k-means {start} steps"
        text += f", EM {steps} steps" if method == "em" else ""
        _note(f"{text} of {min(batch_size, len(files))} images")
        _train(model, files, None, out, store, tensorboard, report)
        dead = model.history_[-1].get("empty", [])
    if dead:
        _note(f"{len(dead)} of {classes} classes are empty at the end; fewer classes may do")
    print(out)


@app.command()
def probe(
    images: Images,
    labels: Labels,
    out: Annotated[Path, typer.Option(help="Folder of the model.")],
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
    seed: Seed = 0,
    store: Store = None,
    tensorboard: TensorBoard = None,
    device: Device = "auto",
) -> None:
    """Train a linear probe on labels: the upper bound that the paper compares with."""
    options = {k: v for k, v in locals().items() if k not in NOT_OF_THE_MODEL}
    with _progress() as report, _process(device) as own:
        from primaps.data import find_images, read_protocol
        from primaps.segmenter import PriMaPsEM

        names, _ = read_protocol(labels)
        if classes is None and names is None:
            raise ValueError(f"{labels} has no classes.json: give the number of --classes")
        options |= {"classes": classes or len(names or ()), "device": own}
        files = find_images(images, exclude=out)
        model = PriMaPsEM(**options, method="probe")
        _train(model, files, labels, out, store, tensorboard, report)
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
    labels: Annotated[
        str | None, typer.Option(help="Folder of label maps, named like the images.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="IMAGES is the root of this data set: cityscapes, cocostuff, potsdam or folder."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Of the data set.")] = "val",
    ignore_index: Annotated[
        int | None, typer.Option(help="Label not counted [default: of classes.json, or 255].")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Shorter side in pixels [default: that of the model].")
    ] = None,
    crop: Annotated[
        bool, typer.Option("--crop/--no-crop", help="Cut the centred square, or whole images.")
    ] = True,
    mirror: Annotated[
        bool, typer.Option("--mirror/--no-mirror", help="Average with the mirrored image.")
    ] = True,
    crf: Crf = True,
    matching: Annotated[
        str, typer.Option(help="hungarian, or majority (for more clusters than classes).")
    ] = "hungarian",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the scores here.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Draw confusion, IoU and examples into this folder.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Accuracy, mean IoU and IoU per class after Hungarian matching."""
    with _progress() as report:
        from primaps.data import as_dataset, load_dataset
        from primaps.files import write_json
        from primaps.protocol import evaluate as run
        from primaps.segmenter import PriMaPsEM

        given = load_dataset(dataset, images, split) if dataset else images
        data = as_dataset(given, labels, ignore_index)
        network = PriMaPsEM.from_pretrained(model, device=device)
        result = run(
            network, data, size=size, crop=crop, mirror=mirror, crf=crf, matching=matching,
            report=report, problem=_warn,
        )  # fmt: skip
        if json_file:
            write_json(json_file, result)
        if pictures:
            from primaps.charts import draw_result

            draw_result(network, data, result, pictures)
    options = ", ".join(f"{name} {value}" for name, value in result["options"].items())
    Console(soft_wrap=True).print(f"{result['images']} images, {options}", highlight=False)
    table = Table("class", "IoU")
    for name, value in result["iou"].items():
        table.add_row(name, "-" if value is None else f"{100 * value:.1f}")
    table.add_section()
    table.add_row("mean IoU", f"{100 * result['mean_iou']:.1f}")
    table.add_row("accuracy", f"{100 * result['accuracy']:.1f}")
    Console().print(table)


@app.command()
def oracle(
    images: Images,
    labels: Labels,
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


data_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Labelled data sets: check, prepare."
)
app.add_typer(data_app, name="data")
Root = Annotated[Path, typer.Argument(metavar="ROOT", help="Folder of the data set.")]


@data_app.command()
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
    with _progress() as report:
        from primaps.data.check import check_dataset

        for finding in check_dataset(name, root, quick, report):
            colour = {"fine": "green", "odd": "yellow", "wrong": "red"}[finding.level]
            line = f"[{colour}]{finding.level}[/{colour}]: {escape(finding.text)}"
            Console(soft_wrap=True).print(line, highlight=False)
            wrong += finding.level == "wrong"
    if wrong:
        raise typer.Exit(1)


@data_app.command()
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
    with _progress() as report:
        from primaps.data.prepare_cocostuff import prepare_cocostuff
        from primaps.data.prepare_potsdam import prepare_potsdam

        if name == "potsdam" and not make_lists:
            done = prepare_potsdam(raw, out, report, _note)
        elif name == "cocostuff":
            done = prepare_cocostuff(raw, out, make_lists, report, _note)
        else:
            raise ValueError(
                "prepare knows `potsdam` and `cocostuff`, and --make-lists is for the latter; "
                "Cityscapes needs no preparation"
            )
    for part, number in done.items():
        print(f"{out / part}: {number:,}")


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
        err.print("stopped: the same command goes on where it stopped")
        raise typer.Exit(130) from None
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if isinstance(error, RuntimeError) and not type(error).__module__.startswith("primaps"):
            raise  # a defect, so the traceback is wanted
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        err.print(f"[red]error[/red]: {where}{reason}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


@contextmanager
def _process(device: str) -> Iterator[str]:
    """Join the other processes under torchrun; only the first one speaks."""
    from primaps import distributed

    with distributed.group(device) as own:
        err.quiet = distributed.rank() > 0
        yield own


def _train(
    model: Any, files: Any, labels: str | None, out: Path, store: str | None, log: Path | None,
    report: Any,
) -> None:  # fmt: skip
    """Fit, save and draw; the state of training lives beside the model until it is complete."""
    from primaps import distributed
    from primaps.preview import model_preview

    _note(f"backbone {model.backbone.name} from {model.backbone.source}")
    with _tensorboard(log) as write:
        model.fit(
            files, labels, store=_store(store), checkpoints=out, report=report, problem=_warn,
            log=write,
        )  # fmt: skip
    if distributed.rank() == 0:
        model.save_pretrained(out)
        model_preview(model, out / "preview.png")
    for path in out.glob("training-*.safetensors"):  # the run is complete
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


def _store(text: str | None) -> str | Path | None:
    from primaps.files import cache_dir

    return None if text == "none" else text or cache_dir() / "features"


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--views is {text!r}; it must be a number or fresh") from None


def _note(sentence: str) -> None:
    err.print(sentence, highlight=False, soft_wrap=True)


def _warn(sentence: str) -> None:
    err.print(f"[yellow]left out[/yellow]: {sentence}", highlight=False, soft_wrap=True)


def _note(sentence: str) -> None:
    err.print(f"[yellow]note[/yellow]: {escape(sentence)}", highlight=False, soft_wrap=True)


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
