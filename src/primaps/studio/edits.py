"""Edits and corrections of the classes, with undo and redo.

``edits.json`` and the corrections hold the current state. ``history.jsonl`` records all actions.
Each line is written to disk before its effect; a restart after a kill applies what is missing.
Edits that another program wrote to ``edits.json`` become a separate action and can be undone.

    {"do": "edits", "edits": [{"rename": "3", "to": "car"}], "description": "renamed 3 to car"}
    {"do": "paint", "key": "2024/a", "digest": "9f86...", "leaf": 7, "size": [640, 480],
     "runs": [[9, 4]], "before": []}
    {"undo": true}
    {"redo": true}
    {"reset": [...]}                the edits that remain after another program removed some

A line that the page caused has the id of the change, ``"change": "5f0c..."``. The page sends a
change again if it did not receive the answer; a change that is in the history is not made twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from primaps.classes.legend import EditError, Legend, legend
from primaps.classes.tree import Tree
from primaps.persistence import EDITS, Edits, change_edits, current_revision, read_edits
from primaps.studio.corrections import UNCORRECTED, Corrections, Runs, run_pixels, to_runs
from primaps.utils.errors import PrimapsError

Action = dict[str, Any]
HISTORY = "history.jsonl"
CHANGED = "another tab or program changed the classes; the page now shows the current classes"


class ConflictError(PrimapsError, ValueError):
    """The request does not fit the current state; the message says what to do."""


class History:
    """Actions in ``history.jsonl``.

    Attributes:
        done, undone: Actions to undo and to redo, the next one last.
        lines: Number of lines, which never decreases.
        last: Action of the last line, and whether the line undid it.
        changes: Id of each change of the page that took effect, and the action of its line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: list[Action] = []
        self.undone: list[Action] = []
        self.base: list[Any] = []
        self.lines = 0
        self.last: tuple[Action, bool] | None = None
        self.changes: dict[str, Action] = {}
        self._last_change = ""
        if path.is_file():
            for line in path.read_bytes().split(b"\n"):
                try:
                    self._apply(json.loads(line))
                except (ValueError, KeyError, TypeError, IndexError):
                    continue  # incomplete line of a killed process: it had no effect yet

    @property
    def edits(self) -> list[Any]:
        """The content of ``edits.json`` according to the history."""
        edits = [one for action in self.done if action["do"] == "edits" for one in action["edits"]]
        return [*self.base, *edits]

    def synchronize(self, edits: Sequence[Any]) -> None:
        """Record the changes that another program made to the edits."""
        known, edits = self.edits, list(edits)
        if edits == known:
            return
        undone = self.undone[-1] if self.undone else None
        done = self.done[-1] if self.done else None
        if undone and undone["do"] == "edits" and [*known, *undone["edits"]] == edits:
            self.add({"redo": True})
        elif edits[: len(known)] == known:
            new = edits[len(known) :]
            self.add({"do": "edits", "edits": new, "description": "edits by another program"})
        elif done and done["do"] == "edits" and known[: -len(done["edits"])] == edits:
            self.add({"undo": True})
        else:
            self.add({"reset": edits})

    def add(self, line: Action) -> None:
        """Write a line: an action, ``{"undo": true}``, ``{"redo": true}`` or a reset."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with self.path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    text = b"\n" + text
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._apply(line)

    def _apply(self, line: Action) -> None:
        if "undo" in line:
            self.undone.append(self.done.pop())
            self.last = (self.undone[-1], True)
        elif "redo" in line:
            self.done.append(self.undone.pop())
            self.last = (self.done[-1], False)
        elif "reset" in line:
            self.base, self.done, self.undone, self.last = line["reset"], [], [], None
        else:
            _ = line["edits"] if line["do"] == "edits" else line["runs"]
            self.done.append(line)
            self.undone, self.last = [], (line, False)
        self.lines += 1
        change = str(line.get("change", ""))
        if change:
            self.changes[change] = self.last[0] if self.last else line
        elif "undo" in line or "redo" in line or "reset" in line:
            # Written by synchronize(): the change of the line before had no effect.
            self.changes.pop(self._last_change, None)
        self._last_change = change


class ClassEditor:
    """The edited classes of a model and its corrections.

    Every change takes the revision that the user saw and raises :class:`ConflictError` if the
    current revision is another one. A change with an id that was made before is not made again.

    Args:
        model: Folder of the model.
        tree: Class tree of the model.
        out: Folder of the studio.
    """

    def __init__(self, model: Path, tree: Tree, out: Path) -> None:
        self.model, self.tree = model, tree
        self.corrections = Corrections(out / "corrections")
        self.history = History(out / HISTORY)
        self._lock = threading.RLock()
        self._edits: Edits = read_edits(model, tree)
        self._file_state: tuple[int, int, int] | None = None
        self._writing = False
        self._legend: tuple[str, Legend] | None = None
        self.history.synchronize(self._edits.edits)
        if self.history.last is not None:
            action, undone = self.history.last
            if action["do"] == "paint":
                self._paint(action, undone)  # in case the process was killed before this

    @property
    def revision(self) -> str:
        """Id of the current edits and corrections, which changes with each of them."""
        with self._lock:
            self._refresh()
            return f"{self._edits.revision}-{self.history.lines}"

    @property
    def edits(self) -> list[dict[str, Any]]:
        """The current edits, as in ``edits.json``."""
        with self._lock:
            self._refresh()
            return list(self._edits.edits)

    def legend(self) -> Legend:
        """Return the current classes."""
        with self._lock:
            self._refresh()
            if self._legend is None or self._legend[0] != self._edits.revision:
                self._legend = (self._edits.revision, legend(self.tree, self._edits.edits))
            return self._legend[1]

    def _refresh(self) -> None:
        """Read the edits again if another program changed the file."""
        path = self.model / EDITS
        status = path.stat() if path.is_file() else None
        state = status and (status.st_ino, status.st_mtime_ns, status.st_size)
        if state != self._file_state:
            if current_revision(self.model) != self._edits.revision:
                self._edits = read_edits(self.model, self.tree)
                self.history.synchronize(self._edits.edits)
            self._file_state = state
        with contextlib.suppress(OSError):  # the disk may still be full; _check tries again
            self._settle()

    def _settle(self) -> None:
        """Record that a change was not applied although its line was written."""
        if self._writing:
            self.history.synchronize(self._edits.edits)
            self._writing = False

    def append(self, revision: str, edits: Sequence[dict[str, Any]], change: str = "") -> None:
        """Append edits as one action.

        Args:
            change: Id of the change; "" without one.

        Raises:
            EditError: One of the edits is not possible; none of them is made.
        """
        with self._lock:
            if self._made(change) is None:
                self._check(revision)
                self._append(list(edits), change)

    def cut(self, revision: str, classes: int, change: str = "") -> None:
        """Cut the class tree at a number of classes.

        Raises:
            TreeError: The tree has no such cut.
        """
        with self._lock:
            if self._made(change) is not None:
                return
            self._check(revision)
            wanted = [self.tree.node_leaves[node] for node in self.tree.nodes(classes)]
            if wanted != [one.leaves for one in self.legend().classes]:
                self._append([{"cut": classes}], change)

    def paint(
        self,
        revision: str,
        key: str,
        size: tuple[int, int],
        name: str,
        runs: Runs,
        digest: str = "",
        change: str = "",
    ) -> None:
        """Assign pixels of an image to a class.

        Args:
            key: Key of the image.
            digest: Digest of the image file.
            size: Height and width of the map that the runs refer to.
            name: Id of the class.

        Raises:
            EditError: The class does not exist.
            InputError: The runs extend beyond the image.
        """
        with self._lock:
            if self._made(change) is not None:
                return
            self._check(revision)
            leaf = self.legend().find(name).leaves[0]
            pixels = run_pixels(runs, size[0] * size[1])
            leaves = self.corrections.read(key, size)
            before = np.full(len(pixels), UNCORRECTED)
            if leaves is not None:
                before = leaves.flatten()[pixels].astype(np.int64)
            action = {
                "do": "paint",
                "key": key,
                "digest": digest,
                "leaf": leaf,
                "size": list(size),
                "runs": [list(run) for run in runs],
                "before": to_runs(pixels, before),
            }
            self.history.add(_with_id(action, change))
            self._paint(action, undone=False)

    def undo(self, revision: str, change: str = "") -> str | None:
        """Undo the last action; return the key of the image if it was a correction."""
        return self._step(revision, change, undone=True)

    def redo(self, revision: str, change: str = "") -> str | None:
        """Redo the action undone last; return the key of the image if it was a correction."""
        return self._step(revision, change, undone=False)

    def _step(self, revision: str, change: str, undone: bool) -> str | None:
        with self._lock:
            if (made := self._made(change)) is not None:
                return str(made["key"]) if made["do"] == "paint" else None
            self._check(revision)
            verb = "undo" if undone else "redo"
            actions = self.history.done if undone else self.history.undone
            if not actions:
                raise ConflictError(f"nothing to {verb}")
            action = actions[-1]
            if action["do"] == "paint":
                self.history.add(_with_id({verb: True}, change))
                self._paint(action, undone)
                return str(action["key"])
            edits = list(self._edits.edits)
            edits = edits[: -len(action["edits"])] if undone else [*edits, *action["edits"]]
            self._write(edits, _with_id({verb: True}, change))
            return None

    def next_actions(self) -> tuple[str | None, str | None]:
        """Describe the actions that :meth:`undo` and :meth:`redo` would take, or None."""
        with self._lock:
            self._refresh()
            undo, redo = (
                _description(actions[-1]) if actions else None
                for actions in (self.history.done, self.history.undone)
            )
        return undo, redo

    def _check(self, revision: str) -> None:
        if revision != self.revision:
            raise ConflictError(CHANGED)
        self._settle()

    def _made(self, change: str) -> Action | None:
        """Return the action of a change that was made before; None for another one."""
        self._refresh()
        return self.history.changes.get(change)

    def _append(self, edits: list[dict[str, Any]], change: str) -> None:
        text = describe(edits, self.legend())
        action = {"do": "edits", "edits": edits, "description": text}
        self._write([*self._edits.edits, *edits], _with_id(action, change))

    def _write(self, edits: list[dict[str, Any]], line: Action) -> None:
        """Write the edits after a line in the history, while no other program does."""
        revision = self._edits.revision

        def before_writing() -> None:
            self._writing = True
            self.history.add(line)

        try:
            self._edits = change_edits(
                self.model, self.tree, lambda _: edits, revision, before_writing
            )
            self._writing = False
        except EditError:
            if read_edits(self.model, self.tree).revision != revision:
                raise ConflictError(CHANGED) from None
            raise

    def _paint(self, action: Action, undone: bool) -> None:
        value = UNCORRECTED if undone else action["leaf"]
        strokes: list[tuple[Runs, int]] = [(action["runs"], value)]
        if undone:
            strokes += [([run[:2]], run[2]) for run in action["before"]]
        height, width = action["size"]
        self.corrections.paint(action["key"], (height, width), strokes)


def _with_id(line: Action, change: str) -> Action:
    return {**line, "change": change} if change else line


def describe(edits: Sequence[dict[str, Any]], classes: Legend) -> str:
    """Describe edits in words, with the names that the classes had before.

    A merge also sets the color and the name of the merged class; the description leaves that out.
    """
    names = {key: one.name for one in reversed(classes.classes) for key in (one.name, one.id)}
    merge = next((one["merge"] for one in edits if isinstance(one.get("merge"), list)), None)
    if merge:
        into, *others = (names.get(str(text), str(text)) for text in merge)
        return f"merged {' and '.join(others)} into {into}"
    return ", ".join(_describe_edit(edit, names) for edit in edits)


def _describe_edit(edit: dict[str, Any], names: dict[str, str]) -> str:
    kind = next(iter(edit), "")
    if kind == "cut":
        return f"changed to {edit['cut']} class{'es' if edit['cut'] != 1 else ''}"
    name = names.get(str(edit.get(kind)), str(edit.get(kind)))
    verbs = {"color": "changed the color of", "hide": "hid", "show": "showed", "split": "split"}
    if kind == "rename":
        return f"renamed {name} to {edit.get('to')}"
    return f"{verbs.get(kind, kind)} {name}"


def _description(action: Action) -> str:
    if action["do"] == "edits":
        return str(action["description"])
    return f"corrected {action['key']}"
