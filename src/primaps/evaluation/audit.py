"""An audit on disk: questions and answers in ``audit.json``, so that it can go on after a stop."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Len
from PIL import Image, ImageDraw

from primaps.classes.audit import Estimate, estimate
from primaps.data import load_image
from primaps.results import write_own_png
from primaps.utils.errors import InputError
from primaps.utils.files import write_json
from primaps.utils.inputs import read_json

logger = logging.getLogger("primaps")
SIDE = 900
"""Longest side of a picture in pixels."""
NAME, PICTURE = "audit.json", "question.png"
Number = Annotated[int, Ge(0)]


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
    questions: list[Annotated[list[Question], Len(1)]]
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

    def undo(self) -> Question | None:
        """Take the last answer back; its question is asked again. None if there was no answer."""
        asked = [strip for strip in self.record.order if self.record.asked[strip]]
        if not asked:
            return None
        self.record.asked[asked[-1]] -= 1
        self.record.answers[asked[-1]] = None
        self.save()
        return self.next()

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
        write_own_png(picture(image, question), self.picture)
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
        for color, width in (("black", 5), ("white", 2)):
            for one, other in ((size, 4), (-size, -4)):
                draw.line((x + one, y, x + other, y), color, width)
                draw.line((x, y + one, x, y + other), color, width)
    return sheet
