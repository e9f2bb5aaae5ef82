"""An audit on disk: questions and answers in ``audit.json``, so that it can go on after a stop."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from primaps.backbones.backbone import mirrored_mean
from primaps.classes.audit import Estimate, asking_order, estimate, strips
from primaps.classes.legend import HIDDEN
from primaps.data import Problem, find_images, fit_to_patches, load_image, read, to_tensor
from primaps.em.pixels import largest_channel, upsample
from primaps.model import PriMaPsEM
from primaps.support.errors import InputError
from primaps.support.files import atomic_path, write_json
from primaps.support.progress import ProgressCallback, silent
from primaps.support.seeding import generator

logger = logging.getLogger("primaps")
POOL = 20_000
"""Pixels that questions are drawn from, as many of each image: about the accuracy of these is
what of all to half a point."""
SIDE = 900
"""Longest side of a picture in pixels."""


@dataclass(frozen=True)
class Question:
    """A pixel to ask about.

    Attributes:
        strip: which it stands for; the answers of all strips make the estimate.
        spare: which of the strip's pixels it is.
        path: of the image.
        x, y: of the pixel, in pixels of the image.
        value: predicted class.
        name: of this class.
    """

    strip: int
    spare: int
    path: str
    x: int
    y: int
    value: int
    name: str


class Audit:
    """Questions of an audit and the answers so far.

    Args:
        folder: of ``audit.json`` and the picture.
        content: of ``audit.json``.
    """

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder, self.content = folder, content
        self.questions = [[Question(**one) for one in strip] for strip in content["questions"]]

    @classmethod
    def load(cls, folder: str | Path) -> Audit | None:
        """The audit in a folder, or None.

        Raises:
            InputError: ``audit.json`` is damaged.
        """
        path = Path(folder) / "audit.json"
        if not path.is_file():
            return None
        try:
            return cls(Path(folder), json.loads(path.read_text("utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}): move it away to begin anew") from None

    @property
    def picture(self) -> Path:
        """Where :meth:`draw` writes."""
        return self.folder / "question.png"

    @property
    def progress(self) -> tuple[int, int]:
        """Strips that are answered or given up, and all."""
        return len(self.content["order"]) - len(self._open()), len(self.content["order"])

    def _open(self) -> list[int]:
        spares = len(self.questions[0])
        return [
            strip
            for strip in self.content["order"]
            if self.content["answers"][strip] is None and self.content["asked"][strip] < spares
        ]

    def next(self) -> Question | None:
        """The question to ask now; None at the end."""
        left = self._open()
        return self.questions[left[0]][self.content["asked"][left[0]]] if left else None

    def answer(self, question: Question, right: bool | None) -> None:
        """Keep an answer; after None another pixel of the strip is asked about."""
        self.content["asked"][question.strip] = question.spare + 1
        self.content["answers"][question.strip] = right
        write_json(self.folder / "audit.json", self.content)

    def estimate(self) -> Estimate | None:
        """Accuracy so far; None with fewer than two answers."""
        answers = self.content["answers"]
        if sum(answer is not None for answer in answers) < 2:
            return None
        classes = [strip[max(0, asked - 1)].value for strip, asked in
                   zip(self.questions, self.content["asked"], strict=True)]  # fmt: skip
        return estimate(answers, classes)

    def draw(self, question: Question) -> Path:
        """A picture of a question: the image with a cross, and what is around it enlarged."""
        with atomic_path(self.picture) as temporary:
            picture(load_image(Path(question.path)), question).save(temporary)
        return self.picture


def picture(image: Image.Image, question: Question) -> Image.Image:
    """The whole image and, beside it, the surroundings of the pixel three times as large."""
    scale = min(1.0, SIDE / max(image.size))
    whole = image.resize((round(image.width * scale), round(image.height * scale)))
    half = max(image.size) // 10
    box = (question.x - half, question.y - half, question.x + half + 1, question.y + half + 1)
    close = image.crop(box).resize((whole.height, whole.height))
    sheet = Image.new("RGB", (whole.width + 8 + close.width, whole.height + 28), "white")
    sheet.paste(whole, (0, 28))
    sheet.paste(close, (whole.width + 8, 28))
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 6), f"Is the pixel in the cross: {question.name}?", "black", font_size=16)
    middle = whole.width + 8 + close.width / 2, 28 + whole.height / 2
    for x, y, size in ((question.x * scale, question.y * scale + 28, 14), (*middle, 20)):
        for colour, width in (("black", 5), ("white", 2)):
            for one, other in ((size, 4), (-size, -4)):
                draw.line((x + one, y, x + other, y), colour, width)
                draw.line((x, y + one, x, y + other), colour, width)
    return sheet


def prepare(
    model: PriMaPsEM,
    images: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    answers: int = 80,
    crf: bool = True,
    seed: int = 0,
    progress: ProgressCallback = silent,
    problem: Problem = logger.warning,
) -> Audit:
    """Predict all images, draw the pixels to ask about, and write the questions.

    Hidden classes are not asked about: the accuracy is that of the pixels that have a class.

    Raises:
        FileNotFoundError: there is no image.
        InputError: too few answers, or no pixel has a class.
    """
    files = find_images(images, exclude=folder)
    if not 2 <= answers <= POOL // 10:
        raise InputError(f"answers is {answers}; it must be 2 to {POOL // 10}")
    each = max(1, POOL // len(files))
    names = model.legend_.names if model.legend_ else [f"class {k}" for k in range(model.classes)]
    rows: list[tuple[str, int, int, int, float, float]] = []
    loaded = read(files, lambda file: load_image(file.source), problem)
    for number, (file, image) in enumerate(loaded):
        labels, margin = _sure(model, image, crf)
        random = generator("audit pixels", seed, file.key)
        pixels = torch.randint(labels.size, (each,), generator=random).tolist()
        for pixel in pixels:
            y, x = divmod(pixel, labels.shape[1])
            if labels[y, x] != HIDDEN or model.legend_ is None:
                own = (x, y, int(labels[y, x]), float(margin[y, x]), labels.size / each)
                rows.append((str(file.source), *own))
        progress("audit", number + 1, len(files), {})
    if not rows:
        raise InputError("no pixel has a class that is shown: there is nothing to ask about")
    chosen = strips(
        torch.tensor([row[3] for row in rows]),
        torch.tensor([row[4] for row in rows]),
        torch.tensor([row[5] for row in rows]),
        answers,
        seed,
    )
    questions: list[list[dict[str, Any]]] = []
    for strip, candidates in enumerate(chosen.tolist()):
        questions.append([])
        for spare, row in enumerate(candidates):
            path, x, y, value = rows[row][:4]
            one = Question(strip, spare, path, x, y, value, names[value])
            questions[-1].append(asdict(one))
    content = {
        "format": 1,
        "about": about(model),
        "order": asking_order(answers, seed),
        "questions": questions,
        "asked": [0] * answers,
        "answers": [None] * answers,
    }
    write_json(Path(folder) / "audit.json", content)
    return Audit(Path(folder), content)


def about(model: PriMaPsEM) -> list[str]:
    """What answers are about: the model and the names of its classes."""
    return [model.prediction_digest(), *(model.legend_.names if model.legend_ else [])]


@torch.no_grad()
def _sure(model: PriMaPsEM, image: Image.Image, crf: bool) -> tuple[np.ndarray, np.ndarray]:
    """Label map of an image at its own size, and by how much the first class leads the second."""
    scaled = to_tensor(fit_to_patches(image, model.size, model.backbone.patch_size))
    features = mirrored_mean(model.backbone, scaled[None])
    probabilities = model.probabilities(features, scaled[None], crf)[0]
    size = (image.height, image.width)
    labels = model.relabel(largest_channel(probabilities, size), features[0])
    first, second = probabilities.topk(2, 0).values
    margin = upsample((first - second)[None, None], size)[0, 0]
    return labels.cpu().numpy(), margin.cpu().numpy()
