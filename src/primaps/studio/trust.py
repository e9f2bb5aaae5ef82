"""The audit and the report of a studio, from what its looks already know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from primaps.classes.legend import HIDDEN
from primaps.data import ImageFile
from primaps.evaluation.audit import Audit
from primaps.evaluation.audit_questions import POOL, Pixel, about, begin, draw_pixels
from primaps.model import PriMaPsEM
from primaps.pictures.report import Sight, write_report
from primaps.studio.album import Album
from primaps.studio.analysis import Look
from primaps.studio.edited import ConflictError, Edited
from primaps.studio.gallery import hexadecimal
from primaps.studio.photos import photo
from primaps.studio.workspace import unused
from primaps.utils.files import temporary_folder

REPORTED = 60
"""Images in a report, drawn at random: a report takes seconds."""


def begin_audit(album: Album, edited: Edited, model: PriMaPsEM, answers: int) -> Audit:
    """Draw the questions from all images. An audit that is there is moved to ``audit-N``.

    Args:
        model: with the edits of now.

    Raises:
        ConflictError: not all images were looked at yet.
        InputError: too few or too many answers, or no pixel has a class.
    """
    total = len(album.workspace.images)
    if album.seen < total:
        raise ConflictError(
            f"{album.seen} of {total} images were looked at: the audit takes all of them, so wait "
            "a little"
        )
    workspace, folder = album.workspace, album.workspace.out / "audit"
    legend = edited.legend()
    table, names = legend.table().numpy(), legend.names
    each = max(1, POOL // len(album.summaries))
    pixels: list[Pixel] = []
    for number in sorted(album.summaries):
        look = album.kept_look(number)
        if look is None:
            continue
        one, file = workspace.images[number], workspace.file(number)
        labels = table[look.parts]
        margin = _scaled(look, labels.shape)
        size = (one.width, one.height)
        pixels += draw_pixels(str(file.source), one.key, labels, margin, size, each)
    pixels = [pixel for pixel in pixels if not (legend.hides and pixel.value == HIDDEN)]
    with temporary_folder(workspace.out) as place:
        begun = begin(place / "audit", pixels, names, about(model), answers)
        if folder.is_dir() and any(folder.iterdir()):
            folder.rename(unused(workspace.out, "audit"))
        (place / "audit").replace(folder)
    return Audit(folder, begun.record)


def audit_page(album: Album, edited: Edited, audit: Audit | None, now: list[str]) -> dict[str, Any]:
    """The question to answer and the estimate; see ``GET audit`` in docs/studio.md.

    Args:
        now: what answers would be about now.
    """
    if audit is None:
        return {"question": None, "done": 0, "total": 0, "estimate": None, "stale": False}
    question, result = audit.next(), audit.estimate()
    done, total = audit.progress
    shown = None
    if question is not None:
        workspace = album.workspace
        paths = {str(workspace.file(n).source): n for n in range(len(workspace.images))}
        number = paths.get(question.path)
        if number is not None:
            one = workspace.images[number]
            colors = {c.name: hexadecimal(c.color) for c in edited.legend().classes}
            shown = {
                "image": number,
                "x": (question.x + 0.5) / max(1, one.width),
                "y": (question.y + 0.5) / max(1, one.height),
                "class": question.name,
                "color": colors.get(question.name, "#808080"),
            }
    interval = result and {"accuracy": result.accuracy, "low": result.low, "high": result.high}
    stale = audit.record.about != now
    return {
        "question": shown, "done": done, "total": total, "estimate": interval, "stale": stale,
    }  # fmt: skip


def report(album: Album, model: PriMaPsEM, path: Path) -> Path:
    """Write the report of the images that were looked at so far.

    Args:
        model: with the edits of now.

    Raises:
        ConflictError: no image was looked at yet.
    """
    seen = {}
    for number in sorted(album.summaries):
        source = album.workspace.file(number).source
        assert isinstance(source, Path)
        if source.is_file():
            seen[source.resolve()] = number
    if not seen:
        raise ConflictError("no image was looked at yet: the report takes at least one")
    assert model.inventory_ is not None
    if model.legend_ is None:
        model = model.cut(model.inventory_.tree.classes)
    assert model.legend_ is not None
    table = model.legend_.table().numpy()

    def see(file: ImageFile) -> Sight:
        assert isinstance(file.source, Path)
        number = seen[file.source.resolve()]
        look = album.kept_look(number) or album.look(number, 1).result()
        image = photo(file.source)
        return Sight(image, table[look.parts], look.alike[look.parts], 1 - look.doubt)

    return write_report(model, list(seen), path, most=REPORTED, see=see)


def _scaled(look: Look, size: tuple[int, int]) -> np.ndarray:
    """The margin at the size of the parts."""
    small = Image.fromarray(look.margin.astype(np.float32))
    return np.asarray(small.resize((size[1], size[0]), Image.Resampling.BILINEAR))
