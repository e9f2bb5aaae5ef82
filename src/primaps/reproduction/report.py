"""The report of an experiment: ours beside the paper's, and everything needed to trust it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from primaps.planning import duration
from primaps.reproduction.environment import environment, environment_lines, write_lists
from primaps.reproduction.notes import differences
from primaps.reproduction.paper import IOU, IOU_METHODS, IOU_OF
from primaps.reproduction.pictures import draw
from primaps.reproduction.rows import Experiment
from primaps.reproduction.run_context import Laboratory, Outcome
from primaps.results import GENERATOR, output_file, write_marked_json

ORDER = ("baseline", "PriMaPs-EM", "linear probe", "oracle, pixels in masks")
"""In mean IoU, as the paper finds it."""
LABELED_KINDS = {"probe": "linear probe", "oracle": "oracle"}
"""Kinds of rows that are made with labels."""


def write_report(
    experiment: Experiment, outcomes: Sequence[Outcome], laboratory: Laboratory
) -> Path:
    """Write ``report.md``, ``report.json``, pictures and lists of image ids.

    Returns:
        ``report.md``.
    """
    folder = laboratory.reproduction.out / experiment.name
    captions = draw(experiment, outcomes, laboratory, folder)
    about = environment(outcomes, laboratory)
    rows = [_row_about(outcome) for outcome in outcomes]
    content = {
        "name": experiment.name,
        "title": experiment.title,
        "rows": rows,
        **about,
    }
    write_lists(laboratory, folder)
    write_marked_json(folder / "report.json", content)
    lines = [f"# {experiment.title}", "", " ".join(_introduction(outcomes, laboratory)), ""]
    lines += [*table(outcomes), ""]
    told = differences(outcomes, laboratory.reproduction)
    notes = experiment.notes if any(o.row.paper for o in outcomes) else ()
    sentences = (*_order(outcomes), *_notes(outcomes), *notes, *told)
    lines += [*(f"- {sentence}" for sentence in sentences), ""]
    if "iou table" in experiment.pictures:
        lines += [*iou_table(outcomes), ""]
    for picture, caption in captions:
        lines += [f"![{Path(picture).stem}]({picture})", "", caption, ""]
    lines += ["## Environment", "", *environment_lines(about)]
    with output_file(folder / "report.md") as temporary:
        text = "\n".join(lines).rstrip()
        temporary.write_text(f"<!-- generator: {GENERATOR} -->\n\n{text}\n", "utf-8")
    return folder / "report.md"


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """The table in Markdown: accuracy and mean IoU in %, ours and, where there are, the paper's."""
    paper = any(outcome.row.paper for outcome in outcomes)
    several = len({outcome.row.dataset for outcome in outcomes}) > 1
    head = [*(["data set"] if several else []), "backbone", "method", "accuracy", "mean IoU"]
    head += [*(["paper: accuracy", "paper: mean IoU"] if paper else []), "time per run"]
    lines = [_line(head), _line("---" for _ in head)]
    for outcome in outcomes:
        row, results = outcome.row, list(outcome.results.values())
        cells = [*([row.dataset] if several else []), Path(row.backbone).name, row.label]
        for figure in ("accuracy", "mean_iou"):
            values = [100 * row.scores(result)[figure] for result in results]
            cells.append(spread(values) if values else "-")
        if paper:
            star = " *" if row.quoted else ""
            known = row.paper or (None, None)
            cells += ["" if value is None else f"{value:.1f}{star}" for value in known]
        times = [sum(result["seconds"].values()) for result in results]
        cells.append(duration(statistics.mean(times)) if times else "")
        if outcome.reason:
            done = f"{cells[-1]} for {len(times)} of the seeds; " if times else ""
            cells[-1] = done + outcome.reason
        lines.append(_line(cells))
    return lines


