"""The process that plans and fits: ``python -m primaps.studio.worker``, one JSON line in, many out.

It is a process of its own so that it can be stopped at any moment, and so that its memory goes with
it. It ends with the server that started it, however that ended: its standard input closes then.

    in:  {"task": "plan" | "fit", "images": [[path, key], ...], "classes": 12 | "auto", ...}
    out: {"progress": [stage, done, total, figures]}, {"problem": sentence}, {"done": ...},
         {"error": sentence}
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FEW = 12
"""Classes that a plan counts with where the fit is to choose their number."""


def main() -> None:
    """Do what the line on standard input says."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to standard error
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_server, daemon=True).start()

    def tell(**line: Any) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    try:
        seconds = plan(task) if task["task"] == "plan" else None
        if seconds is None:
            fit(task, tell)
        tell(done=seconds)
    except Exception as error:
        from primaps.utils.errors import PrimapsError

        known = isinstance(error, PrimapsError)
        tell(error=str(error) if known else f"{type(error).__name__}: {error}")
        raise


def _end_with_the_server() -> None:
    while os.read(0, 1 << 10):  # not through a buffer, whose lock would outlive the main thread
        continue
    os._exit(1)


def plan(task: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each stage of the fit."""
    from primaps.model import PriMaPsEM
    from primaps.planning import plan as estimate

    classes = FEW if task["classes"] == "auto" else task["classes"]
    model = PriMaPsEM(classes, device=task["device"], **task["options"])
    found = estimate(model, _files(task), task["cache"])
    return {"features": found.seconds.pop("features") + found.seconds.pop("masks", 0)} | (
        found.seconds
    )


def fit(task: Mapping[str, Any], tell: Any) -> None:
    """Choose the number of classes if it is open, and fit."""
    from primaps.classes.choose import choice_of
    from primaps.fitting import class_evidence, fit_folder
    from primaps.model import PriMaPsEM

    def progress(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        tell(progress=[stage, done, total, dict(figures)])

    def log(sentence: str) -> None:
        tell(log=sentence)

    files, options = _files(task), {**task["options"], "device": task["device"]}
    told: dict[str, Any] = {"cache": task["cache"], "progress": progress, "log": log}
    evidence, classes = [], task["classes"]
    if classes == "auto":
        evidence = class_evidence("auto", options, files, **told)
        classes = choice_of(evidence).middle
    model = PriMaPsEM(classes, **options)
    fit_folder(model, files, Path(task["out"]), evidence=evidence, **told)


def _files(task: Mapping[str, Any]) -> list[Any]:
    from primaps.data import ImageFile

    return [ImageFile(Path(path), key) for path, key in task["images"]]


if __name__ == "__main__":
    main()
