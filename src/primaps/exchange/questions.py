"""Questions about regions, to be answered in a spreadsheet.

A folder of questions has a numbered picture of each region, ``questions.csv`` with a row per
question and an empty column ``class``, ``index.html`` with all pictures, and ``questions.json``,
which says where each region lies. Only ``questions.csv`` is edited. It is read in the form in which
spreadsheets save it, and only rows are appended to it.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from annotated_types import Ge, Len
from jaxtyping import Bool
from PIL import Image, ImageDraw

from primaps.data.collection import ImageFile
from primaps.data.stream import content_digest
from primaps.geometry.outlines import trace
from primaps.geometry.regions import connected_regions
from primaps.results import (
    GENERATOR,
    OutputError,
    check_set,
    output_file,
    write_marked_json,
    write_marked_png,
)
from primaps.teach.annotations import (
    Annotation,
    annotation_point,
    check_class_name,
    mask_geometry,
)
from primaps.utils.errors import InputError, NotFoundError
from primaps.utils.files import locked, named
from primaps.utils.inputs import read_bytes, read_json
from primaps.utils.progress import ProgressCallback, silent

logger = logging.getLogger("primaps")
CSV, RECORD, PAGE = "questions.csv", "questions.json", "index.html"
UNKNOWN, MIXED = "?", "mixed"
GUESSES = 3
MAX_CSV = 256 << 20
MAX_RECORD = 1 << 30
SIDE = 420
"""Side of a picture in pixels."""
SURROUNDINGS = 3.0
"""Side of a picture in units of the longer side of its region."""
MIN_SHARE = 0.3
"""Minimum side of a picture, as a fraction of the shorter side of the image."""
MAX_GAIN = 2.5
"""Maximum factor by which dark pictures are brightened."""
HEADER = ["number", "image", *(f"guess {i}" for i in range(1, GUESSES + 1)), "class"]


class Asked(Protocol):
    """A question that :func:`primaps.teach.questions.next_questions` returns."""

    @property
    def image(self) -> str:
        """Key of the image."""

    @property
    def guesses(self) -> Sequence[tuple[int, float]]:
        """Class indices and probabilities, the most probable first."""

    def mask(self, height: int, width: int) -> Bool[np.ndarray, "h w"]:
        """Return the pixels that are asked about."""


@dataclass(frozen=True)
class QuestionRecord:
    """A question in ``questions.json``.

    Attributes:
        number: number of the question, its picture and its row.
        image: key of the image.
        digest: SHA-256 of the image file.
        size: height and width of the image in pixels.
        counts: run lengths of COCO of the region.
        guesses: names and probabilities of the classes that the model finds most probable.
    """

    number: Annotated[int, Ge(1)]
    image: Annotated[str, Len(1)]
    digest: str
    size: tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]]
    counts: str
    guesses: list[tuple[str, float]]

    def annotation(self, answer: str, time: str) -> Annotation:
        """Return the annotation of an answer: a class name, ``?`` or ``mixed``."""
        said: Any = {UNKNOWN: "unknown", MIXED: "mixed"}.get(answer, "class")
        name = answer if said == "class" else None
        mask = {"size": [*self.size], "counts": self.counts}
        return Annotation(
            self.image, self.digest, "mask", name, mask, self.size, answer=said, time=time,
            source="ask",
        )  # fmt: skip

    @property
    def asked(self) -> tuple[str, float, float]:
        """Image, and a point in the region as fractions of width and height."""
        x, y = annotation_point(self.annotation(UNKNOWN, ""))
        return self.image, x / self.size[1], y / self.size[0]


@dataclass(frozen=True)
class _Record:
    """The content of ``questions.json``."""

    generator: str
    questions: list[QuestionRecord]


@dataclass(frozen=True)
class Questions:
    """A folder of questions with its answers.

    Attributes:
        records: all questions.
        answers: number of a question to its answer, as the person wrote it.
    """

    records: tuple[QuestionRecord, ...]
    answers: dict[int, str]

    @property
    def open(self) -> int:
        """Number of questions without an answer."""
        return len(self.records) - len(self.answers)


def is_question_folder(path: str | Path) -> bool:
    """Return whether a path is a folder of questions, or the CSV file in it."""
    path = Path(path)
    return (path / RECORD).is_file() or (
        path.suffix.lower() == ".csv" and path.with_name(RECORD).is_file()
    )


def read_questions(path: str | Path) -> Questions:
    """Read a folder of questions, or a CSV file with ``questions.json`` beside it.

    Raises:
        NotFoundError: A file does not exist.
        InputError: A file is malformed; the message names the row.
    """
    path = Path(path)
    table, record = (path / CSV, path / RECORD) if path.is_dir() else (path, path.with_name(RECORD))
    for file in (table, record):
        if not file.is_file():
            raise NotFoundError(
                f"{file} does not exist; give the folder that `primaps ask` wrote, with {CSV} and "
                f"{RECORD}"
            )
    content: _Record = read_json(record, _Record, "run primaps ask again", MAX_RECORD)
    records = tuple(content.questions)
    known = {one.number for one in records}
    if len(known) < len(records):
        raise InputError(f"{record}: two questions have the same number; run primaps ask again")
    return Questions(records, _answers(table, known))


def read_answers(path: str | Path, names: Iterable[str] = ()) -> list[Annotation]:
    """Return the answers in a folder of questions as annotations.

    Answers may differ from a known class name in upper and lower case and in spaces. New names
    have the spelling of the first answer.

    Args:
        path: folder of questions, or its CSV file.
        names: known class names, such as those of the model.

    Raises:
        NotFoundError: A file does not exist.
        InputError: A file is malformed; the message names the row.
    """
    path = Path(path)
    questions = read_questions(path)
    table = path / CSV if path.is_dir() else path
    spelling = {_folded(name): name for name in reversed([*names])}
    modified = datetime.fromtimestamp(table.stat().st_mtime, timezone.utc)
    time, found = modified.isoformat(timespec="seconds").replace("+00:00", "Z"), []
    for one in questions.records:
        if (answer := questions.answers.get(one.number)) is None:
            continue
        if answer not in (UNKNOWN, MIXED):
            answer = spelling.setdefault(_folded(answer), answer)
            try:
                check_class_name(answer)
            except InputError as error:
                raise InputError(f"{table}, question {one.number}: {error}") from None
        found.append(one.annotation(answer, time))
    return found


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()


def write_questions(
    folder: str | Path,
    questions: Sequence[Asked],
    files: Sequence[ImageFile],
    names: Sequence[str],
    progress: ProgressCallback = silent,
) -> Questions:
    """Write questions to a folder, after those that it has; answers are not changed.

    Args:
        folder: new, empty, or a folder of questions.
        questions: questions to add.
        files: images of the collection.
        names: class names by the class index of guesses.
        progress: progress callback.

    Returns:
        All questions of the folder.

    Raises:
        OutputError: The folder has other files under the same names.
        InputError: ``questions.csv`` is malformed.
    """
    folder = Path(folder)
    by_key = {file.key: file for file in files}
    with locked(folder):
        check_question_folder(folder)
        known = read_questions(folder) if (folder / RECORD).is_file() else Questions((), {})
        first = max((one.number for one in known.records), default=0) + 1
        check_set(
            folder, RECORD, [CSV, PAGE, *(_picture(first + i) for i, _ in enumerate(questions))]
        )
        folder.mkdir(parents=True, exist_ok=True)
        added = []
        for i, question in enumerate(questions):
            file = by_key[question.image]
            image = file.load()
            mask = np.asarray(question.mask(image.height, image.width), bool)
            write_marked_png(draw_region(image, mask), folder / _picture(first + i))
            guesses = [(names[k], round(float(p), 4)) for k, p in question.guesses[:GUESSES]]
            size = (image.height, image.width)
            counts = mask_geometry(mask)["counts"]
            digest = content_digest(file)
            added.append(QuestionRecord(first + i, file.key, digest, size, counts, guesses))
            progress("pictures", i + 1, len(questions), {})
        records = (*known.records, *added)
        # The record comes first: rows without a record would be refused.
        content = {"questions": [vars(one) for one in records]}
        write_marked_json(folder / RECORD, content)
        _append_rows(folder / CSV, records)
        with output_file(folder / PAGE) as temporary:
            temporary.write_text(_page(records, known.answers), "utf-8")
    return Questions(records, known.answers)


def check_question_folder(folder: Path) -> None:
    """Check that a folder is missing, empty, or a folder of questions.

    Raises:
        OutputError: It is something else.
    """
    check_set(folder, RECORD, [CSV, PAGE])
    if folder.is_dir() and not (folder / RECORD).is_file() and any(folder.glob("[!.]*")):
        pictures = [
            path for path in folder.glob("[!.]*") if not re.fullmatch(r"\d+\.png", path.name)
        ]
        if pictures:
            raise OutputError(f"{folder} is not empty; choose another folder, or empty it")


def _picture(number: int) -> str:
    return f"{number:03}.png"


@dataclass(frozen=True)
class _Table:
    """A CSV file as a spreadsheet saved it.

    Attributes:
        rows: rows below the header, with the number of each in the file.
        header: names of the columns in lower case.
        encoding: encoding of rows to append.
        delimiter: separator of cells.
        complete: whether the last row has its line end.
    """

    rows: list[tuple[int, list[str]]]
    header: list[str]
    encoding: str
    delimiter: str
    complete: bool

    @property
    def numbers(self) -> Iterator[tuple[int, str, list[str]]]:
        """Row number, number of the question as text, and cells, of rows that are not empty."""
        column = self.header.index("number")
        for line, row in self.rows:
            if any(cell.strip() for cell in row):
                yield line, row[column] if column < len(row) else "", row


def _read_table(path: Path) -> _Table:
    """Read a CSV file.

    Raises:
        InputError: It is not CSV, or lacks a column.
    """
    content = read_bytes(path, MAX_CSV)
    text, encoding = _decode(content, path)
    delimiter = _delimiter(text)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file ({error}); save it as CSV again") from None
    if rows and len(rows[0][1]) <= 2 and rows[0][1][0].lower().startswith("sep="):
        rows = rows[1:]
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    for column in ("number", "class"):
        if header.count(column) != 1:
            raise InputError(
                f"{path}: the first row must have one column {column!r}, got "
                f"{', '.join(map(repr, header)) or 'no columns'}; restore it"
            )
    return _Table(rows[1:], header, encoding, delimiter, not text or text[-1] in "\r\n")


def _answers(path: Path, known: set[int]) -> dict[int, str]:
    """Return the answers of a CSV file by the numbers of their questions."""
    table = _read_table(path)
    column, columns = table.header.index("class"), len(table.header)
    answers: dict[int, str] = {}
    for line, text, row in table.numbers:
        where = f"{path}, row {line}"
        if (number := _number(text)) not in known:
            raise InputError(f"{where}: {text!r} is not the number of a question; correct it")
        if any(cell.strip() for cell in row[columns:]):
            raise InputError(
                f"{where} has {len(row)} cells for {columns} columns; quote a name that has "
                "the separator in it"
            )
        answer = " ".join(row[column].split()) if column < len(row) else ""
        if not answer:
            continue
        answer = MIXED if answer.casefold() == MIXED else answer
        if (other := answers.setdefault(number, answer)) != answer:
            raise InputError(
                f"{where}: question {number} has the answers {other!r} and {answer!r}; remove one "
                "of them"
            )
    return answers


def _number(text: str) -> int:
    """Return the number of a question, 0 for another text; spreadsheets write 001 as 1 or 1.0."""
    match = re.fullmatch(r"'?0*(\d{1,9})(?:[.,]0*)?", text.strip())
    return int(match[1]) if match else 0


def _decode(content: bytes, path: Path) -> tuple[str, str]:
    """Return the text of a CSV file, and its encoding without a byte order mark."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        order = "utf-16-le" if content[:2] == b"\xff\xfe" else "utf-16-be"
        return content[2:].decode(order, "replace"), order
    try:
        return content.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        pass
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        raise InputError(
            f"{path} is neither UTF-8 nor Windows-1252; save it as CSV UTF-8 in the spreadsheet"
        ) from None
    logger.warning("%s is not UTF-8 and was read as Windows-1252; check names with accents", path)
    return text, "cp1252"


