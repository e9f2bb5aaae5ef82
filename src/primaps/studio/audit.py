"""The audit and the report of a studio, computed from the cached analyses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from primaps.classes.legend import HIDDEN
from primaps.data import ImageFile
from primaps.evaluation.audit import (
    POOL,
    Audit,
    Estimate,
    Pixel,
    audit_subject,
    begin,
    sample_pixels,
)
from primaps.model import PriMaPsEM
from primaps.pictures.report import AnalyzedImage, write_report
from primaps.studio.edits import ClassEditor, ConflictError
from primaps.studio.gallery import hex_color
from primaps.studio.images import ImageCache, display_image
from primaps.studio.network import SOON
from primaps.studio.workspace import unused_path
from primaps.utils.files import temporary_folder

REPORT_IMAGES = 60
"""Number of images in a report, sampled with a seed."""


def begin_audit(images: ImageCache, editor: ClassEditor, model: PriMaPsEM, answers: int) -> None:
    """Sample the questions of an audit; an existing audit is moved to ``audit-N``.

    Args:
        model: Model with the current edits.

    Raises:
        ConflictError: Not all images were analyzed yet.
        InputError: The number of answers is out of range, or no pixel has a class.
    """
    workspace, total = images.workspace, len(images.workspace.images)
    if images.analyzed < total:
        raise ConflictError(
            f"only {images.analyzed} of {total} images were analyzed, and an audit needs all of "
            "them; wait until the analysis is complete"
        )
    legend = editor.legend()
    table = legend.table().numpy()
    each = max(1, POOL // len(images.summaries))
    pixels: list[Pixel] = []
    for number in sorted(images.summaries):
        analysis = images.cached_analysis(number)
        if analysis is None:
            continue
        listed, source = workspace.images[number], str(workspace.file(number).source)
        labels = table[analysis.leaves]
        small = Image.fromarray(analysis.margin.astype(np.float32))
        margin = np.asarray(small.resize(labels.shape[::-1], Image.Resampling.BILINEAR))
        size = (listed.width, listed.height)
        pixels += sample_pixels(source, listed.key, labels, margin, size, each)
    pixels = [pixel for pixel in pixels if not (legend.hides and pixel.value == HIDDEN)]
    folder = workspace.out / "audit"
    with temporary_folder(workspace.out) as temporary:
        subject, depth = audit_subject(model), workspace.depth
        begin(temporary / "audit", pixels, legend.names, subject, answers, depth=depth)
        if folder.is_dir() and any(folder.iterdir()):
            folder.rename(unused_path(workspace.out, "audit"))
        (temporary / "audit").replace(folder)


def describe_audit(
    images: ImageCache, editor: ClassEditor, audit: Audit | None, subject: list[str]
) -> dict[str, Any]:
    """Return the answer to ``GET audit``, as docs/studio.md describes it.

    Args:
        subject: Model and classes that a new audit would be about.
    """
    earlier = _earlier_audit(images.workspace.out)
    answered = (
        {"done": earlier[1].progress[0], "total": earlier[1].progress[1]} if earlier else None
    )
    if audit is None:
        return {
            "question": None, "done": 0, "total": 0, "estimate": None, "stale": False,
            "earlier": answered,
        }  # fmt: skip
    stale = audit.record.subject != subject
    question, result = audit.next(), audit.estimate()
    done, total = audit.progress
    shown = None
    if question is not None:
        workspace = images.workspace
        paths = {str(workspace.file(n).source): n for n in range(len(workspace.images))}
        number = paths.get(question.path)
        if number is not None:
            listed = workspace.images[number]
            # The name of today: a class may have been renamed since.
            shown_classes = editor.legend().shown
            one = None if stale else shown_classes[question.value]
            shown = {
                "image": number,
                "x": (question.x + 0.5) / max(1, listed.width),
                "y": (question.y + 0.5) / max(1, listed.height),
                "class": one.name if one else question.name,
                "color": hex_color(one.color) if one else "#808080",
            }
    interval = result and {"accuracy": result.accuracy, "low": result.low, "high": result.high}
    return {
        "question": shown, "done": done, "total": total, "estimate": interval, "stale": stale,
        "earlier": answered,
    }  # fmt: skip


def _earlier_audit(out: Path) -> tuple[Path, Audit] | None:
    """Return the last audit with answers that another one replaced."""
    last = unused_path(out, "audit")
    for number in range(int(last.name.removeprefix("audit-")) - 1, 0, -1):
        audit = Audit.load(folder := out / f"audit-{number}")
        if audit is not None and any(audit.record.asked):
            return folder, audit
    return None


def restore_audit(out: Path) -> None:
    """Open an earlier audit again, which changes places with the present one.

    Raises:
        ConflictError: There is no earlier audit with an answer.
    """
    earlier = _earlier_audit(out)
    if earlier is None:
        raise ConflictError("there is no earlier audit with answers")
    aside = unused_path(out, "audit")
    if (out / "audit").exists():
        (out / "audit").rename(aside)
    earlier[0].rename(out / "audit")
    if aside.exists():
        aside.rename(earlier[0])


def answer_question(audit: Audit | None, subject: list[str], right: bool | None, done: int) -> None:
    """Answer the next question of an audit.

    Args:
        subject: As in :func:`describe_audit`.
        right: Whether the class is correct; None if the user cannot tell.
        done: Number of answers that the page showed.

    Raises:
        ConflictError: The page did not show the next question.
    """
    question = None if audit is None else audit.next()
    if audit is None or question is None:
        raise ConflictError("the audit has no open question; start an audit")
    if audit.record.subject != subject:
        raise ConflictError("the classes changed after the audit was started; start over")
    if audit.progress[0] != done:
        raise ConflictError("another tab answered this question; the page now shows the next one")
    audit.answer(question, right)


def write_studio_report(
    images: ImageCache, model: PriMaPsEM, path: Path, accuracy: Estimate | None = None
) -> Path:
    """Write the report from the images that were analyzed so far.

    Args:
        model: Model with the current edits.
        accuracy: Accuracy that an audit of these classes estimated.

    Raises:
        ConflictError: No image was analyzed yet.
    """
    numbers = {}
    for number in sorted(images.summaries):
        source = images.workspace.file(number).source
        assert isinstance(source, Path)
        if source.is_file():
            numbers[source.resolve()] = number
    if not numbers:
        raise ConflictError("no image was analyzed yet; wait for the first one")
    assert model.class_summary_ is not None
    if model.legend_ is None:
        model = model.cut(model.class_summary_.tree.classes)
    assert model.legend_ is not None
    table = model.legend_.table().numpy()

    def analyze(file: ImageFile) -> AnalyzedImage:
        assert isinstance(file.source, Path)
        analysis = images.analysis(numbers[file.source.resolve()], SOON).result()
        labels, similarity = table[analysis.leaves], analysis.similarity[analysis.leaves]
        return AnalyzedImage(display_image(file), labels, similarity, 1 - analysis.uncertainty)

    return write_report(
        model, list(numbers), path, max_images=REPORT_IMAGES, analyze=analyze, accuracy=accuracy
    )
