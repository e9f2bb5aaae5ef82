"""From looks, edits and corrections to the format of another tool, in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer
from PIL import Image

from primaps.exchange import FORMATS, export_labels
from primaps.exchange.classes import Classes
from primaps.studio.album import Album
from primaps.studio.corrections import NOTHING
from primaps.studio.edited import ConflictError, Edited
from primaps.studio.work_queue import SOON
from primaps.studio.workspace import unused
from primaps.utils.errors import InputError, PrimapsError
from primaps.utils.files import temporary_folder

TITLES = {
    "coco": "COCO",
    "coco-panoptic": "COCO panoptic",
    "cvat": "CVAT",
    "cvat-mask": "CVAT masks",
    "labelstudio": "Label Studio",
    "labelme": "labelme",
    "voc": "Pascal VOC",
    "yolo-semantic": "YOLO semantic",
    "yolo": "YOLO",
    "hf": "Hugging Face",
    "geojson": "GeoJSON",
    "gpkg": "GeoPackage",
}


def formats() -> list[dict[str, Any]]:
    """The formats, in the order of :data:`primaps.exchange.FORMATS`."""
    return [
        {
            "name": name,
            "title": TITLES.get(name, name),
            "about": row.about,
            "regions": row.per is not None,
        }
        for name, row in FORMATS.items()
    ]


def corrected_parts(album: Album, edited: Edited, number: int) -> Integer[np.ndarray, "H W"]:
    """The part of every pixel of an image that was looked at, corrections applied."""
    look = album.kept_look(number) or album.look(number, SOON).result()
    own = edited.corrections.read(album.workspace.file(number).key, look.parts.shape)
    return look.parts if own is None else np.where(own == NOTHING, look.parts, own)


class Exporting:
    """One export at a time.

    Args:
        told: called with the job whenever it got further.

    Attributes:
        job: the export that runs or ran last, as the page shows it.
    """

    def __init__(self, album: Album, told: Callable[[dict[str, Any]], None]) -> None:
        self.album, self.told = album, told
        self.job: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._shown = 0.0

    def start(self, edited: Edited, form: str, keys: Sequence[str] | None, per: str | None) -> None:
        """Begin an export.

        Args:
            keys: of the images that are wanted; None for all.
            per: ``class``, ``region``, or None for what suits the tool.

        Raises:
            ConflictError: one is running.
            InputError: there is no such format, or no image.
        """
        if form not in FORMATS:
            raise InputError(f"{form!r} is no format; there are {', '.join(FORMATS)}")
        images = self.album.workspace.images
        chosen = [
            number
            for number, one in enumerate(images)
            if (keys is None or one.key in keys) and number not in self.album.lost
        ]
        if not chosen:
            raise InputError("no image was corrected yet: export all of them")
        with self._lock:
            if self.job is not None and self.job["out"] is None and not self.job["error"]:
                raise ConflictError("an export is running: wait until it is done")
            self.job = {
                "format": form, "done": 0, "total": 2 * len(chosen), "seconds_left": None,
                "out": None, "error": "", "next": "",
            }  # fmt: skip
        run = threading.Thread(target=self._run, args=(edited, chosen, form, per), daemon=True)
        run.start()

    def _run(self, edited: Edited, chosen: list[int], form: str, per: str | None) -> None:
        began, job = time.monotonic(), self.job
        assert job is not None

        def further(done: int) -> None:
            rate = (time.monotonic() - began) / max(1, done)
            job.update(done=done, seconds_left=round(rate * (job["total"] - done), 1))
            if time.monotonic() - self._shown > 0.25:
                self._shown = time.monotonic()
                self.told(job)

        try:
            done = self._export(edited, chosen, form, per, further)
            job.update(done=job["total"], seconds_left=0.0, out=str(done.out), next=done.next)
        except PrimapsError as error:
            job["error"] = str(error)
        except Exception as error:  # a full disk, for example
            job["error"] = f"{type(error).__name__}: {error}"
        self.told(job)

    def _export(
        self,
        edited: Edited,
        chosen: list[int],
        form: str,
        per: str | None,
        further: Callable[[int], None],
    ) -> Any:
        workspace = self.album.workspace
        legend = edited.legend()
        table = legend.table().numpy().astype(np.uint8)
        exports = workspace.out / "exports"
        exports.mkdir(parents=True, exist_ok=True)
        with temporary_folder(exports) as maps:
            for count, number in enumerate(chosen):
                one = workspace.images[number]
                labels = Image.fromarray(table[corrected_parts(self.album, edited, number)])
                labels = labels.resize((one.width, one.height), Image.Resampling.NEAREST)
                path = maps / f"{one.key}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                labels.save(path, compress_level=1)
                further(count + 1)
            return export_labels(
                maps,
                workspace.photos / workspace.chosen,
                form,
                unused(exports, form),
                classes=Classes(tuple(legend.names), legend.colors),
                per=per,
                progress=lambda stage, done, total, _: further(len(chosen) + done),
                log=lambda _: None,  # images that are not exported were not asked for
            )
