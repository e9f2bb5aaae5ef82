"""What training leaves behind: a history, and a state to go on from where a run was killed."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from primaps.utils.distributed import from_first, gather, rank, total
from primaps.utils.errors import InputError
from primaps.utils.files import atomic_path
from primaps.utils.inputs import parse_json, read_tensors
from primaps.utils.progress import ProgressCallback, silent

logger = logging.getLogger("primaps")
HistoryLine = dict[str, Any]
"""Stage, epoch and step, with the figures of the epoch."""
Summary = Callable[[Mapping[str, Tensor], int], HistoryLine]
"""Sums over the steps of an epoch, and their number, to the figures of its line in the history."""
SAVE_SECONDS = 2.0
"""Between two states on disk; what was done since is done again after a kill."""


def mean_of_steps(sums: Mapping[str, Tensor], steps: int) -> HistoryLine:
    """The mean of each figure over an epoch."""
    return {name: float(value) / steps for name, value in sums.items()}


@dataclass(frozen=True)
class StateRecord:
    """What a state says beside its tensors: steps done, those of this epoch, and the history."""

    step: int
    steps: int
    epochs: list[dict[str, Any]]


class Recorder:
    """What training leaves behind: figures per epoch, and the state to go on from.

    Args:
        per_epoch: steps of an epoch.
        progress: called after each unit of work.
        folder: of the state files; None keeps none.
        fingerprint: of everything that decides the result; other states are left alone.
        on_epoch: called with each line of the history when its epoch ends.

    Attributes:
        epochs: a line per stage and epoch.
    """

    def __init__(
        self,
        per_epoch: int = 1,
        progress: ProgressCallback = silent,
        folder: str | Path | None = None,
        fingerprint: str = "",
        on_epoch: Callable[[HistoryLine], None] | None = None,
    ) -> None:
        self.per_epoch, self.progress, self.on_epoch = per_epoch, progress, on_epoch
        self.folder = None if folder is None else Path(folder)
        self.fingerprint = fingerprint
        self.epochs: list[HistoryLine] = []
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
            # Sorted, since processes must sum the same figure, and states are read in any order.
            sums = {name: total(self._sums[name]).cpu() for name in sorted(self._sums)}
            line = {"stage": stage, "epoch": -(-step // self.per_epoch), "step": step}
            line |= summary(sums, self._steps)
            self._report_dead(line)
            self.epochs.append(line)
            self._sums, self._steps = {}, 0
            if self.on_epoch and rank() == 0:
                self.on_epoch(line)
        last = self.epochs[-1] if self.epochs and self.epochs[-1]["stage"] == stage else {}
        shown = {k: v for k, v in last.items() if isinstance(v, float)}
        self.progress(stage, step, steps, shown)

    def _report_dead(self, line: HistoryLine) -> None:
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
        """Write the state, whole or not at all, every few seconds and after the last step.

        The first process decides when, and writes for all; so the state is of one step, whatever
        moment a kill comes at.
        """
        if self.folder is None:
            return
        due = step == steps or time.monotonic() - self._saved >= SAVE_SECONDS
        if not from_first(due):
            return
        sums = gather({name: value.cpu() for name, value in self._sums.items()})
        self._saved = time.monotonic()
        if rank() > 0:
            return
        tensors = {f"module.{name}": value for name, value in modules.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
        for process, own in enumerate(sums):
            tensors |= {f"sum.{process}.{name}": value for name, value in own.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        about = {"step": step, "steps": self._steps, "epochs": self.epochs}
        note = {"fingerprint": self.fingerprint, "about": json.dumps(about)}
        with atomic_path(self._path(stage)) as temporary:
            # Not save_file, which has a temporary file of its own that a kill would leave.
            temporary.write_bytes(save(tensors, {**note, "sha256": _digest(tensors, note)}))

    def restore(self, stage: str, modules: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the state of a stage, if there is one of the same run; returns the steps done.

        The first process reads it, and gives it to the others.
        """
        if self.folder is None:
            return 0
        saved = from_first(self._read(stage) if rank() == 0 else None)
        if saved is None:
            return 0
        about, tensors = saved
        shapes = {f"module.{name}": value.shape for name, value in modules.state_dict().items()}
        if shapes != {k: v.shape for k, v in tensors.items() if k.startswith("module.")}:
            logger.warning("%s is of another model: %s starts anew", self._path(stage), stage)
            return 0
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
        device, own = next(modules.parameters()).device, f"{rank()}."
        self._sums = {
            name.removeprefix(own): value.to(device)
            for name, value in parts["sum"].items()
            if name.startswith(own)
        }
        self._steps, self.epochs = about.steps, about.epochs
        return about.step

    def _read(self, stage: str) -> tuple[StateRecord, dict[str, Tensor]] | None:
        """What is kept of a stage and its tensors; None if there is nothing of this run."""
        path = self._path(stage)
        if not path.is_file():
            return None
        try:
            tensors, note = read_tensors(path)
            if note.pop("sha256", "") != _digest(tensors, note):
                raise InputError(f"{path} does not have its checksum")
            if note.get("fingerprint") != self.fingerprint:
                return None  # of other images or options
            about = parse_json(note.get("about", ""), StateRecord, str(path))
        except (InputError, OSError) as error:
            logger.warning("a state is damaged (%s): %s starts anew", error, stage)
            return None
        return about, tensors

    def _path(self, stage: str) -> Path:
        return (self.folder or Path()) / f"training-{stage}.safetensors"


def clear_states(folder: str | Path) -> None:
    """Remove the states of training: the model that they led to is saved."""
    if rank() == 0:
        for path in Path(folder).glob("training-*.safetensors"):
            path.unlink(missing_ok=True)


def _digest(tensors: Mapping[str, Tensor], note: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(note, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
