"""Commands on the classes of a model: classes, name, report, audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    IgnoreIndexOption,
    ImagesArgument,
    LabelsOption,
    fitted_model,
)
from primaps.config import Seed
from primaps.utils.errors import InputError

if TYPE_CHECKING:
    from primaps.classes.inventory import Inventory
    from primaps.classes.legend import Legend
    from primaps.evaluation.audit import Audit

Folder = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder that `fit --out` wrote.")]
HOW = {
    "rename": ("CLASS NAME", 2),
    "color": ("CLASS #RRGGBB", 2),
    "merge": ("CLASS CLASS ...", 2),
    "split": ("CLASS", 1),
    "hide": ("CLASS", 1),
    "show": ("CLASS", 1),
    "undo": ("[NUMBER]", 0),
}


@command(app, rich_help_panel=CLASSES, context_settings={"ignore_unknown_options": True})
def classes(
    model: Folder,
    edit: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EDIT ...]",
            help="; ".join(f"{name} {what}" for name, (what, _) in HOW.items())
            + ". CLASS is an id or a name.",
        ),
    ] = None,
    cut: CutOption = None,
) -> None:
    """Print the classes of a model, or edit their names, colors, merges and splits."""
    with running():
        from primaps.classes.classes_json import change_edits, read_edits, undone
        from primaps.classes.edits import legend

        found = _inventory(model)
        if edit and cut is not None:
            raise InputError("edits are of the model's own classes: leave out --classes")
        if edit:
            words = _edit(edit)
            now = change_edits(
                model,
                found.tree,
                lambda edits: [*edits, words] if isinstance(words, dict) else undone(edits, words),
            )
        else:
            now = read_edits(model, found.tree)
        shown = legend(found.tree, now.edits, cut)
    _print(found, shown, list(now.edits))


def _inventory(folder: Path) -> Inventory:
    from primaps.classes.inventory import Inventory
    from primaps.classes.tree import TreeError

    found = Inventory.load(folder)
    if found is None:
        raise TreeError(f"{folder} has no tree of classes: fit the model again to grow one")
    return found


def _edit(words: list[str]) -> Any:
    """The edit that words of the command line mean, or the number of the one to undo."""
    kind, given = words[0], words[1:]
    if kind not in HOW:
        raise InputError(f"there is no edit {kind!r}; there are {', '.join(HOW)}")
    what, least = HOW[kind]
    usage = f"{kind} takes {what}, as in `primaps classes MODEL {kind} {what}`"
    if kind == "undo":
        if len(given) > 1 or (given and not given[0].isdecimal()):
            raise InputError(usage)
        return int(given[0]) if given else None
    if len(given) < least or (kind != "merge" and len(given) > least):
        raise InputError(usage)
    if kind == "merge":
        return {kind: given}
    return {kind: given[0], "to": given[1]} if least == 2 else {kind: given[0]}


def _print(found: Inventory, shown: Legend, edits: list[dict[str, Any]]) -> None:
    table = Table("value", "", "id", "name", "share", "images", "stability", "nearest")
    values = {one.id: str(value) for value, one in enumerate(shown.shown)}
    names = {one.id: one.name for one in shown.classes}
    for one in shown.classes:
        share = sum(found.shares[part] for part in one.parts)
        trust = found.trust[int(one.id)] if one.id.isdecimal() else None
        red, green, blue = one.color
        table.add_row(
            values.get(one.id, "hidden"),
            Text("  ", style=f"on #{red:02x}{green:02x}{blue:02x}"),
            cell(one.id),
            cell(one.name),
            f"{share:.1%}",
            str(trust.images) if trust else "-",
            f"{trust.stability:.2f}" if trust else "-",
            cell(names.get(str(trust.nearest), trust.nearest)) if trust else "-",
        )
    show(table)
    for number, edit in enumerate(edits):
        result(f"edit {number}: {_words(edit)}")


def _words(edit: dict[str, Any]) -> str:
    parts = [edit[key] if isinstance(edit[key], list) else [edit[key]] for key in edit]
    return " ".join([next(iter(edit)), *(str(word) for part in parts for word in part)])


@command(app, rich_help_panel=CLASSES)
def name(
    model: Folder,
    images: ImagesArgument,
    labels: LabelsOption = None,
    ignore_index: IgnoreIndexOption = None,
    least: Annotated[
        float,
        Interval(ge=0, le=1),
        typer.Option(help="Share of a class's labeled pixels that must agree, 0-1."),
    ] = 0.5,
    device: DeviceOption = "auto",
) -> None:
    """Name classes after a few label maps: each gets the label that most of its pixels have."""
    with running() as progress:
        from primaps.classes.classes_json import change_edits, read_legend
        from primaps.data import as_dataset
        from primaps.evaluation.naming import count_labels, naming
        from primaps.model import PriMaPsEM

        found = _inventory(model)
        network = PriMaPsEM.from_pretrained(model, device=device)
        data = as_dataset(images, labels, ignore_index)
        counts = count_labels(network, data, progress=progress, log=warn)
        before = read_legend(model, found.tree)
        new = naming(counts, before, data.classes, least)
        now = change_edits(model, found.tree, lambda edits: [*edits, *new])
        after = read_legend(model, found.tree)
    note(f"{len(new)} of {len(before.shown)} classes named")
    _print(found, after, list(now.edits))


@command(app, rich_help_panel=CLASSES)
def report(
    model: Folder,
    images: ImagesArgument,
    out: Annotated[Path, typer.Option(help="Folder to write report.html to.")],
    labels: LabelsOption = None,
    ignore_index: IgnoreIndexOption = None,
    cut: CutOption = None,
    most: Annotated[int, Ge(1), typer.Option(help="Images looked at, drawn at random.")] = 200,
    crf: CrfOption = True,
    device: DeviceOption = "auto",
) -> None:
    """One HTML file about the classes of a model: crops, shares, trust, tree, images by doubt."""
    with running() as told:
        from primaps.pictures.report import write_report

        network = fitted_model(model, device, cut)
        path = write_report(
            network, images, out / "report.html", labels=labels, ignore_index=ignore_index,
            most=most, crf=crf, progress=told, log=warn,
        )  # fmt: skip
    result(path)


@command(app, rich_help_panel=CLASSES)
def audit(
    model: Folder,
    images: ImagesArgument,
    out: Annotated[Path, typer.Option(help="Folder of questions, answers and pictures.")],
    answers: Annotated[
        int,
        Interval(ge=2, le=2000),
        typer.Option(help="Number of questions; 50 to 100 will do."),
    ] = 80,
    crf: CrfOption = True,
    seed: Annotated[Seed, typer.Option(help="Of the pixels that are drawn.")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Accuracy with a 95 % interval from your answers: is this pixel of that class, y or n?"""
    with running() as told:
        from primaps.evaluation.audit import Audit
        from primaps.evaluation.audit_questions import about, prepare
        from primaps.model import PriMaPsEM

        network = PriMaPsEM.from_pretrained(model, device=device)
        found = Audit.load(out)
        if found is not None and found.record.about != about(network):
            raise InputError(
                f"{out} holds an audit of other classes or names than {model} has now: give "
                "another --out"
            )
        if found is None:
            found = prepare(
                network, images, out, answers=answers, crf=crf, seed=seed, progress=told,
                log=warn,
            )  # fmt: skip
    with running(bars=False):
        _ask(found)


def _ask(found: Audit) -> None:
    """Ask until all is answered or a person stops; what is answered is kept at once."""
    note(f"The picture is {found.picture}; keep it open in a viewer that reloads it.")
    while (question := found.next()) is not None:
        found.draw(question)
        done, total = found.progress
        text = f"{done + 1}/{total}: the cross is {question.name!r} (y, n, ? = cannot tell, q)"
        answer = typer.prompt(text, prompt_suffix=" ").strip().lower()
        if answer == "q":
            break
        if answer not in ("y", "n", "?"):
            note("please answer y, n, ? or q")
            continue
        found.answer(question, {"y": True, "n": False, "?": None}[answer])
    score = found.estimate()
    if score is None:
        note("too few answers for an estimate; the same command goes on")
        return
    result(
        f"accuracy {score.accuracy:.1%}, 95 % interval {score.low:.1%} to {score.high:.1%}, "
        f"from {score.answers} answers"
    )
