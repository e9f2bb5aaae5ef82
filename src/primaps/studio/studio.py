"""A running studio: its folder, fit, classes, images and exports, and the events for the tabs."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from primaps.classes.summary import ClassSummary
from primaps.evaluation.audit import Audit, audit_subject
from primaps.model import PriMaPsEM
from primaps.persistence import ModelRecord, is_model, read_model, read_record
from primaps.studio.audit import begin_audit, write_studio_report
from primaps.studio.edits import ClassEditor, ConflictError
from primaps.studio.export import Exporter, corrected_leaves
from primaps.studio.fitting import PLANNED_CLASSES, Fitting
from primaps.studio.images import ImageCache
from primaps.studio.messages import EventHub
from primaps.studio.network import Network, load_class_summary
from primaps.studio.workspace import Workspace
from primaps.utils.errors import PrimapsError

CLOSE_TIMEOUT = 60.0
"""Seconds to wait for the analysis of an image when the server stops; it takes one or two."""
PREVIEW_INTERVAL, PREVIEWS = 3.0, 12
"""Seconds between two previews during a fit, each of which interrupts it, and the number of images
with previews while classes are fitted, which is the number of images on the page."""
STATE_INTERVAL = 0.25
"""Seconds between two state events."""


class Studio:
    """The state behind the routes of :mod:`primaps.studio.api`.

    Args:
        workspace: Workspace that this process has locked.
        classes: Suggested number of classes, or ``auto``.
        device: ``auto``, ``cpu``, ``cuda``, ...
    """

    def __init__(self, workspace: Workspace, classes: int | str, device: str = "auto") -> None:
        self.workspace, self.device = workspace, device
        record = workspace.record
        self.classes = classes if record is None else record.classes
        self.events = EventHub()
        self.network = Network(workspace.options, workspace.model, device)
        self.images = ImageCache(workspace, self.network, self._analyzed)
        self.fitting = Fitting(self._fit_changed)
        self.exporter = Exporter(self.images, lambda job: self.events.send("export", job))
        self.class_summary: ClassSummary | None = None
        self.editor: ClassEditor | None = None
        self.error = ""
        self._model_record: ModelRecord | None = None
        self._choosing = threading.RLock()
        """Held while a folder is chosen, and while a fit or a plan is started or stopped."""
        self._last_preview, self._previews = 0.0, 0
        self._closed = threading.Event()
        self._starting = threading.Thread(target=self._resume, daemon=True)

    def begin(self) -> None:
        """Open the model, resume a fit, or estimate the duration of a fit; in the event loop."""
        self.events.begin()
        self._starting.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def _resume(self) -> None:
        with self._choosing:
            if self.fitting.running or self.class_summary is not None:
                return  # a request was faster
            if self._has_model():
                if self.workspace.record is None:
                    self.workspace.begin(self.classes)
                self._open_model()
            elif self.workspace.record is not None:
                self.fit(self.classes)
            else:
                self._plan()

    def _has_model(self) -> bool:
        """Return whether the folder has a complete model."""
        folder = self.workspace.model
        if self.workspace.given_model is not None:
            return True
        states = list(folder.glob("training-*.safetensors"))
        return is_model(folder) and (folder / "preview.png").is_file() and not states

    def _open_model(self) -> None:
        folder = self.workspace.model
        try:
            read_model(folder)  # validates the files
            self._model_record = read_record(folder)
            self.class_summary = load_class_summary(folder)
            self.editor = ClassEditor(folder, self.class_summary.tree, self.workspace.out)
        except (PrimapsError, OSError) as error:
            self.error = str(error)
            return
        self.events.send("classes", {"revision": self.editor.revision})
        self.images.analyze_all()

    def close(self) -> None:
        """Stop all background work and wait for it: Python must not exit during a computation."""
        self._closed.set()
        self.images.close()
        self.fitting.stop(notify=False)
        self.events.end()
        self._starting.join(CLOSE_TIMEOUT)
        self.fitting.stop(notify=False)  # that thread may have started one
        self.network.queue.close(CLOSE_TIMEOUT)

    # Folder and fit.

    def choose(self, path: str) -> None:
        """Choose another image folder before a fit."""
        with self._choosing:
            self.workspace.choose(path)
            self.images.clear()
            self._plan()

    def fit(self, classes: int | str) -> None:
        """Start or resume a fit.

        Raises:
            ConflictError: A fit is running, or the model exists.
            InputError: The folder has no images.
        """
        with self._choosing:
            if self.class_summary is not None:
                raise ConflictError("this studio already has a model; use another --out")
            if self.fitting.running:
                raise ConflictError("the fit is already running")
            record = self.workspace.record
            if record is None or record.classes != classes:
                self.workspace.begin(classes)
            self.error, self.classes = "", classes
            self.fitting.fit(self._task(), self._open_model)

    def stop(self) -> None:
        """Stop the fit, which can be resumed."""
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
        """Announce an image for the preview of the masks.

        During feature extraction it is the last processed image. Later, a few evenly spaced images
        are announced in turn.
        """
        progress, total = self.fitting.progress, len(self.workspace.images)
        if not progress or time.monotonic() - self._last_preview < PREVIEW_INTERVAL:
            return
        count = min(total, PREVIEWS)
        if progress["stage"] == "features":
            image, self._previews = max(0, progress["done"] - 1), 0
        elif self._previews < count:
            image, self._previews = self._previews * total // count, self._previews + 1
        else:
            return
        self._last_preview = time.monotonic()
        self.events.send("image", {"image": image})

    # State.

    def state(self) -> dict[str, Any]:
        """Return the answer to ``GET state``, as docs/studio.md describes it."""
        workspace, fitting, editor = self.workspace, self.fitting, self.editor
        error = self.error or fitting.error
        stage = "fitted" if editor else "fitting" if fitting.running else "ready"
        if stage == "ready" and not workspace.images:
            stage = "empty"
        if error and not fitting.running:
            stage = "failed"
        estimate = model = None
        if fitting.planned is not None:
            classes = PLANNED_CLASSES if self.classes == "auto" else self.classes
            seconds = round(sum(fitting.planned.values()), 1)
            estimate = {"seconds": seconds, "classes": classes}
        if editor is not None and self._model_record is not None:
            config, backbone = self._model_record.config, self._model_record.backbone
            model = {
                "classes": config.classes,
                "backbone": backbone.name,
                "size": config.size,
                "patch_size": backbone.patch_size,
                "leaves": len(editor.tree),
            }
        skipped = [*workspace.skipped, *fitting.skipped]
        for number, sentence in list(self.images.unreadable.items()):
            source = str(workspace.file(number).source)
            if not any(one.startswith(source) for one in skipped):  # once per file
                skipped.append(sentence)
        return {
            "folder": workspace.image_folder.name,
            "collection": workspace.collection,
            "images": len(workspace.images),
            "stage": stage,
            "progress": fitting.progress if fitting.running else self.images.progress,
            "estimate": estimate,
            "requested": self.classes,
            "skipped": list(dict.fromkeys(skipped)),
            "error": error,
            "model": model,
            "revision": editor.revision if editor else "",
        }

    def _watch(self) -> None:
        """Send the state when it changes, and announce edits of other programs."""
        sent: dict[str, Any] = {}
        while not self._closed.wait(STATE_INTERVAL):
            try:
                now = self.state()
            except (PrimapsError, OSError) as error:  # another program damaged the edits
                now = {**sent, "error": str(error)}
            if now != sent:
                if sent.get("revision") != now["revision"]:
                    self.events.send("classes", {"revision": now["revision"]})
                sent = now
                self.events.send("state", now)

    # Classes, images and audit.

    def opened(self) -> tuple[ClassSummary, ClassEditor]:
        """Return the class tree and the editor of the classes.

        Raises:
            ConflictError: The studio has no model yet.
        """
        if self.class_summary is None or self.editor is None:
            raise ConflictError("this studio has no model yet; start a fit")
        return self.class_summary, self.editor

    def _analyzed(self, number: int) -> None:
        key = self.workspace.images[number].key
        if self.editor is not None and self.editor.corrections.has(key):
            self.recount(number)

    def recount(self, number: int) -> None:
        """Count the pixels of each leaf in an image again after a correction."""
        summary = self.images.summaries.get(number)
        if summary is not None and self.editor is not None:
            leaves = corrected_leaves(self.images, self.editor, number)
            counts = np.bincount(leaves.ravel(), minlength=len(summary.similarity))
            self.images.summaries[number] = replace(summary, counts=counts)

    def shares(self) -> dict[int, Float[np.ndarray, " l"]]:
        """Return the share of each leaf in each analyzed image, with corrections."""
        return {
            number: summary.counts / max(1, summary.counts.sum())
            for number, summary in list(self.images.summaries.items())
        }

    def corrected(self) -> list[int]:
        """Return the numbers of the corrected images."""
        if self.editor is None:
            return []
        keys = set(self.editor.corrections.keys())
        return [n for n, image in enumerate(self.workspace.images) if image.key in keys]

    def model(self) -> PriMaPsEM:
        """Return the model with the current edits."""
        return self.network.edited_model(self.opened()[1].edits)

    def audit(self) -> tuple[Audit | None, list[str]]:
        """Return the audit, and the model and classes that a new audit would be about."""
        return Audit.load(self.workspace.out / "audit"), audit_subject(self.model())

    def begin_audit(self, answers: int) -> None:
        """Sample the questions of an audit."""
        begin_audit(self.images, self.opened()[1], self.model(), answers)

    def report(self) -> Path:
        """Write the report of the current classes and return its path."""
        audit, subject = self.audit()
        current = audit is not None and audit.record.subject == subject
        accuracy = audit.estimate() if audit is not None and current else None
        path = self.workspace.out / "report.html"
        return write_studio_report(self.images, self.model(), path, accuracy)
