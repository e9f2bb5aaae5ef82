"""One loop for everything that is fitted, which goes on where a killed run stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from primaps.distributed import rank, total
from primaps.files import atomic_path
from primaps.progress import Report, silent

logger = logging.getLogger("primaps")
Figures = dict[str, Any]
Summary = Callable[[Mapping[str, Tensor], int], Figures]
"""Sums over the steps of an epoch, and their number, to the figures of its line in the history."""
SAVE_EVERY = 2.0
"""Seconds between two states on disk; what was done since is done again after a kill."""


def mean_figures(sums: Mapping[str, Tensor], steps: int) -> Figures:
    """The mean of each figure over an epoch."""
    return {name: float(value) / steps for name, value in sums.items()}


def optimise(
    stage: str,
    modules: nn.ModuleDict,
    step: Callable[[int], Mapping[str, Tensor]],
    steps: int,
    learning_rate: float,
    recorder: Recorder,
    summary: Summary = mean_figures,
    after: Callable[[int], None] | None = None,
) -> None:
    """Run ``steps`` steps of Adam on ``modules["trained"]``, in place.

    Args:
        stage: name in progress, history and state file.
        modules: everything that changes; ``trained`` among them.
        step: from the number of the step (from 1) leaves gradients and returns figures; both are
            summed over processes.
        after: called after each step of Adam, for what follows the trained module.
    """
    trained = [p for p in modules["trained"].parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=learning_rate)
    done = recorder.restore(stage, modules, optimizer)
    for number in range(done + 1, steps + 1):
        optimizer.zero_grad()
        figures = step(number)
        for parameter in trained:
            if parameter.grad is None:  # no image of the batch is here
                parameter.grad = torch.zeros_like(parameter)
            total(parameter.grad)
        optimizer.step()
        if after:
            after(number)
        recorder.record(stage, number, steps, figures, summary)
        recorder.save(stage, number, steps, modules, optimizer)


class Recorder:
    """What training leaves behind: figures per epoch, and the state to go on from.

    Args:
        per_epoch: steps of an epoch.
        report: told about progress.
        folder: of the state files; None keeps none.
        fingerprint: of everything that decides the result; other states are left alone.
        log: called with each line of the history when its epoch ends.

    Attributes:
        epochs: a line per stage and epoch.
    """

    def __init__(
        self,
        per_epoch: int = 1,
        report: Report = silent,
        folder: str | Path | None = None,
        fingerprint: str = "",
        log: Callable[[Figures], None] | None = None,
    ) -> None:
        self.per_epoch, self.report, self.log = per_epoch, report, log
        self.folder = None if folder is None else Path(folder)
        self.fingerprint = fingerprint
        self.epochs: list[Figures] = []
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._saved = time.monotonic()

    def record(
        self, stage: str, step: int, steps: int, figures: Mapping[str, Tensor], summary: Summary
    ) -> None:
        """Add the figures of a step; at the end of an epoch they become a line of the history.

        Figures stay on their device until then, so that an accelerator is not waited for.
        """
        for name, value in figures.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1
        if step % self.per_epoch == 0 or step == steps:
            sums = {name: total(value).cpu() for name, value in self._sums.items()}
            line = {"stage": stage, "epoch": -(-step // self.per_epoch), "step": step}
            line |= summary(sums, self._steps)
            self._report_dead(line)
            self.epochs.append(line)
            self._sums, self._steps = {}, 0
            if self.log and rank() == 0:
                self.log(line)
        last = self.epochs[-1] if self.epochs and self.epochs[-1]["stage"] == stage else {}
        shown = {k: v for k, v in last.items() if isinstance(v, float)}
        self.report(stage, step, steps, shown)

    def _report_dead(self, line: Figures) -> None:
        before = self.epochs[-1].get("empty", []) if self.epochs else []
        if dead := sorted(set(line.get("empty", [])) - set(before)):
            classes = ", ".join(map(str, dead))
            logger.warning(
                "%s, epoch %d: no pixel has class %s", line["stage"], line["epoch"], classes
            )

    def save(
        self,
        stage: str,
        step: int,
        steps: int,
        modules: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Write the state, whole or not at all, every few seconds and after the last step."""
        if self.folder is None or (step < steps and time.monotonic() - self._saved < SAVE_EVERY):
            return
        tensors = {f"module.{name}": value for name, value in modules.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
        tensors |= {f"sum.{name}": value for name, value in self._sums.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        about = {"step": step, "steps": self._steps, "epochs": self.epochs}
        note = {"fingerprint": self.fingerprint, "about": json.dumps(about)}
        with atomic_path(self._path(stage)) as temporary:
            save_file(tensors, temporary, {**note, "sha256": _digest(tensors, note)})
        self._saved = time.monotonic()

    def restore(self, stage: str, modules: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the state of a stage, if there is one of the same run; returns the steps done."""
        path = self._path(stage)
        if self.folder is None or not path.is_file():
            return 0
        try:
            with safe_open(path, "pt") as file:
                note = dict(file.metadata())
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if note.pop("sha256") != _digest(tensors, note):
                raise ValueError("its content does not have its checksum")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s): %s starts anew", path, error, stage)
            return 0
        if note["fingerprint"] != self.fingerprint:
            return 0  # of other images or options
        about = json.loads(note["about"])
        parts: dict[str, dict[str, Tensor]] = {"module": {}, "adam": {}, "sum": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = value
        modules.load_state_dict(parts["module"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["adam"].items():
            number, _, rest = name.partition(".")
            state.setdefault(int(number), {})[rest] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._sums, self._steps, self.epochs = parts["sum"], about["steps"], about["epochs"]
        return int(about["step"])

    def clear(self) -> None:
        """Remove the state files: the run is complete."""
        if self.folder is not None:
            for path in self.folder.glob("training-*.safetensors"):
                path.unlink()

    def _path(self, stage: str) -> Path:
        # Each process has its own, because the sums of figures are those of its images.
        part = f".{rank()}" if rank() else ""
        return (self.folder or Path()) / f"training-{stage}{part}.safetensors"


def _digest(tensors: Mapping[str, Tensor], note: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(note, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()
