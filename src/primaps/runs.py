"""Whole runs over files: proposals and predictions of a collection."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from PIL import Image
from torch import Tensor

import primaps
from primaps.backbones import Backbone, load_backbone
from primaps.classes.legend import HIDDEN
from primaps.crf import DenseCRF
from primaps.data import (
    ImageError,
    ImageFile,
    Problem,
    find_images,
    fit_to_patches,
    load_image,
    read,
    to_tensor,
)
from primaps.files import atomic_path, write_json
from primaps.imagesize import largest_channel
from primaps.plotting import overlay, overlay_masks, palette, with_legend
from primaps.progress import Report, silent
from primaps.proposals import mask_probabilities
from primaps.segmenter import PriMaPsEM

logger = logging.getLogger("primaps")
Inputs = str | Path | Sequence[str | Path]
OVERLAY_SIDE = 1600
"""Longest side of overlay pictures in pixels: to look at, so no larger than a screen."""


@dataclass(frozen=True)
class Written:
    """What a run over files did.

    Attributes:
        written: label maps made now.
        kept: label maps that an earlier run with the same options had made.
        problems: one sentence about each image that was left out.
    """

    written: list[Path]
    kept: list[Path]
    problems: list[str]


def propose_files(
    inputs: Inputs,
    out: str | Path,
    *,
    backbone: str | Path | Backbone = "dinov2-vits14",
    threshold: float = 0.4,
    crf: bool = True,
    size: int | None = None,
    device: str | torch.device = "auto",
    report: Report = silent,
    problem: Problem = logger.warning,
) -> Written:
    """Mask proposals of images: ``primaps propose``.

    For each image ``out/<relative path>.png`` has the masks at the image's own size (0 = ignore,
    1..Z in the order found; 8 bits, or 16 if Z > 255), and ``.overlay.jpg`` beside it shows them.
    Whole images are used, the shorter side scaled to ``size``. What an earlier run with the same
    options wrote is kept.

    Args:
        inputs: files, folders (searched recursively) or globs.
        threshold: psi of Eq. 6, in [0, 1).
        crf: refine the masks by the dense CRF.
        size: shorter side in pixels; None is 320 or the multiple of the patch size nearest to it.

    Raises:
        FileNotFoundError: there is no image.
        WeightsError: the backbone has no weights here.
    """
    network = load_backbone(backbone, device)
    side = size or network.default_size
    refine = DenseCRF() if crf else None

    def masks(image: Image.Image) -> Tensor:
        scaled = to_tensor(fit_to_patches(image, side, network.patch_size))[None]
        scaled = scaled.to(network.device)
        features = network(scaled.float() / 255)
        (probabilities,) = mask_probabilities(features, scaled, crf=refine, threshold=threshold)
        labels = largest_channel(probabilities, (image.height, image.width))
        return consecutive(labels)

    options = {
        "command": "propose",
        "backbone": network.digest or network.name,
        "threshold": threshold,
        "crf": crf,
        "size": side,
    }

    return _write_maps("proposals", inputs, out, masks, overlay_masks, options, report, problem)


def consecutive(masks: Integer[Tensor, "h w"]) -> Integer[Tensor, "h w"]:
    """Renumber masks 1..Z without gaps, which the CRF leaves where it removes a mask; 0 stays 0.

    Examples:
        >>> consecutive(torch.tensor([[0, 5], [2, 5]])).tolist()
        [[0, 2], [1, 2]]
    """
    present = torch.zeros(int(masks.max()) + 1, dtype=masks.dtype, device=masks.device)
    present[masks.unique().long()] = 1
    present[0] = 0
    return (present.cumsum(0) * present)[masks.long()]


def predict_files(
    model: PriMaPsEM,
    inputs: Inputs,
    out: str | Path,
    *,
    crf: bool = True,
    names: Sequence[str] | None = None,
    report: Report = silent,
    problem: Problem = logger.warning,
) -> Written:
    """Class maps of images by a fitted model: ``primaps predict``.

    For each image ``out/<relative path>.png`` has the class 0..K-1 of every pixel at the image's
    own size (8 bits), and ``.overlay.jpg`` beside it shows it with a legend.

    Args:
        names: of the K classes, for the legend; those of ``classes.json`` or the cut if None.
    """
    classes, known = model.classes, model.legend_
    titles = known.names if known else [f"class {k}" for k in range(classes)]
    titles = list(names) if names else titles
    if len(titles) != classes:
        raise ValueError(f"{len(titles)} names were given for {classes} classes")
    colours = known.colours if known else palette(classes)
    hides = known is not None and len(known.shown) < len(known.classes)
    options = {"command": "predict", "crf": crf, "model": model.digest(), "names": titles}
    if known:
        options["colours"] = colours.tolist()

    def picture(image: Image.Image, labels: np.ndarray) -> Image.Image:
        labels = np.where(labels == HIDDEN, classes, labels) if hides else labels
        present = np.bincount(labels.flatten(), minlength=classes) / labels.size
        shown = [k for k in np.argsort(-present[:classes]) if present[k] >= 0.001]
        legend = [f"{titles[k]} {present[k]:.0%}" for k in shown]
        shades = np.concatenate([colours, np.zeros_like(colours[:1])])  # the last one: hidden
        return with_legend(overlay(image, labels, shades, ignore=classes), legend, colours[shown])

    def classify(image: Image.Image) -> Tensor:
        return model.predict(image, crf)

    return _write_maps("prediction", inputs, out, classify, picture, options, report, problem)


def _write_maps(
    stage: str,
    inputs: Inputs,
    out: str | Path,
    label: Callable[[Image.Image], Tensor],
    picture: Callable[[Image.Image, Integer[np.ndarray, "h w"]], Image.Image],
    options: dict[str, Any],
    report: Report,
    problem: Problem,
) -> Written:
    """Apply ``label`` to every image; write its map and picture, keeping what is already there."""
    out = Path(out)
    files = find_images(inputs, exclude=out)
    if own := next((f for f in files if Path(str(f.source)).parent == out.resolve()), None):
        raise ValueError(
            f"{out} holds the image {own.source}: write to another folder, so that images and "
            "results do not mix"
        )
    options = {"primaps": primaps.__version__, **options}
    record = out / "primaps.json"
    same = record.is_file() and _read_json(record) == options
    result = Written([], [], [])

    def skip(sentence: str) -> None:
        result.problems.append(sentence)
        problem(sentence)

    def finished(file: ImageFile) -> bool:
        paths = (out / f"{file.key}.png", out / f"{file.key}.overlay.jpg")
        newest = Path(str(file.source)).stat().st_mtime
        return all(path.is_file() and path.stat().st_mtime >= newest for path in paths)

    todo = []
    for file in files:
        if same and finished(file):
            result.kept.append(out / f"{file.key}.png")
        else:
            (out / f"{file.key}.png").unlink(missing_ok=True)
            todo.append(file)
    if not same:  # only now, so that maps of other options are never taken for these
        write_json(record, options)
    done = 0
    for file, image in read(todo, lambda file: load_image(file.source), skip):
        labels = label(image).cpu().numpy()
        labels = labels.astype(np.uint8 if labels.max() < 256 else np.uint16)
        scale = min(1.0, OVERLAY_SIDE / max(image.size))
        shown = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = Image.fromarray(labels).resize(shown, Image.Resampling.NEAREST)
        with atomic_path(out / f"{file.key}.overlay.jpg") as temporary:
            picture(image.resize(shown), np.asarray(small)).save(temporary, quality=90)
        with atomic_path(out / f"{file.key}.png") as temporary:
            Image.fromarray(labels).save(temporary)
        result.written.append(out / f"{file.key}.png")
        done += 1
        report(stage, done, len(todo), {})
    if todo and done < len(todo):
        report(stage, len(todo), len(todo), {})
    if not result.written and not result.kept:
        raise ImageError(
            f"none of the {len(files)} images could be read; first: {result.problems[0]}"
        )
    return result


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError:
        return None
