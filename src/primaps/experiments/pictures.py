"""Pictures of an experiment: IoU per class, confusion matrices, examples and the worst images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from primaps.data import Sample
from primaps.evaluation.protocol import Evaluation
from primaps.experiments.laboratory import Laboratory, Outcome
from primaps.experiments.tables import Experiment
from primaps.model import PriMaPsEM
from primaps.pictures.charts import iou_chart, save
from primaps.pictures.scores import evenly, example_sheet, result_confusion
from primaps.support.ours import write_png
from primaps.support.typed import conform

NOT_CHARTED = ("baseline + CRF", "PriMaPs-EM without CRF", "oracle, all pixels")
"""Rows that would clutter a chart beside those that they hardly differ from."""
Captioned = tuple[str, str]
"""Name of a file beside the report, and what it shows."""


def draw(
    experiment: Experiment, outcomes: Sequence[Outcome], laboratory: Laboratory, folder: Path
) -> list[Captioned]:
    """Draw what the experiment asks for, per data set and backbone, of the rows that have results.

    Returns:
        Names of files with captions, in order.
    """
    done = [outcome for outcome in outcomes if outcome.results]
    captioned: list[Captioned] = []
    for dataset, backbone in dict.fromkeys((o.row.dataset, o.row.backbone) for o in done):
        group = [o for o in done if (o.row.dataset, o.row.backbone) == (dataset, backbone)]
        name = f"{dataset}-{Path(backbone).name}"
        where = f"{dataset}, {Path(backbone).name}"
        if "iou" in experiment.pictures:
            captioned.append(_iou(group, folder, name, where))
        if "confusion" in experiment.pictures:
            captioned += _confusion(group, folder, name, where)
        for kind in ("examples", "worst"):
            if kind in experiment.pictures:
                captioned += _sheet(kind, group, laboratory, folder, name, where, experiment.images)
    return captioned


def _iou(group: Sequence[Outcome], folder: Path, name: str, where: str) -> Captioned:
    distinct = [o for o in group if o.row.label not in NOT_CHARTED]
    shown = distinct if len(distinct) > 1 else group
    series = {outcome.row.label: outcome.iou for outcome in shown}
    save(iou_chart(series, where), folder / f"iou-{name}.png")
    return f"iou-{name}.png", f"IoU per class, {where}, mean of the seeds; dashed: means."


def _confusion(
    group: Sequence[Outcome], folder: Path, name: str, where: str
) -> Iterator[Captioned]:
    for outcome in _compared(group):
        seed, result = next(iter(outcome.results.items()))
        file = f"confusion-{_slug(outcome.row.label)}-{name}.png"
        title = f"{outcome.row.label}, accuracy {100 * result['accuracy']:.1f} %"
        save(result_confusion(as_evaluation(result), title), folder / file)
        yield file, f"Confusion matrix of {outcome.row.label}, {where}, seed {seed}."


def _compared(group: Sequence[Outcome]) -> list[Outcome]:
    """Baseline and PriMaPs-EM, or a projection alone and with PriMaPs-EM."""
    plain = [o for o in group if o.row.label in ("baseline", "PriMaPs-EM")]
    return plain or [o for o in group if o.row.projection]


def as_evaluation(result: dict[str, Any]) -> Evaluation:
    """The evaluation that a result of a run holds, as it is kept in JSON."""
    names = {field.name for field in fields(Evaluation)}
    kept = {name: value for name, value in result.items() if name in names}
    return conform({**kept, "options": {"root": "", **kept["options"]}}, Evaluation, "result")


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower())


def _sheet(
    kind: str,
    group: Sequence[Outcome],
    laboratory: Laboratory,
    folder: Path,
    name: str,
    where: str,
    number: int,
) -> Iterator[Captioned]:
    """Images with their label and the predictions of baseline and PriMaPs-EM."""
    shown = _compared(group)
    network = laboratory.used.get(group[0].row.backbone)
    if not shown or network is None:
        return
    data = laboratory.source(group[0].row.dataset).score
    seed, last = next(iter(shown[-1].results.items()))
    if kind == "worst":
        order = sorted(last["by_image"], key=last["by_image"].__getitem__)[:number]
        by_key = {sample.key: sample for sample in data.samples}
        samples: list[Sample] = [by_key[key] for key in order]
        caption = f"The {len(samples)} images of lowest accuracy by {shown[-1].row.label}"
    else:
        samples = evenly(data, number)
        caption = "Images at even distances in the list, not chosen by their scores"
    columns: dict[str, tuple[PriMaPsEM, Evaluation]] = {}
    for outcome in shown:
        result = next(iter(outcome.results.values()))
        path = laboratory.reproduction.out / result["model"]
        if not path.is_dir():  # results were copied here without models
            return
        model = PriMaPsEM.from_pretrained(path, backbone=network, device=network.device)
        columns[outcome.row.label] = (model, as_evaluation(result))
    write_png(example_sheet(columns, data, samples), folder / f"{kind}-{name}.png")
    yield f"{kind}-{name}.png", f"{caption}; {where}, seed {seed}. Dark: ignored, or no class."
