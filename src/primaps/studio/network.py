"""The network of a studio, and the one thread that runs it.

The network is the backbone before a fit and the model after it.
"""

from __future__ import annotations

import copy
import itertools
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from primaps.backbones.backbone import Backbone
from primaps.backbones.load import load_backbone
from primaps.classes.legend import legend
from primaps.classes.summary import ClassSummary
from primaps.classes.tree import TreeError
from primaps.model import PriMaPsEM
from primaps.persistence import is_model, read_class_summary
from primaps.utils.memory import release_memory

T = TypeVar("T")
NOW, SOON, IDLE = 0, 1, 2
"""Priorities: the user waits for it, the user may need it next, nothing else is queued."""


class WorkQueue:
    """Runs functions one at a time in a thread, by priority and then in the order of submission.

    Examples:
        >>> work = WorkQueue()
        >>> work.submit(NOW, lambda: 6 * 7).result()
        42
        >>> work.close()
    """

    def __init__(self) -> None:
        self._waiting: queue.PriorityQueue[tuple[int, int, Any, Any]] = queue.PriorityQueue()
        self._number = itertools.count()
        self._thread = threading.Thread(target=self._run, name="primaps-network", daemon=True)
        self._thread.start()

    def submit(self, priority: int, function: Callable[[], T]) -> Future[T]:
        """Queue a function and return the future of its result."""
        future: Future[T] = Future()
        self._waiting.put((priority, next(self._number), function, future))
        return future

    def close(self, timeout: float = 0.0) -> None:
        """Stop after the running function, and wait for it; queued functions do not run."""
        self._waiting.put((-1, next(self._number), None, None))
        self._thread.join(timeout)

    def _run(self) -> None:
        # On Linux a niceness belongs to a thread and the threads that it starts. The threads that
        # answer the page, and the browser, run first.
        if sys.platform == "linux":
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while True:
            _, _, function, future = self._waiting.get()
            if future is None:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
            release_memory()  # takes 3 ms and frees 100 MB or more


class Network:
    """Loads the backbone and the model at their first use; only for the thread of the queue.

    Args:
        options: Options of the model.
        folder: Folder in which the model is, or will be.
        device: ``auto``, ``cpu``, ``cuda``, ...
    """

    def __init__(self, options: dict[str, Any], folder: Path, device: str) -> None:
        self.options, self.folder, self.device = options, folder, device
        self.queue = WorkQueue()
        self._backbone: Backbone | None = None
        self._model: PriMaPsEM | None = None
        self._digest = ""

    def backbone(self) -> Backbone:
        """Return the backbone of the model, or of the options before a fit."""
        if self._backbone is None:
            if is_model(self.folder):
                return self.model().backbone
            name = self.options.get("backbone") or "dinov2-vits14"
            precision = self.options.get("precision", "float32")
            self._backbone = load_backbone(name, self.device, None, precision)
        return self._backbone

    @property
    def size(self) -> int:
        """Shorter side in pixels at which the network processes images."""
        if self._model is not None:
            return self._model.size
        return self.options.get("size") or self.backbone().default_size

    def model(self) -> PriMaPsEM:
        """Return the model without the edits of its classes; it predicts leaves.

        Raises:
            ModelError: The folder has no model.
            TreeError: The model has no class tree.
        """
        if self._model is None:
            model = PriMaPsEM.from_pretrained(self.folder, self._backbone, self.device)
            if model.class_summary_ is None:
                raise _no_tree(self.folder)
            model.edits_ = []
            self._backbone = model.backbone
            tree = model.class_summary_.tree
            self._model = copy.copy(model)
            self._model.legend_ = legend(tree, classes=len(tree))  # up to 256 leaves
        return self._model

    def digest(self) -> str:
        """Return :meth:`PriMaPsEM.prediction_digest` of the model."""
        if not self._digest:
            self._digest = self.model().prediction_digest()
        return self._digest

    def edited_model(self, edits: list[dict[str, Any]]) -> PriMaPsEM:
        """Return the model with edits, as :meth:`PriMaPsEM.from_pretrained` does; in any thread."""
        if self._model is None:
            self.queue.submit(NOW, self.model).result()
        model = copy.copy(self.model())
        assert model.class_summary_ is not None
        model.edits_ = edits
        model.legend_ = legend(model.class_summary_.tree, edits) if edits else None
        return model


def load_class_summary(folder: Path) -> ClassSummary:
    """Load the class tree of a model and the stability of its classes.

    Raises:
        TreeError: The model has no class tree, or it is damaged.
    """
    summary = read_class_summary(folder)
    if summary is None:
        raise _no_tree(folder)
    return summary


def _no_tree(folder: Path) -> TreeError:
    return TreeError(
        f"{folder} has no class tree, which the studio needs: a k-means model, a linear probe and "
        "a fit to very few images have none; fit PriMaPs-EM to more images"
    )