def _delimiter(text: str) -> str:
    """Return the separator of the first row: comma, semicolon or tab."""
    line = next(iter(text.lstrip("\r\n").splitlines()), "")
    if match := re.fullmatch(r'"?sep=(.)"?', line.strip(), re.IGNORECASE):
        return match[1]
    return max(",;\t", key=line.count)


def _append_rows(path: Path, records: Sequence[QuestionRecord]) -> None:
    """Append the rows that a CSV file lacks, in its encoding and with its separator."""
    present, text = set[int](), io.StringIO(newline="")
    table = _read_table(path) if path.exists() else _Table([], HEADER, "utf-8-sig", ",", True)
    writer = csv.writer(text, delimiter=table.delimiter)
    if path.exists():
        present = {_number(number) for _, number, _ in table.numbers}
        text.write("" if table.complete else "\r\n")
    else:
        writer.writerow(HEADER)
    absent = [one for one in records if one.number not in present]
    for one in absent:
        cells = dict(zip(HEADER, _cells(one), strict=True))
        writer.writerow([cells.get(column, "") for column in table.header])
    if absent:
        with named(path), path.open("ab") as file:
            file.write(text.getvalue().encode(table.encoding, "replace"))


def _cells(one: QuestionRecord) -> list[str]:
    guesses = [f"{name} ({100 * p:.0f} %)" for name, p in one.guesses]
    guesses += [""] * (GUESSES - len(guesses))
    return [f"{one.number:03}", *map(_harmless, [one.image, *guesses]), ""]


