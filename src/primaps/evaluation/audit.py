"""An audit on disk: questions and answers in ``audit.json``, so that it can go on after a stop."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from PIL import Image, ImageDraw

from primaps.classes.audit import Estimate, asking_order, estimate, strips
from primaps.classes.legend import HIDDEN
from primaps.config import Seed
from primaps.data import Problem, find_images, load_image, read
from primaps.em.pixels import upsample
from primaps.model import PriMaPsEM
from primaps.support.entrance import entrance
from primaps.support.errors import InputError
from primaps.support.files import write_json
from primaps.support.inputs import read_json
from primaps.support.ours import write_png
from primaps.support.progress import ProgressCallback, silent
from primaps.support.seeding import generator
from primaps.support.typed import Range

logger = logging.getLogger("primaps")
POOL = 20_000
"""Pixels that questions are drawn from, as many of each image: about the accuracy of these is
what of all to half a point."""
SIDE = 900
"""Longest side of a picture in pixels."""
NAME, PICTURE = "audit.json", "question.png"
Number = Annotated[int, Range(0)]
Answers = Annotated[int, Range(2, POOL // 10)]


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

    strip: Number
    spare: Number
    path: str
    x: Number
    y: Number
    value: Number
    name: str


@dataclass(frozen=True)
class AuditRecord:
    """The content of ``audit.json``.

    Attributes:
        format: of the file.
        about: what answers are about; see :func:`about`.
        order: of the strips, as they are asked about.
        questions: of each strip, the spare ones included.
        asked: of each strip, how many of its questions were asked.
        answers: of each strip; None without one.
    """

    format: Literal[1]
    about: list[str]
    order: list[Number]
    questions: list[Annotated[list[Question], Range(1)]]
    asked: list[Number]
    answers: list[bool | None]

    def __post_init__(self) -> None:
        strips = list(range(len(self.questions)))
        if sorted(self.order) != strips or not len(self.asked) == len(self.answers) == len(strips):
            raise InputError("order, questions, asked and answers are not of as many strips")
        for strip, (asked, questions) in enumerate(zip(self.asked, self.questions, strict=True)):
            places = [(strip, spare) for spare in range(len(questions))]
            if asked > len(questions) or places != [(one.strip, one.spare) for one in questions]:
                raise InputError(f"the questions of strip {strip} are not in their order")


class Audit:
    """Questions of an audit and the answers so far.

    Args:
        folder: of ``audit.json`` and the picture.
        record: what the file says.
    """

    def __init__(self, folder: Path, record: AuditRecord) -> None:
        self.folder, self.record = folder, record

    @classmethod
    def load(cls, folder: str | Path) -> Audit | None:
        """The audit in a folder, or None.

        Raises:
            InputError: ``audit.json`` is damaged, or of another program.
        """
        path = Path(folder) / NAME
        if not path.is_file():
            return None
        try:
            return cls(Path(folder), read_json(path, AuditRecord))
        except InputError as error:
            raise InputError(
                f"{path} is damaged or of another program ({error}): move it away to begin anew"
            ) from None

    @property
    def picture(self) -> Path:
        """Where :meth:`draw` writes."""
        return self.folder / PICTURE

    @property
    def progress(self) -> tuple[int, int]:
        """Strips that are answered or given up, and all."""
        return len(self.record.order) - len(self._open()), len(self.record.order)

    def _open(self) -> list[int]:
        record = self.record
        return [
            strip
            for strip in record.order
            if record.answers[strip] is None and record.asked[strip] < len(record.questions[strip])
        ]

    def next(self) -> Question | None:
        """The question to ask now; None at the end."""
        left = self._open()
        return self.record.questions[left[0]][self.record.asked[left[0]]] if left else None

    def answer(self, question: Question, right: bool | None) -> None:
        """Keep an answer; after None another pixel of the strip is asked about."""
        self.record.asked[question.strip] = question.spare + 1
        self.record.answers[question.strip] = right
        self.save()

    def save(self) -> None:
        """Write ``audit.json``."""
        write_json(self.folder / NAME, asdict(self.record))

    def estimate(self) -> Estimate | None:
        """Accuracy so far; None with fewer than two answers."""
        answers = self.record.answers
        if sum(answer is not None for answer in answers) < 2:
            return None
        pairs = zip(self.record.questions, self.record.asked, strict=True)
        classes = [strip[max(0, asked - 1)].value for strip, asked in pairs]
        return estimate(answers, classes)

    def draw(self, question: Question) -> Path:
        """A picture of a question: the image with a cross, and what is around it enlarged."""
        image = load_image(Path(question.path))
        if question.x >= image.width or question.y >= image.height:
            raise InputError(
                f"{question.path} has {image.width}x{image.height} pixels, and {NAME} asks "
                f"about ({question.x}, {question.y}): it is another image now"
            )
        write_png(picture(image, question), self.picture)
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


@entrance
def prepare(
    model: PriMaPsEM,
    images: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    answers: Answers = 80,
    crf: bool = True,
    seed: Seed = 0,
    progress: ProgressCallback = silent,
    problem: Problem = logger.warning,
) -> Audit:
    """Predict all images, draw the pixels to ask about, and write the questions.

    Hidden classes are not asked about: the accuracy is that of the pixels that have a class.

    Raises:
        NotFoundError: there is no image.
        InputError: too few answers, no pixel has a class, or the folder has a file of the same name
            already.
    """
    folder = Path(folder).expanduser()
    for name in (NAME, PICTURE):
        if os.path.lexists(folder / name):
            raise InputError(f"{folder / name} is there already: give another folder")
    files = find_images(images, exclude=folder)
    each = max(1, POOL // len(files))
    hides = model.legend_ is not None and model.legend_.hides
    names = model.legend_.names if model.legend_ else [f"class {k}" for k in range(model.classes)]
    rows: list[tuple[str, int, int, int, float, float]] = []
    loaded = read(files, lambda file: load_image(file.source), problem)
    for number, (file, image) in enumerate(loaded):
        found = model.segment(image, crf)
        labels = found.labels.cpu().numpy()
        margin = upsample(found.margin[None, None], labels.shape)[0, 0].cpu().numpy()
        random = generator("audit pixels", seed, file.key)
        pixels = torch.randint(labels.size, (each,), generator=random).tolist()
        for pixel in pixels:
            y, x = divmod(pixel, labels.shape[1])
            if labels[y, x] != HIDDEN or not hides:
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
    questions: list[list[Question]] = []
    for strip, candidates in enumerate(chosen.tolist()):
        questions.append([])
        for spare, row in enumerate(candidates):
            path, x, y, value = rows[row][:4]
            questions[-1].append(Question(strip, spare, path, x, y, value, names[value]))
    order, asked = asking_order(answers, seed), [0] * answers
    record = AuditRecord(1, about(model), order, questions, asked, [None] * answers)
    audit = Audit(folder, record)
    audit.save()
    return audit


def about(model: PriMaPsEM) -> list[str]:
    """What answers are about: the model and the names of its classes."""
    return [model.prediction_digest(), *(model.legend_.names if model.legend_ else [])]
