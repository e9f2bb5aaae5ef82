"""The classes as they are now, and the four ways to change them: edit, cut, paint, undo.

``classes.json`` and the corrections are the truth; ``history.jsonl`` is how they came about.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from primaps.classes.classes_json import NAME as CLASSES
from primaps.classes.classes_json import Edits, change_edits, current_revision, read_edits
from primaps.classes.edits import legend
from primaps.classes.legend import EditError, Legend
from primaps.classes.tree import Tree
from primaps.studio.corrections import NOTHING, Corrections, Runs, as_runs, pixels
from primaps.studio.history import NAME, Action, History
from primaps.utils.errors import PrimapsError


class ConflictError(PrimapsError, ValueError):
    """Another tab or program was faster; the message says what to do."""


class Edited:
    """The classes of a model, its corrections, and what was done to both.

    Args:
        model: folder of the model.
        tree: of the model.
        out: folder of the studio.
    """

    def __init__(self, model: Path, tree: Tree, out: Path) -> None:
        self.model, self.tree = model, tree
        self.corrections = Corrections(out / "corrections")
        self.history = History(out / NAME)
        self._lock = threading.RLock()
        self._edits: Edits = read_edits(model, tree)
        self._seen: tuple[int, int, int] | None = None
        self._writing = False
        self._legend: tuple[str, Legend] | None = None
        self.history.meet(self._edits.edits)
        if self.history.last is not None:
            action, undone = self.history.last
            if action["do"] == "paint":
                self._paint(action, undone)  # a kill may have come between the line and this

    @property
    def revision(self) -> str:
        """Of everything that can be changed here; another one after every change."""
        with self._lock:
            self._look()
            return f"{self._edits.revision}-{self.history.lines}"

    @property
    def edits(self) -> list[dict[str, Any]]:
        """As in ``classes.json``."""
        with self._lock:
            self._look()
            return list(self._edits.edits)

    def legend(self) -> Legend:
        """The classes of now."""
        with self._lock:
            self._look()
            if self._legend is None or self._legend[0] != self._edits.revision:
                self._legend = (self._edits.revision, legend(self.tree, self._edits.edits))
            return self._legend[1]

    def _look(self) -> None:
        """Take in what another program wrote; nothing is parsed while the file is the same."""
        path = self.model / CLASSES
        status = path.stat() if path.is_file() else None
        seen = status and (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            if current_revision(self.model) != self._edits.revision:
                self._edits = read_edits(self.model, self.tree)
                self.history.meet(self._edits.edits)
            self._seen = seen
        with contextlib.suppress(OSError):  # a disk that is still full; see _check
            self._settle()

    def _settle(self) -> None:
        """Take back the line of a change that could not be written."""
        if self._writing:
            self.history.meet(self._edits.edits)
            self._writing = False

    def append(self, revision: str, edits: Sequence[dict[str, Any]]) -> None:
        """Edits as one action.

        Raises:
            ConflictError: the person saw another revision.
            EditError: an edit cannot be made; then none is.
        """
        with self._lock:
            self._check(revision)
            self._append(list(edits))

    def cut(self, revision: str, classes: int) -> None:
        """The classes become those of a cut.

        Raises:
            ConflictError: the person saw another revision.
            TreeError: there is no such cut.
        """
        with self._lock:
            self._check(revision)
            wanted = [self.tree.leaves[node] for node in self.tree.nodes(classes)]
            if wanted != [one.parts for one in self.legend().classes]:
                self._append([{"cut": classes}])

    def paint(self, revision: str, key: str, size: tuple[int, int], name: str, runs: Runs) -> None:
        """Give pixels of an image to a class.

        Args:
            size: height and width that the runs are of.
            name: id of the class.

        Raises:
            ConflictError: the person saw another revision.
            EditError: there is no such class.
            InputError: the runs leave the image.
        """
        with self._lock:
            self._check(revision)
            part = self.legend().find(name).parts[0]
            places = pixels(runs, size[0] * size[1])
            own = self.corrections.read(key, size)
            before = np.full(len(places), NOTHING) if own is None else own.flatten()[places]
            action = {
                "do": "paint",
                "key": key,
                "part": part,
                "size": list(size),
                "runs": [list(run) for run in runs],
                "before": as_runs(places, before.astype(np.int64)),
            }
            self.history.add(action)
            self._paint(action, undone=False)

    def undo(self, revision: str) -> str | None:
        """Take the last action back; returns the key of the image if it was a correction.

        Raises:
            ConflictError: the person saw another revision, or there is nothing to undo.
        """
        with self._lock:
            self._check(revision)
            if not self.history.done:
                raise ConflictError("there is nothing to undo")
            action = self.history.done[-1]
            if action["do"] == "edits":
                kept = len(self._edits.edits) - len(action["edits"])
                self._write(lambda edits: edits[:kept], self.history.undo)
                return None
            self.history.undo()
            self._paint(action, undone=True)
            return str(action["key"])

    def redo(self, revision: str) -> str | None:
        """Do what was undone last again; returns the key of the image if it is a correction.

        Raises:
            ConflictError: the person saw another revision, or there is nothing to do again.
        """
        with self._lock:
            self._check(revision)
            if not self.history.undone:
                raise ConflictError("there is nothing to do again")
            action = self.history.undone[-1]
            if action["do"] == "edits":
                self._write(lambda edits: [*edits, *action["edits"]], self.history.redo)
                return None
            self.history.redo()
            self._paint(action, undone=False)
            return str(action["key"])

    def next(self) -> tuple[str | None, str | None]:
        """What undo and redo would do, in words."""
        with self._lock:
            self._look()
            both = (self.history.done, self.history.undone)
            undo, redo = (_about(actions[-1]) if actions else None for actions in both)
        return undo, redo

    def _check(self, revision: str) -> None:
        if revision != self.revision:
            raise ConflictError(
                "another tab or program changed the classes meanwhile: this is how they are now"
            )
        self._settle()

    def _append(self, edits: list[dict[str, Any]]) -> None:
        action = {"do": "edits", "edits": edits, "about": ", ".join(map(words, edits))}
        self._write(lambda now: [*now, *edits], lambda: self.history.add(action))

    def _write(self, change: Callable[[list[Any]], list[Any]], note: Callable[[], object]) -> None:
        """Change ``classes.json``, after a line in the history, while no other program does."""
        seen = self._edits.revision

        def noted() -> None:
            self._writing = True
            note()

        try:
            self._edits = change_edits(self.model, self.tree, change, seen, noted)
            self._writing = False
        except EditError as error:
            if read_edits(self.model, self.tree).revision != seen:
                raise ConflictError(
                    "another program changed the classes meanwhile: this is how they are now"
                ) from None
            raise error

    def _paint(self, action: Action, undone: bool) -> None:
        strokes: list[tuple[Runs, int]] = [(action["runs"], NOTHING if undone else action["part"])]
        if undone:
            strokes += [([run[:2]], run[2]) for run in action["before"]]
        height, width = action["size"]
        self.corrections.paint(action["key"], (height, width), strokes)


def words(edit: dict[str, Any]) -> str:
    """An edit as a person says it.

    Examples:
        >>> words({"rename": "3", "to": "car"}), words({"merge": ["0", "4"]}), words({"cut": 9})
        ('rename 3 to car', 'merge 0 and 4', '9 classes')
    """
    kind = next(iter(edit), "")
    if kind == "cut":
        return f"{edit['cut']} classes"
    which = edit.get(kind)
    text = " and ".join(map(str, which)) if isinstance(which, list) else str(which)
    return f"{kind} {text} to {edit['to']}" if "to" in edit else f"{kind} {text}"


def _about(action: Action) -> str:
    return str(action["about"]) if action["do"] == "edits" else f"correction of {action['key']}"