def _harmless(text: str) -> str:
    """Return text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def draw_region(image: Image.Image, mask: Bool[np.ndarray, "h w"], side: int = SIDE) -> Image.Image:
    """Draw a region in its surroundings, which are darkened, with its outline.

    Args:
        image: image in RGB.
        mask: pixels of the region; at least one.
        side: longer side of the picture in pixels.

    Returns:
        Picture of the region and of what is around it, enlarged or reduced to ``side``.
    """
    box = _view(mask)
    left, top, right, bottom = box
    zoom = side / max(right - left, bottom - top)
    size = max(1, round((right - left) * zoom)), max(1, round((bottom - top) * zoom))
    resampling = Image.Resampling.BICUBIC if zoom > 1 else Image.Resampling.LANCZOS
    view = _brightened(image.convert("RGB").crop(box).resize(size, resampling))
    inside = mask[top:bottom, left:right]
    shown = Image.fromarray(inside).convert("L").resize(size, Image.Resampling.NEAREST)
    gray = view.convert("L").convert("RGB")
    around = Image.blend(Image.new("RGB", size), Image.blend(view, gray, 0.5), 0.6)
    picture = Image.composite(view, around, shown)
    draw = ImageDraw.Draw(picture)
    regions = connected_regions(inside.astype(np.uint8), nothing=0)
    for width, color in ((5, "#000000"), (2, "#ffe600")):  # visible on bright and dark images
        for _, x, y, part in regions.masks():
            for ring in trace(part):
                line = [
                    ((column + x) * zoom, (row + y) * zoom) for column, row in ring.corners.tolist()
                ]
                draw.line([*line, line[0]], fill=color, width=width, joint="curve")
    return picture


def _brightened(view: Image.Image) -> Image.Image:
    """Return a dark image brighter, with its hues."""
    bright = float(np.percentile(np.asarray(view.convert("L")), 98))
    factor = min(max(200 / max(bright, 1), 1), MAX_GAIN)
    return view.point(lambda value: min(round(value * factor), 255))


def _view(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a square around a region, inside the image."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    longest = max(bottom - top, right - left)
    side = round(max(SURROUNDINGS * longest, MIN_SHARE * min(height, width), 1))
    side = max(min(side, min(height, width)), longest)

    def span(low: int, high: int, limit: int) -> tuple[int, int]:
        length = min(side, limit)
        start = min(max((low + high - length) // 2, 0), limit - length)
        return start, start + length

    (x0, x1), (y0, y1) = span(left, right, width), span(top, bottom, height)
    return x0, y0, x1, y1


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #626b76; --line: #d9dde2;
  --paper: #ffffff; --panel: #f5f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a0a8b2; --line: #3a4048;
  --paper: #16191d; --panel: #1f2329; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 80rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } p { max-width: 44rem; margin: .4rem 0; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem;
  margin-top: 1.5rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: .6rem; overflow: hidden;
  background: var(--panel); break-inside: avoid; }
figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  background: #000000; }
figcaption { padding: .5rem .8rem .7rem; overflow-wrap: anywhere; }
.number { font-size: 1.25rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.soft { color: var(--soft); font-size: .85rem; }
@media print { main { grid-template-columns: repeat(4, 1fr); } }
"""