def iou_table(outcomes: Sequence[Outcome]) -> list[str]:
    """IoU by class in %, mean of the seeds, and beside it what Figure 8a prints: it is of one data
    set and one backbone."""
    done = [outcome for outcome in outcomes if outcome.results]
    if not done:
        return []
    several = len({outcome.row.backbone for outcome in done}) > 1
    head, columns = ["class"], []
    for row, iou in ((outcome.row, outcome.iou) for outcome in done):
        head.append(f"{row.label}, {Path(row.backbone).name}" if several else row.label)
        columns.append({k: "-" if v is None else f"{100 * v:.1f}" for k, v in iou.items()})
        if (row.dataset, row.backbone) == IOU_OF:
            place = IOU_METHODS.index(row.label)
            head.append("paper")
            columns.append({name: f"{printed[place]:.1f}" for name, printed in IOU.items()})
    lines = [_line(head), _line("---" for _ in head)]
    lines += [_line([name, *(column[name] for column in columns)]) for name in columns[0]]
    return lines


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of the seeds.

    Examples:
        >>> spread([50.0, 51.0, 52.0]), spread([50.0])
        ('51.0 ± 1.0', '50.0')
    """
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _introduction(outcomes: Sequence[Outcome], laboratory: Laboratory) -> Iterator[str]:
    kinds = {outcome.row.kind for outcome in outcomes}
    uses = ["scores", *(f"the {LABELED_KINDS[kind]}" for kind in LABELED_KINDS if kind in kinds)]
    for name, source in laboratory.sources.items():
        train, score = source.train, source.score
        where = f"{name} ({score.root.name})" if name == "folder" else name
        if train.samples == score.samples:
            text = f"fitted to and scored on the same {len(score.samples):,} images"
            text += ", the linear probe too, which sees their labels" if "probe" in kinds else ""
        else:
            text = f"fitted to {len(train.samples):,} images ({train.split}), scored on "
            text += f"{len(score.samples):,} others ({score.split})"
        yield f"{where}, {len(score.classes)} classes: {text}."
    seeds = laboratory.reproduction.seeds
    several = f"seeds {', '.join(map(str, seeds))}, mean ± standard deviation"
    protocol = "Accuracy and mean IoU in %, at the size of the model, center crop"
    if kinds != {"oracle"}:
        protocol += "; predictions are averaged with those of the flipped image"
    if kinds & {"baseline", "em", "clusters"}:
        protocol += "; classes found without labels are assigned to those of the set by one "
        protocol += "Hungarian matching"
    yield (
        f"{protocol}; {several if len(seeds) > 1 else f'seed {seeds[0]}'}. Labels are used for "
        f"{', '.join(uses[:-1])}{' and ' * (len(uses) > 1)}{uses[-1]} alone."
    )


def _order(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Whether mean IoU grows from baseline to oracle, as in the paper, and the classes if not."""
    for key in dict.fromkeys((o.row.dataset, o.row.backbone) for o in outcomes):
        group = [o for o in outcomes if (o.row.dataset, o.row.backbone) == key and o.results]
        known = sorted((o for o in group if o.row.label in ORDER), key=_place)
        if len(known) < 3:
            continue
        text = ", ".join(f"{o.row.label} {_mean_iou(o):.1f}" for o in known)
        broken = [_inverted(a, b) for a, b in pairwise(known) if _mean_iou(a) >= _mean_iou(b)]
        holds = f"does not hold: {'; '.join(broken)}" if broken else "holds"
        yield f"The paper's order in mean IoU ({Path(key[1]).name}: {text}) {holds}."


def _place(outcome: Outcome) -> int:
    return ORDER.index(outcome.row.label)


def _mean_iou(outcome: Outcome) -> float:
    results = outcome.results.values()
    return statistics.mean(100 * outcome.row.scores(result)["mean_iou"] for result in results)


def _inverted(above: Outcome, below: Outcome, most: int = 3) -> str:
    """That the first is not below the second, and by which classes."""
    others, found = below.iou, []
    for name, ours in above.iou.items():
        theirs = others[name]
        if ours is not None and theirs is not None and ours > theirs:
            text = f"{name} ({100 * ours:.1f} against {100 * theirs:.1f})"
            found.append((ours - theirs, text))
    largest = ", ".join(text for _, text in sorted(found, reverse=True)[:most])
    text = f"{above.row.label} is not below {below.row.label}"
    return f"{text}, most of all in {largest}" if largest else text


def _notes(outcomes: Sequence[Outcome]) -> Iterator[str]:
    labels = {outcome.row.label for outcome in outcomes}
    if labels & {"baseline", "linear probe"}:
        yield (
            "The baseline is k-means on normalized features, of as many epochs as PriMaPs-EM. "
            "Predictions of the baseline and the linear probe are not refined by the CRF, unless a "
            "row says so."
        )
    if "PriMaPs-EM without CRF" in labels:
        yield "PriMaPs-EM without CRF is the same model; only its predictions are not refined."
    if any(outcome.row.kind == "oracle" for outcome in outcomes):
        yield (
            "The oracle gives each mask its most frequent label, and is scored over the pixels "
            "that lie in a mask, or over all, those in none counted wrong."
        )
    if any(outcome.row.kind != "oracle" for outcome in outcomes):
        yield (
            "The time of a run includes its fit, also where another row made it. Features and "
            "masks are computed once, in the first run that needs them."
        )


def _row_about(outcome: Outcome) -> dict[str, Any]:
    row = outcome.row
    return {
        "label": row.label,
        "dataset": row.dataset,
        "backbone": Path(row.backbone).name,
        "kind": row.kind,
        "split": row.split,
        "crf": row.crf,
        "options": dict(row.options),
        "projection": row.projection,
        "paper": row.paper,
        "quoted": row.quoted,
        "reason": outcome.reason,
        "runs": [{**result, **row.scores(result)} for result in outcome.results.values()],
    }


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
