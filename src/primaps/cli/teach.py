"""Commands that a person teaches a model with: ask, teach, find."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from annotated_types import Interval

from primaps.cli.app import TEACH, app, command, running
from primaps.cli.console import note, result, say, warn
from primaps.cli.options import (
    CacheOption,
    DeviceOption,
    EngineOption,
    ImagesArgument,
    ModelArgument,
    OutOption,
    cache_folder,
    fitted_model,
)
from primaps.exchange.formats import IMPORT_FORMATS
from primaps.utils.errors import InputError

AnnotationsOption = Annotated[
    list[Path],
    typer.Option(
        "--annotations",
        help="File or folder of annotations: that of `primaps ask` with answers, "
        "annotations.jsonl, the output folder of the studio, label maps with classes.json, or a "
        "file of another tool. May be repeated; later ones win.",
    ),
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        help=f"Format of another tool: {', '.join(IMPORT_FORMATS)}. [default: detected]",
    ),
]


@command(app, rich_help_panel=TEACH)
def ask(
    model: ModelArgument,
    images: ImagesArgument,
    out: OutOption,
    questions: Annotated[
        Annotated[int, Interval(ge=1, le=10_000)],
        typer.Option("--questions", "-n", help="Number of open questions in the folder."),
    ] = 50,
    cache: CacheOption = None,
    engine: EngineOption = "torch",
    device: DeviceOption = "auto",
) -> None:
    """Ask which classes regions show: numbered pictures and a CSV file to fill in.

    Write a class name, ? (I do not know) or mixed in the column `class` of questions.csv, then run
    `teach`. The same command adds questions when some are answered; answers are never changed.
    """
    with running() as progress:
        from primaps.data import find_images
        from primaps.exchange.questions import (
            PAGE,
            Questions,
            check_question_folder,
            is_question_folder,
            read_questions,
            write_questions,
        )

        check_question_folder(out)
        known = read_questions(out) if is_question_folder(out) else Questions((), {})
        wanted = questions - known.open
        if wanted <= 0:
            note(f"{known.open} questions wait for an answer: {out}")
        else:
            files = find_images(images, exclude=out, log=warn)
            fitted = fitted_model(model, device, None, engine)
            asked = [one.asked for one in known.records]
            found = fitted.ask(
                files, wanted, asked=asked, cache=cache_folder(cache), progress=progress, log=warn
            )
            names = [one.name for one in fitted.shown_classes]
            done = write_questions(out, found, files, names, progress=progress)
            note(f"{len(found)} new questions, {done.open} without an answer: {out / PAGE}")
            if len(found) < wanted:
                note("the images have no more regions that differ from those that were asked about")
    note(
        f"Next: fill in the column class of {out}/questions.csv, then primaps teach {model} "
        f"{images} --annotations {out} --out taught"
    )


@command(app, rich_help_panel=TEACH)
def teach(
    model: ModelArgument,
    images: ImagesArgument,
    annotations: AnnotationsOption,
    out: OutOption,
    source_format: FromOption = None,
    level: Annotated[
        Literal["auto", "tokens", "pixels"],
        "Level of the classifier: tokens (fast) or pixels (follows outlines); auto chooses.",
    ] = "auto",
    cache: CacheOption = None,
    engine: EngineOption = "torch",
    device: DeviceOption = "auto",
) -> None:
    """Teach a model the classes of annotations; the result is a new model.

    Classes are those of the annotations and those of the model that have a name.
    """
    with running() as progress:
        from primaps.data import find_images
        from primaps.exchange.annotations import load_annotations
        from primaps.persistence import check_model_folder

        if out.resolve() == Path(model).expanduser().resolve():
            raise InputError(f"{out} is the model that is taught; choose another folder for --out")
        check_model_folder(out)
        files = find_images(images, exclude=out, log=warn)
        fitted = fitted_model(model, device, None, engine)
        names = [one.name for one in fitted.shown_classes if one.named]
        listed = [
            one
            for path in annotations
            for one in load_annotations(
                path, files, source_format=source_format, names=names, log=warn
            )
        ]
        options: dict[str, Any] = {"level": level, "cache": cache_folder(cache)}
        taught = fitted.teach(
            files,
            listed,
            progress=progress,
            log=lambda text: say("note", "yellow", text),
            **options,
        )
        taught.save_pretrained(out)
    classes = ", ".join(one.name for one in taught.shown_classes)
    annotated = len({one.image for one in listed})
    note(f"{len(listed):,} annotations of {annotated:,} images; classes: {classes}")
    note(f"Next: primaps predict {out} {images} --out classes/")


@command(app, rich_help_panel=TEACH)
def find(
    model: ModelArgument,
    images: ImagesArgument,
    image: Annotated[
        str, typer.Option("--image", help="Image of the region: its key, path or file name.")
    ],
    point: Annotated[
        tuple[float, float],
        typer.Option("--point", metavar="X Y", help="Point in the image, in pixels."),
    ],
    out: OutOption,
    name: Annotated[str, typer.Option("--name", help="Class name of what is found.")] = "found",
    threshold: Annotated[
        Annotated[float, Interval(ge=0, le=1)], "Minimum score of a pixel that is found."
    ] = 0.5,
    accept: Annotated[
        Path | None,
        typer.Option(
            "--accept", metavar="FILE", help="Append what is found to this annotations.jsonl."
        ),
    ] = None,
    cache: CacheOption = None,
    engine: EngineOption = "torch",
    device: DeviceOption = "auto",
) -> None:
    """Find everything that looks like one point: scores and label maps of all images.

    Label maps have the value 0 where it was found and 255 elsewhere.
    """
    with running() as progress:
        if not all(map(math.isfinite, point)):
            raise InputError(f"--point is {point[0]} {point[1]}; it must be two finite numbers")
        from primaps.batch import find_files
        from primaps.data import find_images
        from primaps.exchange.annotations import region_at
        from primaps.teach.annotations import append_annotations

        region = region_at(find_images(images, exclude=out), image, point, name)
        fitted = fitted_model(model, device, None, engine)
        found = find_files(
            images, out, fitted, region, threshold=threshold, cache=cache_folder(cache),
            progress=progress, log=warn,
        )  # fmt: skip
        if accept is not None:
            append_annotations(accept, found.annotations(threshold))
    for key in found.ranked(threshold):
        result(f"{found.maps[key].max():.2f} {key}")
    note(f"found in {len(found.ranked(threshold))} of {len(found.maps)} images: {out}")
