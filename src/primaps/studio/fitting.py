"""A fit in the background: started, watched, stopped; it goes on where it was stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from primaps.utils.files import cache_dir

STAGES = ("reading", "features", "classes", "k-means", "orthogonal", "EM")
"""Of a fit, in their order."""


class Fitting:
    """The process that plans and fits.

    Whoever uses it takes care that two threads do not begin and stop at the same time.

    Args:
        changed: called, in any thread, whenever there is something new to show.

    Attributes:
        running: whether a fit is under way.
        progress: of the fit, as the page shows it.
        planned: seconds of each stage, or None as long as nobody has measured.
        error: why the last fit failed; "" if it did not.
        problems: a sentence about each image that was left out.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.changed = changed
        self.running = False
        self.progress: dict[str, Any] | None = None
        self.planned: dict[str, float] | None = None
        self.error = ""
        self.problems: list[str] = []
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._began: tuple[str, float, int] = ("", 0.0, 0)

    def plan(self, task: dict[str, Any]) -> None:
        """Measure what a fit will take; a fit that begins meanwhile goes first."""
        self._start({**task, "task": "plan"}, lambda seconds: None)

    def fit(self, task: dict[str, Any], finished: Callable[[], None]) -> None:
        """Begin, or go on. ``finished`` is called, in a thread of its own, when the model is
        there."""
        self.running, self.error, self.problems = True, "", []
        self.progress = {
            "stage": "starting", "done": 0, "total": 1, "seconds_left": None, "about": {},
        }  # fmt: skip
        self._start({**task, "task": "fit"}, lambda _: finished())
        self.changed()

    def stop(self) -> None:
        """Stop the process, whatever it does."""
        with self._lock:
            process, self._process = self._process, None
            self.running, self.progress = False, None
        if process is not None:
            process.kill()
            process.wait()
            self.changed()

    def _start(self, task: dict[str, Any], finished: Callable[[Any], None]) -> None:
        self.stop_quietly()
        task = {"cache": str(cache_dir() / "features"), **task}
        process = subprocess.Popen(
            [sys.executable, "-m", "primaps.studio.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip
        with self._lock:
            self._process = process
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()  # and it stays open: see the worker
        except BrokenPipeError:
            pass  # it ended at once; whoever watches it says so
        watch = threading.Thread(
            target=self._watch, args=(process, task["task"], finished), daemon=True
        )
        watch.start()

    def stop_quietly(self) -> None:
        """End a plan that is being made, without a word."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _watch(
        self, process: subprocess.Popen[str], task: str, finished: Callable[[Any], None]
    ) -> None:
        assert process.stdout is not None
        result: dict[str, Any] = {}
        for text in process.stdout:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if process is not self._process:
                return  # it was stopped
            if "progress" in line:
                self._show(*line["progress"])
            elif "problem" in line:
                self.problems.append(str(line["problem"]))
            else:
                result = line
        code = process.wait()
        with self._lock:
            if process is not self._process:
                return
            self._process = None
        if task == "plan":
            self.planned = result.get("done")
        else:
            if code == 0 and "done" in result:
                finished(None)
            else:
                self.error = result.get("error") or f"the fit ended without a word (status {code})"
            self.running, self.progress = False, None
        self.changed()

    def _show(self, stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        now = time.monotonic()
        if stage != self._began[0]:
            self._began = (stage, now, done)
        self.progress = {
            "stage": stage,
            "done": done,
            "total": total,
            "seconds_left": self._left(stage, done, total, now),
            "about": figures,
        }
        self.changed()

    def _left(self, stage: str, done: int, total: int, now: float) -> float | None:
        """Of this stage as fast as it went so far, of those that follow as they were planned."""
        planned = self.planned or {}
        _, began, first = self._began
        if done > first and now > began:
            own = (now - began) / (done - first) * (total - done)
        elif stage in planned and total:
            own = planned[stage] * (1 - done / total)
        else:
            return None
        later = STAGES[STAGES.index(stage) + 1 :] if stage in STAGES else ()
        return round(own + sum(planned.get(one, 0.0) for one in later), 1)
