"""Audit: estimate the accuracy of a model from a few answers of a person.

Pixels are sorted by class and, within a class, by confidence, and divided into strips of equal
weight, one per answer. One pixel of each strip is asked about, in random order. Adjacent strips are
similar, so the estimate is more precise than that of a random sample, and the agreement of adjacent
answers gives its interval. An audit that stops early uses the strips that have an answer.

Questions and answers are stored in ``audit.json``, so an audit can be interrupted.
"""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Interval, Len
from jaxtyping import Float, Integer
from PIL import Image, ImageDraw
from torch import Tensor

from primaps.classes.legend import HIDDEN
from primaps.config import Depth, Seed
from primaps.data import LogCallback, at_depth, find_images, load_image, read
from primaps.model import PriMaPsEM
from primaps.results import OutputError, write_marked_png
from primaps.utils.bilinear import upsample
from primaps.utils.errors import InputError
from primaps.utils.files import is_utf8, write_json
from primaps.utils.inputs import read_json
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.seeding import generator
from primaps.utils.validation import validate, validated

logger = logging.getLogger("primaps")
NAME, PICTURE = "audit.json", "question.png"
SIDE = 900
"""Longest side of the image of a question in pixels."""
POOL = 20_000
"""Number of pixels that questions are sampled from.

Their accuracy is within half a percentage point of that of all pixels.
"""
SPARE = 5
"""Number of pixels sampled from each strip. The next one is asked about if a person cannot tell."""
FLOOR = 0.5
"""Minimum variance of the estimate, as a fraction of the variance of a random sample."""
PAIRED_SHARE = 0.3
"""Minimum fraction of answers with an adjacent answer of their class. Below it, the variance of a
random sample is used."""
Answers = Annotated[int, Interval(ge=2, le=POOL // 10)]
Number = Annotated[int, Ge(0)]


@dataclass(frozen=True)
class Estimate:
    """Accuracy with its confidence interval.

    Attributes:
        accuracy: 0..1.
        low, high: 95 % confidence interval of the accuracy of all pixels.
        answers: number of answers.
    """

    accuracy: float
    low: float
    high: float
    answers: int


@dataclass(frozen=True)
class Question:
    """A pixel to ask about.

    Attributes:
        strip: number of the strip that the pixel stands for.
        spare: number of the pixel among those of its strip.
        path: path of the image.
        x, y: position in pixels of the image.
        value: predicted class.
        name: name of this class.
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
    """Content of ``audit.json``.

    Attributes:
        format: version of the file.
        subject: model and classes that the answers refer to; see :func:`audit_subject`.
        order: strips in the order in which they are asked about.
        questions: pixels of each strip, including the spare ones.
        asked: number of questions that were asked, per strip.
        answers: answer per strip; None without one.
        depth: bits of the values of images of more than 8 bits; None without such images.
    """

    format: Literal[1]
    subject: list[str]
    order: list[Number]
    questions: list[Annotated[list[Question], Len(1)]]
    asked: list[Number]
    answers: list[bool | None]
    depth: Depth | None = None

    def __post_init__(self) -> None:
        strips = list(range(len(self.questions)))
        if sorted(self.order) != strips or not len(self.asked) == len(self.answers) == len(strips):
            raise InputError("order, questions, asked and answers have different numbers of strips")
        for strip, (asked, questions) in enumerate(zip(self.asked, self.questions, strict=True)):
            places = [(strip, spare) for spare in range(len(questions))]
            if asked > len(questions) or places != [(one.strip, one.spare) for one in questions]:
                raise InputError(f"the questions of strip {strip} are not in order")


class Audit:
    """Questions of an audit and the answers so far.

    Args:
        folder: folder of ``audit.json`` and of the image of the question.
        record: content of ``audit.json``.
    """

    def __init__(self, folder: Path, record: AuditRecord) -> None:
        self.folder, self.record = folder, record

    @classmethod
    def load(cls, folder: str | Path) -> Audit | None:
        """Return the audit in a folder, or None.

        Raises:
            InputError: ``audit.json`` is damaged or was not written by primaps.
        """
        path = Path(folder) / NAME
        if not path.is_file():
            return None
        try:
            return cls(Path(folder), read_json(path, AuditRecord))
        except InputError as error:
            raise InputError(
                f"{path} is damaged or was not written by primaps ({error}); move it away to "
                "start over"
            ) from None

    @property
    def picture(self) -> Path:
        """Path of the image that :meth:`draw` writes."""
        return self.folder / PICTURE

    @property
    def progress(self) -> tuple[int, int]:
        """Number of strips that are answered or have no pixel left, and of all strips."""
        return len(self.record.order) - len(self._open()), len(self.record.order)

    def _open(self) -> list[int]:
        record = self.record
        return [
            strip
            for strip in record.order
            if record.answers[strip] is None and record.asked[strip] < len(record.questions[strip])
        ]

    def next(self) -> Question | None:
        """Return the next question, or None at the end."""
        left = self._open()
        return self.record.questions[left[0]][self.record.asked[left[0]]] if left else None

    def answer(self, question: Question, right: bool | None) -> None:
        """Store an answer. After None, another pixel of the strip is asked about."""
        self.record.asked[question.strip] = question.spare + 1
        self.record.answers[question.strip] = right
        self.save()

    def undo(self) -> Question | None:
        """Remove the last answer and return its question, or None without an answer."""
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
        """Return the accuracy so far, or None with fewer than two answers."""
        answers = self.record.answers
        if sum(answer is not None for answer in answers) < 2:
            return None
        pairs = zip(self.record.questions, self.record.asked, strict=True)
        classes = [strip[max(0, asked - 1)].value for strip, asked in pairs]
        return estimate(answers, classes)

    def draw(self, question: Question) -> Path:
        """Write the image of a question: a cross at the pixel, and its surroundings enlarged."""
        image = load_image(Path(question.path), self.record.depth)
        if question.x >= image.width or question.y >= image.height:
            raise InputError(
                f"{question.path} has {image.width}x{image.height} pixels, but {NAME} asks about "
                f"({question.x}, {question.y}): the image was replaced since the audit started"
            )
        write_marked_png(picture(image, question), self.picture)
        return self.picture


class Pixel(NamedTuple):
    """A pixel that may be asked about.

    Attributes:
        path: path of the image.
        x, y: position in pixels of the image.
        value: predicted class.
        margin: difference of the probabilities of the first and the second class.
        weight: number of pixels that it stands for.
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
    """Predict all images, sample the pixels to ask about, and write the questions.

    Hidden classes are not asked about: the accuracy is that of the pixels that have a class.

    Args:
        model: a fitted model.
        images: files, folders or globs.
        folder: folder of the audit.
        answers: number of strips, 2 to 2,000.
        crf: refine the predictions by the dense CRF.
        seed: random seed.
        progress: progress callback.
        log: called with one sentence about each image that cannot be read.

    Raises:
        NotFoundError: There is no image.
        InputError: The number of answers is out of range, or no pixel has a class.
        OutputError: The folder already has an audit.
    """
    folder = Path(folder).expanduser()
    files = at_depth(find_images(images, exclude=folder, log=log), model.depth_)
    if unlisted := [file for file in files if not is_utf8(str(file.source))]:
        log(f"{len(unlisted)} names are not UTF-8, first {unlisted[0].source}; rename these images")
        files = [file for file in files if is_utf8(str(file.source))]
    check_audit(folder, answers)
    each = max(1, POOL // len(files))
    names = [one.name for one in model.shown_classes]
    pixels: list[Pixel] = []
    loaded = read(files, lambda file: file.load(), log)
    for number, (file, image) in enumerate(loaded):
        found = model.segment(image, crf=crf)
        labels = found.labels.cpu().numpy()
        margin = upsample(found.margin[None, None], labels.shape)[0, 0].cpu().numpy()
        pixels += sample_pixels(str(file.source), file.key, labels, margin, image.size, each, seed)
        progress("audit", number + 1, len(files), {})
    if model.legend_ is not None and model.legend_.hides:
        pixels = [pixel for pixel in pixels if pixel.value != HIDDEN]
    return begin(folder, pixels, names, audit_subject(model), answers, seed, files[0].depth)


def check_audit(folder: Path, answers: int) -> None:
    """Check that an audit with a number of answers may be written to a folder.

    Raises:
        InputError: The number of answers is out of range.
        OutputError: The folder already has an audit.
    """
    for name in (NAME, PICTURE):
        if os.path.lexists(folder / name):
            raise OutputError(f"{folder / name} already exists; choose another folder")
    validate(answers, Answers, "answers")


def sample_pixels(
    path: str,
    key: str,
    labels: Integer[np.ndarray, "h w"],
    margin: Float[np.ndarray, "h w"],
    size: tuple[int, int],
    each: int,
    seed: int = 0,
) -> list[Pixel]:
    """Sample pixels of an image that may be asked about.

    Args:
        path: path of the image.
        key: key of the image, which decides the sample together with ``seed``.
        labels, margin: predicted class and its margin, at the size of the image or scaled.
        size: width and height of the image.
        each: number of pixels.
        seed: random seed.
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
    subject: list[str],
    answers: int,
    seed: int = 0,
    depth: int | None = None,
) -> Audit:
    """Choose the pixels to ask about, and write the questions.

    Args:
        folder: folder of the audit.
        pixels: sample of all pixels.
        names: class names, by the value of the pixels.
        subject: model and classes that the answers refer to; see :func:`audit_subject`.
        answers: number of strips.
        seed: random seed.
        depth: bits of the values of images of more than 8 bits; None without such images.

    Raises:
        InputError: There is no pixel, or the number of answers is out of range.
        OutputError: The folder already has an audit.
    """
    check_audit(folder, answers)
    if not pixels:
        raise InputError("every pixel has a hidden class; show a class and try again")
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
    unanswered: list[bool | None] = [None] * answers
    audit = Audit(folder, AuditRecord(1, subject, order, questions, asked, unanswered, depth))
    audit.save()
    return audit


def audit_subject(model: PriMaPsEM) -> list[str]:
    """Return what answers refer to: the digest of the model and the ids of the shown classes.

    Names and colors are no part of it: they change no pixel.
    """
    unedited = copy.copy(model)
    unedited.legend_ = None  # a model without edits and one with names predict the same classes
    return [unedited.prediction_digest(), *(one.id for one in model.shown_classes)]


def strips(
    classes: Integer[Tensor, " n"],
    confidence: Float[Tensor, " n"],
    weights: Float[Tensor, " n"],
    answers: int,
    seed: int = 0,
) -> Integer[Tensor, "a 5"]:
    """Return the pixel to ask about and its spares, for each strip.

    Args:
        classes: predicted class of each pixel of a random sample.
        confidence: confidence of each prediction.
        weights: number of pixels that each one stands for.
        answers: number of strips.
        seed: random seed.

    Raises:
        InputError: There are fewer pixels than answers, or fewer than two answers.
    """
    if not 2 <= answers <= len(classes):
        raise InputError(
            f"answers must be between 2 and {len(classes)}, the number of pixels, got {answers}"
        )
    random = generator("audit", seed)
    order = confidence.argsort(stable=True)
    order = order[classes[order].argsort(stable=True)]
    end = weights.double()[order].cumsum(0)
    places = torch.rand(answers, SPARE, generator=random, dtype=torch.double)
    places = (places + torch.arange(answers)[:, None]) * end[-1] / answers
    return order[torch.searchsorted(end, places).clamp_max(len(order) - 1)]


def asking_order(answers: int, seed: int = 0) -> list[int]:
    """Return the strips in random order, so the answers so far represent all strips.

    Examples:
        >>> sorted(asking_order(4))
        [0, 1, 2, 3]
    """
    return torch.randperm(answers, generator=generator("audit order", seed)).tolist()


def estimate(answers: Sequence[bool | None], classes: Sequence[int] | None = None) -> Estimate:
    """Estimate the accuracy from the answers of all strips, in the order of the strips.

    Args:
        answers: whether the prediction is correct; None without an answer.
        classes: class of each strip; None is one class. Adjacent answers of one class give the
            variance within strips.

    Raises:
        InputError: There are fewer than two answers.

    Examples:
        >>> found = estimate([True] * 60 + [False] * 20)
        >>> round(found.accuracy, 2), round(found.low, 2), round(found.high, 2)
        (0.75, 0.68, 0.81)
    """
    kinds = [0] * len(answers) if classes is None else list(classes)
    known = [
        (kind, bool(answer)) for kind, answer in zip(kinds, answers, strict=True)
        if answer is not None
    ]  # fmt: skip
    count = len(known)
    if count < 2:
        raise InputError(f"an estimate needs at least two answers, got {count}")
    mean = sum(answer for _, answer in known) / count
    random = mean * (1 - mean) * count / (count - 1)
    # Variance within strips: half the squared difference of adjacent answers of one class. It is
    # conservative, because it includes the difference between the two strips.
    pairs = [
        one[1] != other[1]
        for one, other in zip(known[1:], known[:-1], strict=True)
        if one[0] == other[0]
    ]
    inside = sum(pairs) / (2 * len(pairs)) if len(pairs) >= PAIRED_SHARE * count else random
    share = count / len(answers)  # strips without an answer count as a random sample
    variance = (share * inside + (1 - share) * random) / count
    # Few wrong answers say little about their variance, hence the minimum.
    variance = max(variance, FLOOR * random / count)
    effective = mean * (1 - mean) / variance if variance > 0 else float(count)
    low, high = wilson(mean, effective, _t(count))
    return Estimate(mean, low, high, count)


def wilson(mean: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's confidence interval of a proportion.

    Examples:
        >>> [round(v, 3) for v in wilson(0.5, 100)]
        [0.404, 0.596]
    """
    center = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count)
    half *= math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return max(0.0, center - half), min(1.0, center + half)


def _t(count: int) -> float:
    """Return the 97.5 % quantile of Student's t with 2/3 degree of freedom per answer."""
    from scipy.stats import t

    return float(t.ppf(0.975, max(1, 2 * count // 3)))


def picture(image: Image.Image, question: Question) -> Image.Image:
    """Return the image with a cross, next to the enlarged surroundings of the pixel."""
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
