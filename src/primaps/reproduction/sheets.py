"""Sheets of images of the paper's figures, drawn from the first seed of each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image
from torch import Tensor

from primaps.backbones.backbone import image_features
from primaps.data import Dataset, ImageError, Sample, load_pair
from primaps.em.em import assign
from primaps.evaluation.oracle import oracle_classes
from primaps.evaluation.protocol import Evaluation, predict_samples
from primaps.features.feature_cache import MASKS
from primaps.model import PriMaPsEM
from primaps.pictures.charts import class_colors, class_table, evenly, example_sheet
from primaps.pictures.explain import masks_picture, similarity_pictures
from primaps.pictures.overlays import grid, overlay, with_legend
from primaps.proposals.image_size import image_masks
from primaps.proposals.principal_masks import propose
from primaps.reproduction.run_context import Laboratory, Outcome
from primaps.utils.errors import PrimapsError
from primaps.utils.validation import validate

Sheet = tuple[Image.Image, str]
Pair = tuple[UInt8[Tensor, "3 h w"], Integer[Tensor, "h w"]]
NOT_CHOSEN = "Images at even distances in the list, not chosen by their scores"
DARK = "dark: ignored, or no class"
PSI = (0.3, 0.4, 0.5)
"""Of Figure 6."""
JUDGED = 100
"""Images whose pseudo labels are compared: each takes masks and a CRF."""
FIRST = 3
"""Masks that Figures 1 and 5 show one by one."""


def as_evaluation(result: dict[str, Any]) -> Evaluation:
    """The evaluation that a result of a run holds, as it is kept in JSON."""
    names = {field.name for field in fields(Evaluation)}
    kept = {name: value for name, value in result.items() if name in names}
    return validate({**kept, "options": {"root": "", **kept["options"]}}, Evaluation, "result")


def predictions(outcomes: Sequence[Outcome], laboratory: Laboratory, number: int) -> Sheet | None:
    """Figures 4 and 9: image, label, and what each row predicts."""
    data = laboratory.source(outcomes[0].row.dataset).score
    columns = {}
    for outcome in outcomes:
        fitted = _fitted(outcome, laboratory)
        if fitted is None:
            return None
        columns[outcome.row.label] = fitted
    return example_sheet(columns, data, evenly(data, number)), f"{NOT_CHOSEN}; {DARK}"


def oracle(outcomes: Sequence[Outcome], laboratory: Laboratory, number: int) -> Sheet:
    """Figure 3: image, label, masks in colors, masks with the classes of their labels."""
    data, model, pairs = _images(outcomes[0], laboratory, number)
    rows, maps = [], []
    for image, label in pairs:
        mask = model.masks(image_features(model.backbone, image[None]), image[None])[0].cpu()
        classes = oracle_classes(mask, label, len(data.classes), data.ignore_index)
        classes[0] = data.ignore_index
        shown = [label.numpy(), classes[mask.long()].numpy()]
        picture = _picture(image)
        masks = masks_picture(picture, mask)
        rows.append([picture, _painted(picture, shown[0], data), masks])
        rows[-1].append(_painted(picture, shown[1], data))
        maps += shown
    titles = ("image", "label", "masks", "masks with their labels' classes")
    return _with_classes(grid(rows, titles), maps, data), f"{NOT_CHOSEN}; {DARK}, or in no mask"


def similarities(outcomes: Sequence[Outcome], laboratory: Laboratory, number: int) -> Sheet:
    """Figure 5: similarity to the principal directions (left) and to their neighbors (right)."""
    data, model, pairs = _images(outcomes[0], laboratory, number)
    rows, maps = [], []
    for image, label in pairs:
        features = image_features(model.backbone, image[None]).cpu()
        found = propose(features, threshold=model.config.threshold, return_details=True)
        picture = _picture(image)
        cells = similarity_pictures(picture, features[0], found, FIRST)
        blank = [Image.new("RGB", picture.size, "white")] * (FIRST - len(cells))
        left, right = ([cell[side] for cell in cells] + blank for side in (0, 1))
        rows.append([picture, _painted(picture, label.numpy(), data), *left, *right])
        maps.append(label.numpy())
    titles = ["image", "label"]
    titles += [f"direction {i + 1}" for i in range(FIRST)]
    titles += [f"neighbor {i + 1}" for i in range(FIRST)]
    caption = f"{NOT_CHOSEN}. Similarity to the principal direction of each of the first masks, and"
    caption += " to its nearest neighbor (cross): dark blue is 0 or less, yellow the largest, gray"
    return _with_classes(grid(rows, titles, 180), maps, data), f"{caption} in an earlier mask"


def thresholds(outcomes: Sequence[Outcome], laboratory: Laboratory, number: int) -> Sheet:
    """Figure 6: masks for three values of psi."""
    _, model, pairs = _images(outcomes[0], laboratory, number)
    options, rows = model.mask_maker().options, []
    for image, _ in pairs:
        features, picture = image_features(model.backbone, image[None]), _picture(image)
        rows.append([picture])
        for psi in PSI:
            masks = image_masks(features, image[None], **{**options, "threshold": psi})[0]
            rows[-1].append(masks_picture(picture, masks.cpu()))
    titles = ("image", *(f"psi {psi:g}" for psi in PSI))
    return grid(rows, titles), f"{NOT_CHOSEN}; dark: in no mask"


def pseudo_labels(outcomes: Sequence[Outcome], laboratory: Laboratory, number: int) -> Sheet | None:
    """Figure 1: the first masks one after the other, all of them, and the pseudo label."""
    fitted = _fitted(outcomes[-1], laboratory)
    if fitted is None:
        return None
    model, result = fitted
    data, _, pairs = _images(outcomes[-1], laboratory, number)
    rows, maps = [], []
    for image, _ in pairs:
        picture = _picture(image)
        mask, pseudo = _pseudo(model, result, data, image)
        shown = [torch.where(mask <= z, mask, 0) for z in range(1, FIRST + 1)]
        rows.append([picture, *(masks_picture(picture, some) for some in (*shown, mask))])
        rows[-1].append(_painted(picture, pseudo, data))
        maps.append(pseudo)
    titles = ("image", "first mask", "two masks", "three masks", "all masks", "pseudo label")
    return _with_classes(grid(rows, titles), maps, data), f"{NOT_CHOSEN}; dark: in no mask"


def failures(outcomes: Sequence[Outcome], laboratory: Laboratory, number: int) -> Sheet | None:
    """Figure 10: images of lowest accuracy, of the segmentation and of the pseudo label."""
    fitted = _fitted(outcomes[-1], laboratory)
    if fitted is None:
        return None
    model, result = fitted
    data = laboratory.source(outcomes[-1].row.dataset).score
    by_key = {sample.key: sample for sample in data.samples}
    worst = sorted(result.by_image, key=result.by_image.__getitem__)[:number]
    rows, maps, table = [], [], class_table(result, data.ignore_index)
    for one in predict_samples(model, data, [by_key[key] for key in worst], result.options):
        picture = _picture(one.image)
        shown = [one.label.numpy(), table[one.clusters.numpy()]]
        rows.append([picture, *(_painted(picture, some, data) for some in shown)])
        maps += shown
    judged = []
    for key in (sample.key for sample in evenly(data, JUDGED) if sample.key in result.by_image):
        image, label = load_pair(
            data, by_key[key], model.size, resize=result.options.resize or "pillow"
        )
        pair = label.numpy(), _pseudo(model, result, data, image)[1]
        counted = (pair[0] != data.ignore_index) & (pair[1] != data.ignore_index)
        if counted.any():
            judged.append((float((pair[0] == pair[1])[counted].mean()), key, image, pair))
    judged.sort(key=lambda one: one[:2])
    for row, (_, _, image, pair) in zip(rows, judged, strict=False):
        picture = _picture(image)
        row += [picture, *(_painted(picture, some, data) for some in pair)]
        maps += pair
    titles = ("image", "label", "segmentation", "image", "label", "pseudo label")
    caption = "Images of lowest accuracy: of the segmentation (left, of all), and of the pseudo "
    caption += f"label over what lies in masks (right, of at most {JUDGED} at even distances)"
    return _with_classes(grid(rows, titles), maps, data), caption


SHEETS: dict[str, Callable[[Sequence[Outcome], Laboratory, int], Sheet | None]] = {
    "examples": predictions,
    "oracle": oracle,
    "similarities": similarities,
    "thresholds": thresholds,
    "pseudo labels": pseudo_labels,
    "failures": failures,
}


def _fitted(outcome: Outcome, laboratory: Laboratory) -> tuple[PriMaPsEM, Evaluation] | None:
    """The model of the first seed and its scores; None if results were copied without models, or
    the model is damaged."""
    result = next(iter(outcome.results.values()))
    path = laboratory.reproduction.out / result["model"]
    if not path.is_dir():
        return None
    network = laboratory.used[outcome.row.backbone]
    checkpoint = laboratory.reproduction.projection(outcome.row)
    codes = laboratory.checkpoint(checkpoint) if outcome.row.projection and checkpoint else None
    try:
        model = PriMaPsEM.from_pretrained(
            path, backbone=network, device=network.device, projection=codes
        )
    except PrimapsError:
        return None
    return model, as_evaluation(result)


def _images(
    outcome: Outcome, laboratory: Laboratory, number: int
) -> tuple[Dataset, PriMaPsEM, list[Pair]]:
    """The data set of a row, a model for its masks, and images with labels at even distances."""
    row, reproduction = outcome.row, laboratory.reproduction
    data, seed = laboratory.source(row.dataset).score, next(iter(outcome.results))
    options = reproduction.config(row, seed)
    options.pop("precision", None)
    model = PriMaPsEM(len(data.classes), backbone=laboratory.used[row.backbone], **options)
    pairs = []
    for sample in evenly(data, number):
        pair = _loaded(data, sample, model.size, laboratory)
        if pair is not None:
            pairs.append(pair)
    return data, model, pairs


def _loaded(data: Dataset, sample: Sample, size: int, laboratory: Laboratory) -> Pair | None:
    try:
        return load_pair(data, sample, size, resize=laboratory.reproduction.resize)
    except ImageError:  # reported when it was scored
        return None


def _pseudo(
    model: PriMaPsEM, result: Evaluation, data: Dataset, image: UInt8[Tensor, "3 h w"]
) -> tuple[Integer[Tensor, "h w"], Integer[np.ndarray, "h w"]]:
    """Masks of an image, and the pseudo label of training in the classes of the data set."""
    mask = model.masks(image_features(model.backbone, image[None]), image[None])
    mask = torch.where(mask < MASKS, mask, 0)
    logits = model.segmenter.logits(image_features(model.encoder, image[None]))
    clusters = assign(logits, mask)[0][0].cpu().numpy()
    table = np.append(class_table(result, data.ignore_index), data.ignore_index)  # -1 is the last
    return mask[0].cpu(), table[clusters]


def _picture(image: UInt8[Tensor, "3 h w"]) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def _painted(image: Image.Image, labels: Integer[np.ndarray, "h w"], data: Dataset) -> Image.Image:
    """Classes in their colors over an image; what is ignored is dark."""
    known = np.where(labels == data.ignore_index, len(data.classes), labels)
    shades = class_colors(data)
    shades = np.concatenate([shades, np.zeros_like(shades[:1])])
    return overlay(image, known, shades, 0.75, ignore=len(data.classes))


def _with_classes(
    sheet: Image.Image, maps: Sequence[Integer[np.ndarray, "h w"]], data: Dataset
) -> Image.Image:
    """A legend of the classes that occur."""
    present = sorted(set(np.concatenate([np.unique(each) for each in maps]).tolist()))
    shown = [k for k in present if k != data.ignore_index]
    return with_legend(sheet, [data.classes[k] for k in shown], class_colors(data)[shown], 17)
