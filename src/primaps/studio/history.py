"""Every action in ``history.jsonl``: what undo and redo go by, and what a kill cannot take away.

A line is written, and is on the disk, before its effect is; so after a kill the last line says what
may still have to be done. Edits of ``classes.json`` that another program made become an action of
their own, so that they can be undone as well.

    {"do": "edits", "edits": [{"rename": "3", "to": "car"}], "about": "rename 3 to car"}
    {"do": "paint", "key": "2024/a", "part": 7, "size": [640, 480], "runs": [[9, 4]], "before": []}
    {"undo": true}
    {"redo": true}
    {"anew": [...]}                 the edits that were there when another program had undone some
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Action = dict[str, Any]
NAME = "history.jsonl"


class History:
    """Actions that were done, and those that were undone and can be done again.

    Attributes:
        done, undone: actions; the last of each is the next to undo and to redo.
        lines: number of lines, which only grows.
        last: what the last line did: an action, and whether it was undone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: list[Action] = []
        self.undone: list[Action] = []
        self.base: list[Any] = []
        self.lines = 0
        self.last: tuple[Action, bool] | None = None
        if path.is_file():
            for line in path.read_bytes().split(b"\n"):
                try:
                    self._take(json.loads(line))
                except (ValueError, KeyError, TypeError, IndexError):
                    continue  # half a line that a kill left: its effect never began

    @property
    def edits(self) -> list[Any]:
        """What ``classes.json`` holds, as far as the history knows."""
        own = [edit for action in self.done if action["do"] == "edits" for edit in action["edits"]]
        return [*self.base, *own]

    def add(self, action: Action) -> None:
        """Do something new; what was undone cannot be done again from now on."""
        self._write(action)

    def undo(self) -> Action:
        """Take the last action back; its effect is the caller's."""
        self._write({"undo": True})
        return self.undone[-1]

    def redo(self) -> Action:
        """Do the action that was undone last again; its effect is the caller's."""
        self._write({"redo": True})
        return self.done[-1]

    def meet(self, edits: Sequence[Any]) -> None:
        """Take in what another program did to the edits."""
        known = self.edits
        if list(edits) == known:
            return
        after = self.undone[-1] if self.undone else None
        if after and after["do"] == "edits" and [*known, *after["edits"]] == list(edits):
            self._write({"redo": True})
            return
        if list(edits[: len(known)]) == known:
            new = list(edits[len(known) :])
            self._write({"do": "edits", "edits": new, "about": "edits of another program"})
            return
        top = self.done[-1] if self.done else None
        if top and top["do"] == "edits" and known[: -len(top["edits"])] == list(edits):
            self._write({"undo": True})
            return
        self._write({"anew": list(edits)})

    def _write(self, line: Action) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with self.path.open("a+b") as file:
            if file.tell() and not _ends_a_line(self.path):
                text = b"\n" + text
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._take(line)

    def _take(self, line: Action) -> None:
        if "undo" in line:
            self.undone.append(self.done.pop())
            self.last = (self.undone[-1], True)
        elif "redo" in line:
            self.done.append(self.undone.pop())
            self.last = (self.done[-1], False)
        elif "anew" in line:
            self.base, self.done, self.undone, self.last = line["anew"], [], [], None
        else:
            _ = line["edits"] if line["do"] == "edits" else line["runs"]
            self.done.append(line)
            self.undone, self.last = [], (line, False)
        self.lines += 1


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
