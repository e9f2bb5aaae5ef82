"""Charts and sheets of images of an experiment, as in the figures of the paper.

Sheets use the first seed of each row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image
from torch import Tensor

from primaps.backbones.backbone import image_features
from primaps.data import Dataset, ImageError, load_pair
from primaps.em.em import assign
from primaps.evaluation.oracle import oracle_classes
from primaps.evaluation.protocol import Evaluation, predict_samples
from primaps.features.feature_cache import MASKS
from primaps.model import PriMaPsEM
from primaps.pictures.charts import (
    class_colors,
    class_table,
    evenly,
    example_sheet,
    iou_chart,
    result_confusion,
    save,
    sweep_chart,
)
from primaps.pictures.explain import masks_picture, similarity_pictures
from primaps.pictures.overlays import grid, overlay, with_legend
from primaps.proposals.image_size import image_masks
from primaps.proposals.principal_masks import propose
from primaps.reproduction.registry import Experiment, Figure
from primaps.reproduction.run_context import Outcome, RunContext
from primaps.results import write_marked_png
from primaps.utils.errors import PrimapsError
from primaps.utils.validation import validate

NOT_CHARTED = ("without CRF", "baseline + CRF", "oracle, all pixels")
"""Fragments of the labels of rows that charts omit because they hardly differ from another row."""
SHEET_IMAGES = 6
"""Images in a sheet."""
SELECTION = "Images at even distances in the list, not selected by their scores"
DARK = "dark: ignored, or no class"
PSI = (0.3, 0.4, 0.5)
"""Values of psi in Figure 6."""
JUDGED_IMAGES = 100
"""Images whose pseudo labels Figure 10 compares. Each needs masks and a CRF."""
FIRST_MASKS = 3
"""Masks that Figures 1 and 5 show one by one."""

CaptionedFile = tuple[str, str]
"""Name of a file beside the report, and its caption."""
Sheet = tuple[Image.Image, str]
"""A sheet of images, and its caption."""
Pair = tuple[UInt8[Tensor, "3 h w"], Integer[Tensor, "h w"]]
"""An image and its label map."""


def draw(
    experiment: Experiment, outcomes: Sequence[Outcome], context: RunContext, folder: Path
) -> list[CaptionedFile]:
    """Draw the figures of an experiment for each data set and backbone that has results.

    Returns:
        Names of files with captions, in order.
    """
    done = [outcome for outcome in outcomes if outcome.results]
    files: list[CaptionedFile] = []
    if "psi" in experiment.figures and done:
        files.append(_psi(done, folder))
    for dataset, backbone in dict.fromkeys((o.row.dataset, o.row.backbone) for o in done):
        group = [o for o in done if (o.row.dataset, o.row.backbone) == (dataset, backbone)]
        name = f"{dataset}-{Path(backbone).name}"
        title = f"{dataset}, {Path(backbone).name}"
        for figure in experiment.figures:
            if figure == "iou":
                files += _iou(group, folder, name, title)
            elif figure == "confusion":
                files += _confusion(group, folder, name, title)
            elif figure in SHEETS:
                files += _sheet(figure, group, context, folder, name, title)
    return files


def as_evaluation(result: dict[str, Any]) -> Evaluation:
    """Return the evaluation that a result in JSON contains."""
    names = {field.name for field in fields(Evaluation)}
    content = {name: value for name, value in result.items() if name in names}
    options = {"root": "", **content["options"]}
    return validate({**content, "options": options}, Evaluation, "result")


def compared(group: Sequence[Outcome]) -> list[Outcome]:
    """Select the predictions that the paper compares: baseline, PriMaPs-EM, STEGO, HP, and both."""
    rows = [o for o in group if o.row.kind in ("baseline", "em", "clusters") and charted(o)]
    return [o for o in rows if "recipe" not in o.row.options]


def charted(outcome: Outcome) -> bool:
    """Return whether charts include a row."""
    return not any(fragment in outcome.row.label for fragment in NOT_CHARTED)


def _psi(done: Sequence[Outcome], folder: Path) -> CaptionedFile:
    """Figure 7: mean IoU of PriMaPs-EM and of the oracle for each psi."""
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
        "Mean IoU for each psi; bars: standard deviation over the seeds. The oracle, which is not "
        "in the paper, assigns the classes of the labels to the masks."
    )


def _iou(group: Sequence[Outcome], folder: Path, name: str, title: str) -> Iterator[CaptionedFile]:
    """IoU per class: one chart for features, and one for the codes of each method."""
    for method in dict.fromkeys(outcome.row.projection for outcome in group):
        rows = [outcome for outcome in group if outcome.row.projection == method]
        distinct = [outcome for outcome in rows if charted(outcome)]
        series = {o.row.label: o.iou for o in (distinct if len(distinct) > 1 else rows)}
        file = f"iou-{_slug(method)}-{name}.png" if method else f"iou-{name}.png"
        save(iou_chart(series, title), folder / file)
        yield file, f"IoU per class, {title}, mean of the seeds; dashed: means."


def _confusion(
    group: Sequence[Outcome], folder: Path, name: str, title: str
) -> Iterator[CaptionedFile]:
    for outcome in compared(group):
        seed, result = next(iter(outcome.results.items()))
        file = f"confusion-{_slug(outcome.row.label)}-{name}.png"
        heading = f"{outcome.row.label}, accuracy {100 * result['accuracy']:.1f} %"
        save(result_confusion(as_evaluation(result), heading), folder / file)
        yield file, f"Confusion matrix of {outcome.row.label}, {title}, seed {seed}."


def _sheet(
    figure: Figure, group: Sequence[Outcome], context: RunContext, folder: Path, name: str,
    title: str,
) -> Iterator[CaptionedFile]:  # fmt: skip
    if group[0].row.backbone not in context.loaded:  # earlier results, no weights
        return
    outcomes = group if figure in ("oracle", "similarities", "thresholds") else compared(group)
    sheet = SHEETS[figure](outcomes, context, SHEET_IMAGES) if outcomes else None
    if sheet is None:
        return
    image, caption = sheet
    file = f"{_slug(figure)}-{name}.png"
    write_marked_png(image, folder / file)
    yield file, f"{caption}; {title}, seed {next(iter(outcomes[0].results))}."


def predictions(outcomes: Sequence[Outcome], context: RunContext, count: int) -> Sheet | None:
    """Figures 4 and 9: image, label, and the prediction of each row."""
    data = context.source(outcomes[0].row.dataset).score
    columns = {}
    for outcome in outcomes:
        fitted = _fitted(outcome, context)
        if fitted is None:
            return None
        columns[outcome.row.label] = fitted
    return example_sheet(columns, data, evenly(data, count)), f"{SELECTION}; {DARK}"


def oracle(outcomes: Sequence[Outcome], context: RunContext, count: int) -> Sheet:
    """Figure 3: image, label, colored masks, masks with the classes of their labels."""
    data, model, pairs = _images(outcomes[0], context, count)
    rows, maps = [], []
    for pixels, label in pairs:
        mask = model.masks(image_features(model.backbone, pixels[None]), pixels[None])[0].cpu()
        classes = oracle_classes(mask, label, len(data.classes), data.ignore_index)
        classes[0] = data.ignore_index
        shown = [label.numpy(), classes[mask.long()].numpy()]
        image = _image(pixels)
        left, right = (_overlay(image, labels, data) for labels in shown)
        rows.append([image, left, masks_picture(image, mask), right])
        maps += shown
    titles = ("image", "label", "masks", "masks with the classes of their labels")
    return _with_classes(grid(rows, titles), maps, data), f"{SELECTION}; {DARK}, or in no mask"


def similarities(outcomes: Sequence[Outcome], context: RunContext, count: int) -> Sheet:
    """Figure 5: similarity to the principal directions (left) and to their neighbors (right)."""
    data, model, pairs = _images(outcomes[0], context, count)
    rows, maps = [], []
    for pixels, label in pairs:
        features = image_features(model.backbone, pixels[None]).cpu()
        found = propose(features, threshold=model.config.threshold, return_details=True)
        image = _image(pixels)
        cells = similarity_pictures(image, features[0], found, FIRST_MASKS)
        blank = [Image.new("RGB", image.size, "white")] * (FIRST_MASKS - len(cells))
        left, right = ([cell[side] for cell in cells] + blank for side in (0, 1))
        rows.append([image, _overlay(image, label.numpy(), data), *left, *right])
        maps.append(label.numpy())
    titles = ["image", "label"]
    titles += [f"direction {i + 1}" for i in range(FIRST_MASKS)]
    titles += [f"neighbor {i + 1}" for i in range(FIRST_MASKS)]
    caption = f"{SELECTION}. Similarity to the principal direction of each of the first masks, and "
    caption += (
        "to its nearest neighbor (cross): dark blue is 0 or less, yellow the maximum, gray is "
    )
    return _with_classes(grid(rows, titles, 180), maps, data), f"{caption}in an earlier mask"


def thresholds(outcomes: Sequence[Outcome], context: RunContext, count: int) -> Sheet:
    """Figure 6: masks for three values of psi."""
    _, model, pairs = _images(outcomes[0], context, count)
    options, rows = model.mask_maker().options, []
    for pixels, _ in pairs:
        features, image = image_features(model.backbone, pixels[None]), _image(pixels)
        rows.append([image])
        for psi in PSI:
            masks = image_masks(features, pixels[None], **{**options, "threshold": psi})[0]
            rows[-1].append(masks_picture(image, masks.cpu()))
    titles = ("image", *(f"psi {psi:g}" for psi in PSI))
    return grid(rows, titles), f"{SELECTION}; dark: in no mask"


def pseudo_labels(outcomes: Sequence[Outcome], context: RunContext, count: int) -> Sheet | None:
    """Figure 1: the first masks one after the other, all masks, and the pseudo label."""
    fitted = _fitted(outcomes[-1], context)
    if fitted is None:
        return None
    model, result = fitted
    data, _, pairs = _images(outcomes[-1], context, count)
    rows, maps = [], []
    for pixels, _ in pairs:
        image = _image(pixels)
        mask, pseudo = _pseudo_label(model, result, data, pixels)
        first = [torch.where(mask <= z, mask, 0) for z in range(1, FIRST_MASKS + 1)]
        rows.append([image, *(masks_picture(image, some) for some in (*first, mask))])
        rows[-1].append(_overlay(image, pseudo, data))
        maps.append(pseudo)
    titles = ("image", "first mask", "two masks", "three masks", "all masks", "pseudo label")
    return _with_classes(grid(rows, titles), maps, data), f"{SELECTION}; dark: in no mask"


def failures(outcomes: Sequence[Outcome], context: RunContext, count: int) -> Sheet | None:
    """Figure 10: images with the lowest accuracy of the segmentation and of the pseudo label."""
    fitted = _fitted(outcomes[-1], context)
    if fitted is None:
        return None
    model, result = fitted
    data = context.source(outcomes[-1].row.dataset).score
    by_key = {sample.key: sample for sample in data.samples}
    worst = sorted(result.by_image, key=result.by_image.__getitem__)[:count]
    rows, maps, classes = [], [], class_table(result, data.ignore_index)
    for one in predict_samples(model, data, [by_key[key] for key in worst], result.options):
        image = _image(one.image)
        shown = [one.label.numpy(), classes[one.clusters.numpy()]]
        rows.append([image, *(_overlay(image, labels, data) for labels in shown)])
        maps += shown
    judged = []
    for key in (s.key for s in evenly(data, JUDGED_IMAGES) if s.key in result.by_image):
        pixels, label = load_pair(
            data, by_key[key], model.size, resize=result.options.resize or "pillow"
        )
        pair = label.numpy(), _pseudo_label(model, result, data, pixels)[1]
        counted = (pair[0] != data.ignore_index) & (pair[1] != data.ignore_index)
        if counted.any():
            judged.append((float((pair[0] == pair[1])[counted].mean()), key, pixels, pair))
    judged.sort(key=lambda one: one[:2])
    for row, (_, _, pixels, pair) in zip(rows, judged, strict=False):
        image = _image(pixels)
        row += [image, *(_overlay(image, labels, data) for labels in pair)]
        maps += pair
    titles = ("image", "label", "segmentation", "image", "label", "pseudo label")
    caption = (
        "Images with the lowest accuracy of the segmentation (left, of all images), and of the "
    )
    caption += f"pseudo label inside of masks (right, of at most {JUDGED_IMAGES} images)"
    return _with_classes(grid(rows, titles), maps, data), caption


SHEETS: dict[str, Callable[[Sequence[Outcome], RunContext, int], Sheet | None]] = {
    "examples": predictions,
    "oracle": oracle,
    "similarities": similarities,
    "thresholds": thresholds,
    "pseudo labels": pseudo_labels,
    "failures": failures,
}


def _fitted(outcome: Outcome, context: RunContext) -> tuple[PriMaPsEM, Evaluation] | None:
    """Return the model of the first seed and its scores, or None if the model cannot be loaded."""
    result = next(iter(outcome.results.values()))
    path = context.reproduction.out / result["model"]
    if not path.is_dir():
        return None
    network = context.loaded[outcome.row.backbone]
    checkpoint = context.reproduction.projection(outcome.row)
    codes = context.checkpoint(checkpoint) if outcome.row.projection and checkpoint else None
    try:
        model = PriMaPsEM.from_pretrained(
            path, backbone=network, device=network.device, projection=codes
        )
    except PrimapsError:
        return None
    return model, as_evaluation(result)


def _images(
    outcome: Outcome, context: RunContext, count: int
) -> tuple[Dataset, PriMaPsEM, list[Pair]]:
    """Return the data set of a row, a model for its masks, and some images with labels."""
    row, reproduction = outcome.row, context.reproduction
    data, seed = context.source(row.dataset).score, next(iter(outcome.results))
    options = reproduction.config(row, seed)
    options.pop("precision", None)
    model = PriMaPsEM(len(data.classes), backbone=context.loaded[row.backbone], **options)
    pairs = []
    for sample in evenly(data, count):
        try:
            pairs.append(load_pair(data, sample, model.size, resize=reproduction.resize))
        except ImageError:  # reported when the image was scored
            continue
    return data, model, pairs


def _pseudo_label(
    model: PriMaPsEM, result: Evaluation, data: Dataset, pixels: UInt8[Tensor, "3 h w"]
) -> tuple[Integer[Tensor, "h w"], Integer[np.ndarray, "h w"]]:
    """Return the masks of an image, and its pseudo label in the classes of the data set."""
    mask = model.masks(image_features(model.backbone, pixels[None]), pixels[None])
    mask = torch.where(mask < MASKS, mask, 0)
    logits = model.segmenter.logits(image_features(model.encoder, pixels[None]))
    clusters = assign(logits, mask)[0][0].cpu().numpy()
    classes = np.append(class_table(result, data.ignore_index), data.ignore_index)  # for -1
    return mask[0].cpu(), classes[clusters]


def _image(pixels: UInt8[Tensor, "3 h w"]) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _overlay(image: Image.Image, labels: Integer[np.ndarray, "h w"], data: Dataset) -> Image.Image:
    """Blend the colors of classes with an image; ignored pixels are dark."""
    shown = np.where(labels == data.ignore_index, len(data.classes), labels)
    colors = class_colors(data)
    colors = np.concatenate([colors, np.zeros_like(colors[:1])])
    return overlay(image, shown, colors, 0.75, ignore=len(data.classes))


def _with_classes(
    sheet: Image.Image, maps: Sequence[Integer[np.ndarray, "h w"]], data: Dataset
) -> Image.Image:
    """Add a legend of the classes that occur."""
    present = sorted(set(np.concatenate([np.unique(each) for each in maps]).tolist()))
    shown = [k for k in present if k != data.ignore_index]
    return with_legend(sheet, [data.classes[k] for k in shown], class_colors(data)[shown], 17)


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower())
