"""Exports to the formats of other tools, in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer
from PIL import Image

from primaps.exchange.classes import Classes
from primaps.exchange.formats import FORMATS
from primaps.exchange.labelme import SPECIAL
from primaps.exchange.transfer import export_labels
from primaps.exchange.voc import BACKGROUND
from primaps.studio.corrections import UNCORRECTED
from primaps.studio.edits import ClassEditor, ConflictError
from primaps.studio.images import ImageCache
from primaps.studio.network import SOON
from primaps.studio.workspace import unused_path
from primaps.utils.errors import InputError, PrimapsError
from primaps.utils.files import temporary_folder

WITH_LABELMAP = ("voc", "cvat-mask")
"""Formats with a ``labelmap.txt``, which separates fields by colons and has comments."""
RESERVED = {**dict.fromkeys(WITH_LABELMAP, (BACKGROUND,)), "labelme": SPECIAL}
"""Class names with another meaning in a format."""
INTERVAL = 0.25
"""Minimum number of seconds between two progress events."""


def describe_formats() -> list[dict[str, Any]]:
    """Return the formats, in the order of :data:`primaps.exchange.FORMATS`."""
    return [
        {
            "name": name,
            "title": row.title,
            "description": row.description,
            "regions": row.per is not None,
        }
        for name, row in FORMATS.items()
    ]


def exported_names(form: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return names that a format supports, and a sentence about each one that was changed.

    Examples:
        >>> exported_names("voc", ["a:b", "background"])[0]
        ['a-b', 'background (class 1)']
        >>> exported_names("coco", ["a:b", "background"])
        (['a:b', 'background'], [])
    """
    found: list[str] = []
    notes = []
    for number, name in enumerate(names):
        new = name
        if form in WITH_LABELMAP:
            new = name.replace(":", "-").lstrip("# ") or f"class {number}"
        if new in RESERVED.get(form, ()):
            new = f"{new} (class {number})"
        while new != name and (new in names or new in found):
            new = f"{new} (class {number})"
        if new != name:
            notes.append(f"The format does not support the class name {name}. It is {new} there.")
        found.append(new)
    return found, notes


def next_steps(form: str, out: str, names: Sequence[str]) -> list[str]:
    """Return the next steps in the other tool, as sentences.

    Examples:
        >>> next_steps("labelme", "exports/labelme-1", ["sky"])
        ['Run `labelme exports/labelme-1 --labels exports/labelme-1/labels.txt`']
    """
    steps = FORMATS[form].next.split("; ")
    listed = ", ".join(names)
    return [(step[0].upper() + step[1:]).format(out=out, names=listed) for step in steps]


def corrected_leaves(
    images: ImageCache, editor: ClassEditor, number: int
) -> Integer[np.ndarray, "H W"]:
    """Return the leaf map of an image with its corrections."""
    leaves = images.analysis(number, SOON).result().leaves
    own = editor.corrections.read(images.workspace.file(number).key, leaves.shape)
    return leaves if own is None else np.where(own == UNCORRECTED, leaves, own)


class Exporter:
    """Runs one export at a time.

    Args:
        on_progress: Called with the job whenever its progress changes.

    Attributes:
        job: The running or last export, as the page shows it.
    """

    def __init__(self, images: ImageCache, on_progress: Callable[[dict[str, Any]], None]) -> None:
        self.images, self.on_progress = images, on_progress
        self.job: dict[str, Any] | None = None
        self._lock = threading.Lock()

    def start(
        self, editor: ClassEditor, form: str, keys: Sequence[str] | None, per: str | None
    ) -> None:
        """Start an export.

        Args:
            form: Name of the format.
            keys: Keys of the images; None for all.
            per: One object per ``class`` or per ``region``; None for the default of the format.

        Raises:
            ConflictError: Another export is running.
            InputError: The format is not supported, or there are no images.
        """
        if form not in FORMATS:
            raise InputError(f"format must be one of {', '.join(FORMATS)}, got {form!r}")
        numbers = [
            number
            for number, image in enumerate(self.images.workspace.images)
            if (keys is None or image.key in keys) and number not in self.images.unreadable
        ]
        if not numbers:
            raise InputError("no image has corrections; export all images")
        with self._lock:
            if self.job is not None and self.job["out"] is None and not self.job["error"]:
                raise ConflictError("another export is running; wait until it is complete")
            self.job = {
                "format": form, "done": 0, "total": 2 * len(numbers), "seconds_left": None,
                "out": None, "error": "", "next": [], "notes": [],
            }  # fmt: skip
        arguments = (self.job, editor, numbers, form, per)
        threading.Thread(target=self._run, args=arguments, daemon=True).start()

    def _run(
        self, job: dict[str, Any], editor: ClassEditor, numbers: list[int], form: str, per: Any
    ) -> None:
        start, sent = time.monotonic(), 0.0

        def progress(done: int) -> None:
            nonlocal sent
            now = time.monotonic()
            rate = (now - start) / max(1, done)
            job.update(done=done, seconds_left=round(rate * (job["total"] - done), 1))
            if now - sent > INTERVAL:
                sent = now
                self.on_progress(job)

        try:
            legend = editor.legend()
            names, job["notes"] = exported_names(form, legend.names)
            classes = Classes(tuple(names), legend.colors)
            table = legend.table().numpy().astype(np.uint8)
            result = self._export(editor, classes, table, numbers, form, per, progress)
            total = job["total"]
            steps = next_steps(form, str(result.out), names)
            job.update(done=total, seconds_left=0.0, out=str(result.out), next=steps)
        except PrimapsError as error:
            job["error"] = str(error)
        except Exception as error:  # a full disk, for example
            job["error"] = f"{type(error).__name__}: {error}"
        self.on_progress(job)

    def _export(
        self,
        editor: ClassEditor,
        classes: Classes,
        table: Integer[np.ndarray, " l"],
        numbers: list[int],
        form: str,
        per: Any,
        progress: Callable[[int], None],
    ) -> Any:
        workspace = self.images.workspace
        exports = workspace.out / "exports"
        exports.mkdir(parents=True, exist_ok=True)
        with temporary_folder(exports) as maps:
            for count, number in enumerate(numbers):
                listed = workspace.images[number]
                labels = Image.fromarray(table[corrected_leaves(self.images, editor, number)])
                labels = labels.resize((listed.width, listed.height), Image.Resampling.NEAREST)
                path = maps / f"{listed.key}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                labels.save(path, compress_level=1)
                progress(count + 1)
            return export_labels(
                maps,
                workspace.image_folder,
                form,
                unused_path(exports, form),
                classes=classes,
                per=per,
                progress=lambda stage, done, total, _: progress(len(numbers) + done),
                log=lambda _: None,  # images without a label map are not part of the export
            )
