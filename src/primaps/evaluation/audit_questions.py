"""Which pixels an audit asks about: drawn from all images, and written as its questions."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from annotated_types import Interval
from jaxtyping import Float, Integer

from primaps.classes.audit import asking_order, strips
from primaps.classes.legend import HIDDEN
from primaps.config import Seed
from primaps.data import LogCallback, find_images, load_image, read
from primaps.evaluation.audit import NAME, PICTURE, Audit, AuditRecord, Question
from primaps.model import PriMaPsEM
from primaps.utils.bilinear import upsample
from primaps.utils.errors import InputError
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.seeding import generator
from primaps.utils.validation import validate, validated

logger = logging.getLogger("primaps")
POOL = 20_000
"""Pixels that questions are drawn from, as many of each image: about the accuracy of these is
what of all to half a point."""
Answers = Annotated[int, Interval(ge=2, le=POOL // 10)]


class Pixel(NamedTuple):
    """A pixel that may be asked about.

    Attributes:
        path: of the image.
        x, y: in pixels of the image.
        value: predicted class.
        margin: by how much it leads the second class.
        weight: pixels that it stands for.
    """

    path: str
    x: int
    y: int
    value: int
    margin: float
    weight: float


@validated
def prepare(
    model: PriMaPsEM,
    images: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    answers: Answers = 80,
    crf: bool = True,
    seed: Seed = 0,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> Audit:
    """Predict all images, draw the pixels to ask about, and write the questions.

    Hidden classes are not asked about: the accuracy is that of the pixels that have a class.

    Raises:
        NotFoundError: there is no image.
        InputError: too few answers, no pixel has a class, or the folder has a file of the same name
            already.
    """
    folder = Path(folder).expanduser()
    files = find_images(images, exclude=folder)
    check_place(folder, answers)
    each = max(1, POOL // len(files))
    names = model.legend_.names if model.legend_ else [f"class {k}" for k in range(model.classes)]
    pixels: list[Pixel] = []
    loaded = read(files, lambda file: load_image(file.source), log)
    for number, (file, image) in enumerate(loaded):
        found = model.segment(image, crf)
        labels = found.labels.cpu().numpy()
        margin = upsample(found.margin[None, None], labels.shape)[0, 0].cpu().numpy()
        pixels += draw_pixels(str(file.source), file.key, labels, margin, image.size, each, seed)
        progress("audit", number + 1, len(files), {})
    if model.legend_ is not None and model.legend_.hides:
        pixels = [pixel for pixel in pixels if pixel.value != HIDDEN]
    return begin(folder, pixels, names, about(model), answers, seed)


def check_place(folder: Path, answers: int) -> None:
    """Refuse a folder that has an audit, and a number of answers that is none.

    Raises:
        InputError: either is so.
    """
    for name in (NAME, PICTURE):
        if os.path.lexists(folder / name):
            raise InputError(f"{folder / name} is there already: give another folder")
    validate(answers, Answers, "answers")


def draw_pixels(
    path: str,
    key: str,
    labels: Integer[np.ndarray, "h w"],
    margin: Float[np.ndarray, "h w"],
    size: tuple[int, int],
    each: int,
    seed: int = 0,
) -> list[Pixel]:
    """Pixels of an image that may be asked about, drawn at random; the same for the same key.

    Args:
        labels, margin: predicted class, and by how much it leads; of the image, or scaled.
        size: width and height of the image itself.
        each: number of pixels.
    """
    height, width = labels.shape
    random = generator("audit pixels", seed, key)
    found = []
    for place in torch.randint(labels.size, (each,), generator=random).tolist():
        y, x = divmod(place, width)
        own = int((x + 0.5) * size[0] / width), int((y + 0.5) * size[1] / height)
        weight = size[0] * size[1] / each
        found.append(Pixel(path, *own, int(labels[y, x]), float(margin[y, x]), weight))
    return found


def begin(
    folder: Path,
    pixels: Sequence[Pixel],
    names: Sequence[str],
    about: list[str],
    answers: int,
    seed: int = 0,
) -> Audit:
    """Choose what to ask about, and write the questions.

    Args:
        names: of the values of the pixels.
        about: what answers are about, see :func:`about`.

    Raises:
        InputError: there is no pixel, or see :func:`check_place`.
    """
    check_place(folder, answers)
    if not pixels:
        raise InputError("no pixel has a class that is shown: there is nothing to ask about")
    chosen = strips(
        torch.tensor([pixel.value for pixel in pixels]),
        torch.tensor([pixel.margin for pixel in pixels]),
        torch.tensor([pixel.weight for pixel in pixels]),
        answers,
        seed,
    )
    questions: list[list[Question]] = []
    for strip, candidates in enumerate(chosen.tolist()):
        questions.append([])
        for spare, row in enumerate(candidates):
            path, x, y, value = pixels[row][:4]
            questions[-1].append(Question(strip, spare, path, x, y, value, names[value]))
    order, asked = asking_order(answers, seed), [0] * answers
    audit = Audit(folder, AuditRecord(1, about, order, questions, asked, [None] * answers))
    audit.save()
    return audit


def about(model: PriMaPsEM) -> list[str]:
    """What answers are about: the model and the names of its classes."""
    return [model.prediction_digest(), *(model.legend_.names if model.legend_ else [])]
