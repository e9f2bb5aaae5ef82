"""A studio while it runs: the folder, the fit, the classes and the album, and who is told."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from primaps.classes.inventory import Inventory
from primaps.evaluation.audit import Audit
from primaps.evaluation.audit_questions import about
from primaps.model import PriMaPsEM
from primaps.model_folder import ModelRecord, is_model, read_model
from primaps.studio import trust
from primaps.studio.album import Album
from primaps.studio.edited import ConflictError, Edited
from primaps.studio.events import Hub
from primaps.studio.export import Exporting, corrected_parts
from primaps.studio.fitting import Fitting
from primaps.studio.network import Network, inventory
from primaps.studio.state import state
from primaps.studio.work_queue import NOW, Turns
from primaps.studio.workspace import Workspace
from primaps.utils.errors import InputError, PrimapsError
from primaps.utils.inputs import read_json

PATIENCE = 60.0
"""Seconds to wait for a step at the end; a look takes one or two."""
BETWEEN, PICTURES = 3.0, 12
"""Seconds between pictures of a fit, each of which takes the network for a moment, and how many of
them are shown beside the training, as many as the page shows images."""
EVERY = 0.25
"""Seconds between two states that tabs are told."""


class Studio:
    """What the routes of :mod:`primaps.studio.api` ask.

    Args:
        workspace: held by this process.
        classes: number of classes that is proposed, or ``auto``.
        device: ``auto``, ``cpu``, ``cuda``, ...
    """

    def __init__(self, workspace: Workspace, classes: int | str, device: str = "auto") -> None:
        self.workspace, self.device = workspace, device
        record = workspace.record
        self.classes = classes if record is None else record.classes
        self.hub, self.turns = Hub(), Turns()
        self.network = Network(workspace.options, workspace.model, device)
        self.album = Album(workspace, self.network, self.turns, self._looked)
        self.fitting = Fitting(self._fit_changed)
        self.exporting = Exporting(self.album, lambda job: self.hub.tell("export", job))
        self.inventory: Inventory | None = None
        self.edited: Edited | None = None
        self.error = ""
        self._record: ModelRecord | None = None
        self._choosing = threading.RLock()
        """Held by whatever chooses the folder, begins a fit or a plan, or stops either."""
        self._pictured, self._pictures = 0.0, 0
        self._closed = threading.Event()
        self._beginning = threading.Thread(target=self._begin, daemon=True)

    def begin(self) -> None:
        """Open the model, go on with a fit, or measure what one would take."""
        self.hub.begin()
        self._beginning.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def _begin(self) -> None:
        with self._choosing:
            if self.fitting.running or self.inventory is not None:
                return  # somebody was faster
            if self._has_model():
                if self.workspace.record is None:
                    self.workspace.begin(self.classes)
                self._open()
            elif self.workspace.record is not None:
                self.fit(self.classes)
            else:
                self._plan()

    def _has_model(self) -> bool:
        """Whether there is a model that is complete."""
        folder = self.workspace.model
        if self.workspace.given is not None:
            return True
        states = list(folder.glob("training-*.safetensors"))
        return is_model(folder) and (folder / "preview.png").is_file() and not states

    def _open(self) -> None:
        folder = self.workspace.model
        try:
            read_model(folder)  # its files are checked before they are used
            self._record = read_json(folder / "config.json", ModelRecord)
            self.inventory = inventory(folder)
            self.edited = Edited(folder, self.inventory.tree, self.workspace.out)
        except (PrimapsError, OSError) as error:
            self.error = str(error)
            return
        self.hub.tell("classes", {"revision": self.edited.revision})
        self.album.look_at_all()

    def close(self) -> None:
        """End what runs in the background, and wait for the step that is under way: Python must not
        end amid the work of a thread."""
        self._closed.set()
        self.album.close()
        self.fitting.stop_quietly()
        self.hub.end()
        self._beginning.join(PATIENCE)
        self.fitting.stop_quietly()  # which that thread may just have begun
        self.turns.close(PATIENCE)

    # The folder and the fit.

    def choose(self, path: str) -> None:
        """Take another folder of images, before a fit."""
        with self._choosing:
            self.workspace.choose(path)
            self.album.clear()
            self._plan()

    def fit(self, classes: int | str) -> None:
        """Begin a fit, or go on with it.

        Raises:
            ConflictError: it runs already, or is done.
            InputError: there are no images.
        """
        with self._choosing:
            if self.inventory is not None:
                raise ConflictError("the model is there already: use another --out for another one")
            if self.fitting.running:
                raise ConflictError("the fit is running")
            record = self.workspace.record
            if record is None or record.classes != classes:
                self.workspace.begin(classes)
            self.error, self.classes = "", classes
            self.fitting.fit(self._task(), self._open)

    def stop(self) -> None:
        """Stop the fit; it can go on later."""
        with self._choosing:
            self.fitting.stop()

    def _plan(self) -> None:
        if self.workspace.images:
            self.fitting.planned = None
            self.fitting.plan(self._task())

    def _task(self) -> dict[str, Any]:
        workspace = self.workspace
        files = [workspace.file(number) for number in range(len(workspace.images))]
        return {
            "images": [[str(file.source), file.key] for file in files],
            "out": str(workspace.model),
            "classes": self.classes,
            "options": workspace.options,
            "device": self.device,
        }

    def _fit_changed(self) -> None:
        """Tell of an image whose masks can be shown: the one that was looked at last, and while
        classes are fitted one of a few at even distances after the other."""
        progress, total = self.fitting.progress, len(self.workspace.images)
        if not progress or time.monotonic() - self._pictured < BETWEEN:
            return
        few = min(total, PICTURES)
        if progress["stage"] == "features":
            image, self._pictures = max(0, progress["done"] - 1), 0
        elif self._pictures < few:
            image, self._pictures = self._pictures * total // few, self._pictures + 1
        else:
            return
        self._pictured = time.monotonic()
        self.hub.tell("image", {"image": image, "kind": "masks"})

    # What tabs are told.

    def state(self) -> dict[str, Any]:
        """As ``GET state``, see docs/studio.md."""
        return state(
            self.workspace,
            self.fitting,
            self.album,
            self.edited,
            self._record,
            self.classes,
            self.error,
        )

    def _watch(self) -> None:
        """Tell tabs the state when it changed, and that another program edited the classes."""
        told: dict[str, Any] = {}
        while not self._closed.wait(EVERY):
            try:
                now = self.state()
            except (PrimapsError, OSError) as error:  # somebody broke classes.json
                now = {**told, "error": str(error)}
            if now != told:
                if told.get("revision") != now["revision"]:
                    self.hub.tell("classes", {"revision": now["revision"]})
                told = now
                self.hub.tell("state", now)

    # What has to be there.

    def open(self) -> tuple[Inventory, Edited]:
        """The classes.

        Raises:
            ConflictError: there is no model yet.
        """
        if self.inventory is None or self.edited is None:
            raise ConflictError("there is no model yet: fit one first")
        return self.inventory, self.edited

    def _looked(self, number: int) -> None:
        key = self.workspace.images[number].key
        if self.edited is not None and self.edited.corrections.has(key):
            self.recount(number)

    def recount(self, number: int) -> None:
        """Count the parts of an image anew, after its correction."""
        summary = self.album.summaries.get(number)
        if summary is not None and self.edited is not None:
            parts = corrected_parts(self.album, self.edited, number)
            counts = np.bincount(parts.ravel(), minlength=len(summary.alike))
            self.album.summaries[number] = replace(summary, counts=counts)

    def shares(self) -> dict[int, Float[np.ndarray, " l"]]:
        """Of the images that were looked at: the share of each part, corrections applied."""
        return {
            number: summary.counts / max(1, summary.counts.sum())
            for number, summary in list(self.album.summaries.items())
        }

    def audit(self) -> tuple[Audit | None, list[str]]:
        """The audit that is there, and what one would be about now."""
        _, edited = self.open()
        now = about(self._model(edited))
        return Audit.load(self.workspace.out / "audit"), now

    def begin_audit(self, answers: int) -> None:
        """Draw the questions of an audit."""
        _, edited = self.open()
        trust.begin_audit(self.album, edited, self._model(edited), answers)

    def report(self) -> Path:
        """The report of the classes as they are now."""
        _, edited = self.open()
        return trust.report(self.album, self._model(edited), self.workspace.out / "report.html")

    def _model(self, edited: Edited) -> PriMaPsEM:
        """The model with the edits of now; it is loaded in the thread of the network."""
        if not self.network.loaded:
            self.turns.take(NOW, self.network.model).result()
        return self.network.with_edits(edited.edits)

    def corrected(self) -> list[int]:
        """Numbers of the corrected images."""
        if self.edited is None:
            return []
        keys = set(self.edited.corrections.keys())
        return [n for n, one in enumerate(self.workspace.images) if one.key in keys]

    def number(self, key: str | None) -> int | None:
        """Number of the image with a key.

        Raises:
            InputError: the key is of no image.
        """
        if key is None:
            return None
        if (number := self.workspace.number(key)) is None:
            raise InputError(f"there is no image {key!r} in this studio")
        return number
