"""Charts of an experiment; sheets of images are in :mod:`primaps.reproduction.sheets`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev

from primaps.pictures.charts import iou_chart, result_confusion, save, sweep_chart
from primaps.reproduction.rows import Experiment, Picture
from primaps.reproduction.run_context import Laboratory, Outcome
from primaps.reproduction.sheets import SHEETS, as_evaluation
from primaps.results import write_marked_png

NOT_CHARTED = ("without CRF", "baseline + CRF", "oracle, all pixels")
"""Parts of labels of rows that would clutter a chart beside those that they hardly differ from."""
IMAGES = 6
"""In a sheet."""
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
    if "psi" in experiment.pictures and done:
        captioned.append(_psi(done, folder))
    for dataset, backbone in dict.fromkeys((o.row.dataset, o.row.backbone) for o in done):
        group = [o for o in done if (o.row.dataset, o.row.backbone) == (dataset, backbone)]
        name = f"{dataset}-{Path(backbone).name}"
        where = f"{dataset}, {Path(backbone).name}"
        for picture in experiment.pictures:
            if picture == "iou":
                captioned += _iou(group, folder, name, where)
            elif picture == "confusion":
                captioned += _confusion(group, folder, name, where)
            elif picture in SHEETS:
                captioned += _sheet(picture, group, laboratory, folder, name, where)
    return captioned


def compared(group: Sequence[Outcome]) -> list[Outcome]:
    """Predictions that the paper compares: baseline, PriMaPs-EM, STEGO, HP, and both with it."""
    rows = [o for o in group if o.row.kind in ("baseline", "em", "clusters") and charted(o)]
    return [o for o in rows if "recipe" not in o.row.options]


def charted(outcome: Outcome) -> bool:
    """Whether a row is drawn."""
    return not any(part in outcome.row.label for part in NOT_CHARTED)


def _psi(done: Sequence[Outcome], folder: Path) -> Captioned:
    """Figure 7: mean IoU of PriMaPs-EM and of the oracle over psi."""
    panels: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for outcome in done:
        row = outcome.row
        values = [100 * row.scores(result)["mean_iou"] for result in outcome.results.values()]
        spread = stdev(values) if len(values) > 1 else 0.0
        name = "PriMaPs-EM" if row.kind == "em" else "oracle, all pixels"
        curves = panels.setdefault(f"{row.dataset}, {Path(row.backbone).name}", {})
        point = (row.options["threshold"], mean(values), spread)
        curves.setdefault(name, []).append(point)
    save(sweep_chart(panels, "psi", "mean IoU, %"), folder / "psi.png")
    return "psi.png", (
        "Mean IoU by psi; bars: standard deviation of the seeds. The oracle, which the paper does "
        "not have here, is what the masks would give if they knew their classes."
    )


def _iou(group: Sequence[Outcome], folder: Path, name: str, where: str) -> Iterator[Captioned]:
    """IoU by class: of rows on features, and of those on codes of STEGO and of HP."""
    for method in dict.fromkeys(outcome.row.projection for outcome in group):
        rows = [outcome for outcome in group if outcome.row.projection == method]
        distinct = [outcome for outcome in rows if charted(outcome)]
        shown = distinct if len(distinct) > 1 else rows
        series = {outcome.row.label: outcome.iou for outcome in shown}
        file = f"iou-{_slug(method)}-{name}.png" if method else f"iou-{name}.png"
        save(iou_chart(series, where), folder / file)
        yield file, f"IoU per class, {where}, mean of the seeds; dashed: means."


def _confusion(
    group: Sequence[Outcome], folder: Path, name: str, where: str
) -> Iterator[Captioned]:
    for outcome in compared(group):
        seed, result = next(iter(outcome.results.items()))
        file = f"confusion-{_slug(outcome.row.label)}-{name}.png"
        title = f"{outcome.row.label}, accuracy {100 * result['accuracy']:.1f} %"
        save(result_confusion(as_evaluation(result), title), folder / file)
        yield file, f"Confusion matrix of {outcome.row.label}, {where}, seed {seed}."


def _sheet(
    kind: Picture,
    group: Sequence[Outcome],
    laboratory: Laboratory,
    folder: Path,
    name: str,
    where: str,
) -> Iterator[Captioned]:
    """A sheet of images, with the first seed of each row."""
    if group[0].row.backbone not in laboratory.used:  # results of before, and no weights now
        return
    outcomes = group if kind in ("oracle", "similarities", "thresholds") else compared(group)
    sheet = SHEETS[kind](outcomes, laboratory, IMAGES) if outcomes else None
    if sheet is None:
        return
    picture, caption = sheet
    file = f"{_slug(kind)}-{name}.png"
    write_marked_png(picture, folder / file)
    yield file, f"{caption}; {where}, seed {next(iter(outcomes[0].results))}."


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower())