def _page(records: Sequence[QuestionRecord], answers: dict[int, str]) -> str:
    """Return the page with all pictures."""
    figures = "\n".join(_figure(one, answers.get(one.number)) for one in records)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="generator" content="{GENERATOR}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{len(records)} questions</title><style>{_STYLE}</style></head><body>
<h1>Which class does the outlined region show?</h1>
<p>Open <code>{CSV}</code> in a spreadsheet, beside this page. Write a class name in the column
<code>class</code> of each row: a name that exists, or a new one. Write <code>?</code> if you do not
know, and <code>mixed</code> if the region has several classes. Rows without an answer are left
out.</p>
<main>
{figures}
</main></body></html>
"""


def _figure(one: QuestionRecord, answer: str | None) -> str:
    guesses = ", ".join(f"{escape(name)} ({100 * p:.0f} %)" for name, p in one.guesses)
    said = f"<div>answer: <b>{escape(answer)}</b></div>" if answer else ""
    name = _picture(one.number)
    return (
        f'<figure><a href="{name}"><img src="{name}" loading="lazy" '
        f'alt="region {one.number} of {escape(one.image, quote=True)}"></a><figcaption>'
        f'<span class="number">{one.number:03}</span>{said}'
        f"<div>{guesses or 'no guess'}</div>"
        f'<div class="soft">{escape(one.image)}</div></figcaption></figure>'
    )
