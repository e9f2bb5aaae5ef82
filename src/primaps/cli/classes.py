"""Commands on the classes of a model: studio, classes, name, report, audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from annotated_types import Ge, Interval
from rich.table import Table
from rich.text import Text

from primaps.cli.app import CLASSES, app, command, running
from primaps.cli.console import cell, note, result, show, warn
from primaps.cli.options import (
    CrfOption,
    CutOption,
    DeviceOption,
    FolderArgument,
    IgnoreIndexOption,
    ImagesArgument,
    LabelsOption,
    config_options,
    fitted_model,
)
from primaps.config import Classes, Seed
from primaps.utils.errors import InputError

if TYPE_CHECKING:
    from primaps.classes.legend import Legend
    from primaps.classes.summary import ClassSummary
    from primaps.evaluation.audit import Audit

EDITS = {
    "rename": ("CLASS NAME", 2),
    "color": ("CLASS #RRGGBB", 2),
    "merge": ("CLASS CLASS ...", 2),
    "split": ("CLASS", 1),
    "hide": ("CLASS", 1),
    "show": ("CLASS", 1),
    "undo": ("[NUMBER]", 0),
}
"""Edits by their names, with their arguments and the minimum number of these."""


@command(app, rich_help_panel=CLASSES)
@config_options("backbone", "size", "depth", "recipe", "precision", "seed", optional=True)
def studio(
    images: Annotated[
        Path,
        typer.Argument(metavar="IMAGES", help="Image folder, searched recursively. Not modified."),
    ],
    options: dict[str, Any],
    out: Annotated[Path | None, "Output folder of the studio. [default: NAME-studio]"] = None,
    model: Annotated[Path | None, "Folder of an existing model whose classes are edited."] = None,
    classes: Annotated[
        Classes | Literal["auto"], "Number of classes that the page suggests, or auto."
    ] = "auto",
    port: Annotated[
        int, Interval(ge=0, le=65535), "Port to listen on; 0 selects the last one or a free one."
    ] = 0,
    host: Annotated[
        str, "Address to listen on. An address other than loopback also needs --allow-host."
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        "Host name under which other machines reach this one, or NAME:PORT of a forwarded port. "
        "May be repeated.",
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
    device: DeviceOption = "auto",
) -> None:
    """Name, correct, audit and export the classes of an image folder in the browser."""
    with running(bars=False):
        from primaps.studio.serve import run_studio

        run_studio(
            images, out, model=model, host=host, port=port, allow_host=allow_host or (),
            classes=classes, browser=browser, device=device, log=note, **options,
        )  # fmt: skip


@command(app, rich_help_panel=CLASSES, context_settings={"ignore_unknown_options": True})
def classes(
    model: FolderArgument,
    edit: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EDIT ...]",
            help="; ".join(f"{name} {arguments}" for name, (arguments, _) in EDITS.items())
            + ". CLASS is an id or a name.",
        ),
    ] = None,
    cut: CutOption = None,
) -> None:
    """Print the classes of a model, or edit their names, colors, merges and splits."""
    with running():
        from primaps.classes.legend import legend, undone
        from primaps.persistence import change_edits, read_edits

        found = _class_summary(model)
        if edit and cut is not None:
            raise InputError("edits apply to the model without --classes; omit the option")
        if edit:
            change = _parse_edit(edit)
            now = change_edits(
                model,
                found.tree,
                lambda edits: (
                    [*edits, change] if isinstance(change, dict) else undone(edits, change)
                ),
            )
        else:
            now = read_edits(model, found.tree)
        shown = legend(found.tree, now.edits, cut)
    _print(found, shown, list(now.edits))


def _class_summary(folder: Path) -> ClassSummary:
    from primaps.classes.tree import TreeError
    from primaps.persistence import read_class_summary

    found = read_class_summary(folder)
    if found is None:
        raise TreeError(f"{folder} has no class tree; fit the model again to compute one")
    return found


def _parse_edit(words: list[str]) -> Any:
    """Return the edit from the command line, or the number of the edit to undo."""
    kind, given = words[0], words[1:]
    if kind not in EDITS:
        raise InputError(f"unknown edit {kind!r}; edits are {', '.join(EDITS)}")
    arguments, minimum = EDITS[kind]
    usage = f"{kind} takes {arguments}, as in `primaps classes MODEL {kind} {arguments}`"
    if kind == "undo":
        if len(given) > 1 or (given and not given[0].isdecimal()):
            raise InputError(usage)
        return int(given[0]) if given else None
    if len(given) < minimum or (kind != "merge" and len(given) > minimum):
        raise InputError(usage)
    if kind == "merge":
        return {kind: given}
    return {kind: given[0], "to": given[1]} if minimum == 2 else {kind: given[0]}


def _print(found: ClassSummary, shown: Legend, edits: list[dict[str, Any]]) -> None:
    """Print a table of the classes and the list of edits."""
    table = Table("value", "", "id", "name", "share", "images", "stability", "nearest")
    values = {one.id: str(value) for value, one in enumerate(shown.shown)}
    names = {one.id: one.name for one in shown.classes}
    for one in shown.classes:
        share = sum(found.shares[part] for part in one.leaves)
        statistics = found.stability[int(one.id)] if one.id.isdecimal() else None
        measured = statistics is not None and statistics.stability == statistics.stability
        red, green, blue = one.color
        table.add_row(
            values.get(one.id, "hidden"),
            Text("  ", style=f"on #{red:02x}{green:02x}{blue:02x}"),
            cell(one.id),
            cell(one.name),
            f"{share:.1%}",
            str(statistics.images) if statistics and measured else "-",
            f"{statistics.stability:.2f}" if statistics and measured else "-",
            cell(names.get(str(statistics.nearest), statistics.nearest)) if statistics else "-",
        )
    show(table)
    for number, edit in enumerate(edits):
        words = [next(iter(edit))]
        for value in edit.values():
            words += map(str, value if isinstance(value, list) else [value])
        result(f"edit {number}: {' '.join(words)}")


@command(app, rich_help_panel=CLASSES)
def name(
    model: FolderArgument,
    images: ImagesArgument,
    labels: LabelsOption = None,
    ignore_index: IgnoreIndexOption = None,
    min_agreement: Annotated[
        float,
        Interval(ge=0, le=1),
        "Minimum share of the most frequent label among the labeled pixels of a class.",
    ] = 0.5,
    device: DeviceOption = "auto",
) -> None:
    """Name classes from a few label maps: each gets the most frequent label of its pixels."""
    with running() as progress:
        from primaps.data import as_dataset
        from primaps.evaluation.naming import count_labels, naming
        from primaps.model import PriMaPsEM
        from primaps.persistence import change_edits, read_legend

        found = _class_summary(model)
        network = PriMaPsEM.from_pretrained(model, device=device)
        data = as_dataset(images, labels, ignore_index)
        counts = count_labels(network, data, progress=progress, log=warn)
        before = read_legend(model, found.tree)
        new = naming(counts, before, data.classes, min_agreement)
        now = change_edits(model, found.tree, lambda edits: [*edits, *new])
        after = read_legend(model, found.tree)
    note(f"{len(new)} of {len(before.shown)} classes named")
    _print(found, after, list(now.edits))


@command(app, rich_help_panel=CLASSES)
def report(
    model: FolderArgument,
    images: ImagesArgument,
    out: Annotated[Path, "Output folder of report.html."],
    labels: LabelsOption = None,
    ignore_index: IgnoreIndexOption = None,
    cut: CutOption = None,
    max_images: Annotated[int, Ge(1), "Maximum number of images, sampled with a fixed seed."] = 200,
    crf: CrfOption = True,
    device: DeviceOption = "auto",
) -> None:
    """Write an HTML report on the classes: examples, shares, stability, tree, uncertain images."""
    with running() as progress:
        from primaps.pictures.report import write_report

        network = fitted_model(model, device, cut)
        path = write_report(
            network, images, out / "report.html", labels=labels, ignore_index=ignore_index,
            max_images=max_images, crf=crf, progress=progress, log=warn,
        )  # fmt: skip
    result(path)


@command(app, rich_help_panel=CLASSES)
def audit(
    model: FolderArgument,
    images: ImagesArgument,
    out: Annotated[Path, "Folder of the audit: questions, answers and the image of the question."],
    answers: Annotated[
        int, Interval(ge=2, le=2000), "Number of questions. 50 to 100 usually suffice."
    ] = 80,
    crf: CrfOption = True,
    seed: Annotated[Seed, "Random seed of the sampled pixels."] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Estimate the accuracy, with a 95 % interval, from your answers about single pixels."""
    with running() as progress:
        from primaps.evaluation.audit import Audit, audit_subject, prepare
        from primaps.model import PriMaPsEM

        network = PriMaPsEM.from_pretrained(model, device=device)
        found = Audit.load(out)
        if found is not None and found.record.subject != audit_subject(network):
            raise InputError(
                f"{out} contains an audit of other classes, or {model} was edited since; choose "
                "another --out"
            )
        if found is None:
            found = prepare(
                network, images, out, answers=answers, crf=crf, seed=seed, progress=progress,
                log=warn,
            )  # fmt: skip
    with running(bars=False):
        _ask(found, [one.name for one in network.shown_classes])


def _ask(found: Audit, names: list[str]) -> None:
    """Ask the questions of an audit until all are answered or the user quits."""
    note(f"Each question is shown in {found.picture}. Use a viewer that reloads changed files.")
    while (question := found.next()) is not None:
        found.draw(question)
        done, total = found.progress
        text = (
            f"{done + 1}/{total}: is the pixel at the cross {names[question.value]!r}? (y, n, ? = "
        )
        answer = typer.prompt(f"{text}cannot tell, q = quit)", prompt_suffix=" ").strip().lower()
        if answer == "q":
            break
        if answer not in ("y", "n", "?"):
            note("answer y, n, ? or q")
            continue
        found.answer(question, {"y": True, "n": False, "?": None}[answer])
    score = found.estimate()
    if score is None:
        note("too few answers for an estimate; the same command continues")
        return
    result(
        f"accuracy {score.accuracy:.1%}, 95 % interval {score.low:.1%} to {score.high:.1%}, "
        f"from {score.answers} answers"
    )
