"""The fit of a studio, in a separate process: ``python -m primaps.studio.fitting``.

A process can be stopped at any moment, and its memory is then free. It exits when the server exits
for any reason, because its standard input closes. It reads one line of JSON and writes many:

    in:  {"task": "plan" | "fit", "images": [[path, key], ...], "classes": 12 | "auto", ...}
    out: {"progress": [stage, done, total, metrics]}, {"log": sentence}, {"done": ...},
         {"error": sentence}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from primaps.utils.files import cache_dir

STAGES = ("reading", "features", "classes", "k-means", "orthogonal", "EM")
"""Stages of a fit, in their order."""
PLANNED_CLASSES = 12
"""Number of classes for the estimate of a fit that selects the number itself."""


class Fitting:
    """Starts, watches and stops the process of the fit.

    The caller ensures that no two threads start and stop at the same time.

    Args:
        on_change: Called in any thread when the state changes.

    Attributes:
        running: Whether a fit is running.
        progress: Progress of the fit, as the page shows it.
        planned: Seconds of each stage; None until they are measured.
        error: Why the last fit failed; "" if it did not.
        skipped: A sentence about each image that was skipped.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.on_change = on_change
        self.running = False
        self.progress: dict[str, Any] | None = None
        self.planned: dict[str, float] | None = None
        self.error = ""
        self.skipped: list[str] = []
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._stage: tuple[str, float, int] = ("", 0.0, 0)
        self._left: tuple[str, float, float] | None = None
        """The last estimate: what it is about, its seconds, and when it was made."""
        self._automatic = False

    def plan(self, task: dict[str, Any]) -> None:
        """Measure how long a fit takes; a fit stops the measurement."""
        self._start({**task, "task": "plan"}, lambda: None)

    def fit(self, task: dict[str, Any], on_done: Callable[[], None]) -> None:
        """Start or resume a fit; ``on_done`` is called in another thread after it."""
        self.running, self.error, self.skipped = True, "", []
        self._left, self._automatic = None, task["classes"] == "auto"
        self.progress = {
            "stage": "starting", "done": 0, "total": 1, "seconds_left": None, "left_of": "fit",
            "metrics": {},
        }  # fmt: skip
        self._start({**task, "task": "fit"}, on_done)
        self.on_change()

    def stop(self, notify: bool = True) -> None:
        """Kill the process, whether it fits or measures."""
        with self._lock:
            process, self._process = self._process, None
            if notify:
                self.running, self.progress = False, None
        if process is not None:
            process.kill()
            process.wait()
            if notify:
                self.on_change()

    def _start(self, task: dict[str, Any], on_done: Callable[[], None]) -> None:
        self.stop(notify=False)
        task = {"cache": str(cache_dir() / "features"), **task}
        process = subprocess.Popen(
            [sys.executable, "-m", "primaps.studio.fitting"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip
        with self._lock:
            self._process = process
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()  # it stays open: its end ends the process
        except BrokenPipeError:
            pass  # the process has ended; _watch reports it
        arguments = (process, task["task"], on_done)
        threading.Thread(target=self._watch, args=arguments, daemon=True).start()

    def _watch(
        self, process: subprocess.Popen[str], task: str, on_done: Callable[[], None]
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
                self._set_progress(*line["progress"])
            elif "log" in line:
                self.skipped.append(str(line["log"]))
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
                on_done()
            else:
                self.error = result.get("error") or (
                    "the training process exited without an error message "
                    f"(exit code {code}: out of memory?)"
                )
            self.running, self.progress = False, None
        self.on_change()

    def _set_progress(self, stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        if stage != self._stage[0]:
            self._stage = (stage, now, done)
        self.progress = {
            "stage": stage,
            "done": done,
            "total": total,
            "seconds_left": self._seconds_left(stage, done, total, now),
            "left_of": "fit" if self._left is None or self._left[0] == "fit" else "stage",
            "metrics": metrics,
        }
        self.on_change()

    def _seconds_left(self, stage: str, done: int, total: int, now: float) -> float | None:
        """Estimate the rest of this stage from its speed, later stages from the plan.

        The estimate is about the stage alone while the plan does not have all later stages. It
        grows by at most a second per second: a slower stage does not make it jump.
        """
        planned = self.planned or {}
        _, start, first = self._stage
        if done > first and now > start:
            rest = (now - start) / (done - first) * (total - done)
        elif stage in planned and total:
            rest = planned[stage] * (1 - done / total)
        else:
            return None
        later = STAGES[STAGES.index(stage) + 1 :] if stage in STAGES else ()
        whole = bool(planned or not later) and not (self._automatic and "classes" in later)
        scope = "fit" if whole else stage
        if whole:
            rest += sum(planned.get(one, 0.0) for one in later)
        if self._left is not None and self._left[0] == scope:
            _, before, then = self._left
            rest = min(rest, before + now - then)
        self._left = (scope, rest, now)
        return round(rest, 1)


def main() -> None:
    """Run the task on standard input, in the process of the fit."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print to standard error
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_exit_with_server, daemon=True).start()

    def send(**line: Any) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    try:
        if task["task"] == "plan":
            send(done=plan_fit(task))
        else:
            run_fit(task, send)
            send(done=None)
    except Exception as error:
        from primaps.utils.errors import PrimapsError

        known = isinstance(error, PrimapsError)
        send(error=str(error) if known else f"{type(error).__name__}: {error}")
        raise


def _exit_with_server() -> None:
    while os.read(0, 1 << 10):  # unbuffered: the lock of a buffer would outlive the main thread
        continue
    os._exit(1)


def plan_fit(task: Mapping[str, Any]) -> dict[str, float]:
    """Return the estimated seconds of each stage of a fit."""
    from primaps.model import PriMaPsEM
    from primaps.planning import plan

    classes = PLANNED_CLASSES if task["classes"] == "auto" else task["classes"]
    model = PriMaPsEM(classes, device=task["device"], **task["options"])
    seconds = dict(plan(model, _image_files(task), task["cache"]).seconds)
    return {"features": seconds.pop("features") + seconds.pop("masks", 0), **seconds}


def run_fit(task: Mapping[str, Any], send: Callable[..., None]) -> None:
    """Select the number of classes if it is ``auto``, and fit."""
    from primaps.classes.class_count import choice_of
    from primaps.fitting import class_evidence, fit_folder
    from primaps.model import PriMaPsEM

    def progress(stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        send(progress=[stage, done, total, dict(metrics)])

    files, options = _image_files(task), {**task["options"], "device": task["device"]}
    shared: dict[str, Any] = {
        "cache": task["cache"], "progress": progress, "log": lambda text: send(log=text),
    }  # fmt: skip
    evidence, classes = [], task["classes"]
    if classes == "auto":
        evidence = class_evidence("auto", options, files, **shared)
        classes = choice_of(evidence).middle
    model = PriMaPsEM(classes, **options)
    fit_folder(model, files, Path(task["out"]), evidence=evidence, **shared)


def _image_files(task: Mapping[str, Any]) -> list[Any]:
    from primaps.data import ImageFile

    return [ImageFile(Path(path), key) for path, key in task["images"]]


if __name__ == "__main__":
    main()
