"""Steps of Adam with a history of metrics, and checkpoints from which a stopped fit resumes."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from primaps.results import OutputError
from primaps.utils.distributed import from_first, gather, rank, total
from primaps.utils.errors import InputError
from primaps.utils.files import atomic_path
from primaps.utils.inputs import parse_json, read_tensors
from primaps.utils.progress import ProgressCallback, silent

logger = logging.getLogger("primaps")
HistoryLine = dict[str, Any]
"""Stage, epoch and step, and the metrics of the epoch."""
Summary = Callable[[Mapping[str, Tensor], int], HistoryLine]
"""Maps sums over the steps of an epoch, and the number of steps, to the metrics of the epoch."""
SAVE_SECONDS = 2.0
"""Interval between two checkpoints in seconds; a resumed fit repeats the steps since the last."""


def optimize(
    stage: str,
    modules: nn.ModuleDict,
    step: Callable[[int], Mapping[str, Tensor]],
    steps: int,
    learning_rate: float,
    recorder: Recorder,
    summary: Summary | None = None,
    after: Callable[[int], None] | None = None,
) -> None:
    """Run ``steps`` steps of Adam on ``modules["trained"]``, in place.

    Args:
        stage: name of the stage in progress, history and checkpoint.
        modules: everything that changes, including ``trained``.
        step: computes gradients from the number of the step (from 1) and returns metrics; both are
            summed over processes.
        summary: from sums of the metrics to a line of the history; None takes their means.
        after: called after each step of Adam, to update what follows the trained module.
    """
    trained = [p for p in modules["trained"].parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=learning_rate)
    done = recorder.restore(stage, modules, optimizer)
    for number in range(done + 1, steps + 1):
        optimizer.zero_grad()
        metrics = step(number)
        for parameter in trained:
            if parameter.grad is None:  # this process has no image of the batch
                parameter.grad = torch.zeros_like(parameter)
            total(parameter.grad)
        optimizer.step()
        if after:
            after(number)
        recorder.record(stage, number, steps, metrics, summary or mean_of_steps)
        recorder.save(stage, number, steps, modules, optimizer)


def mean_of_steps(sums: Mapping[str, Tensor], steps: int) -> HistoryLine:
    """Average each metric over the steps of an epoch."""
    return {name: float(value) / steps for name, value in sums.items()}


@dataclass(frozen=True)
class CheckpointRecord:
    """The JSON part of a checkpoint: steps done, steps of this epoch, and the history."""

    step: int
    steps: int
    epochs: list[dict[str, Any]]


class Recorder:
    """Records metrics per epoch, and writes and restores checkpoints.

    Args:
        per_epoch: number of steps of an epoch.
        progress: called after each step.
        folder: folder of the checkpoints; None writes none.
        fingerprint: digest of everything that determines the result; a checkpoint with another
            fingerprint is ignored.
        on_epoch: called with each line of the history when its epoch ends.

    Attributes:
        epochs: one line per stage and epoch.
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
        self, stage: str, step: int, steps: int, metrics: Mapping[str, Tensor], summary: Summary
    ) -> None:
        """Add the metrics of a step; the last step of an epoch adds a line to the history.

        Metrics stay on their device until then, to avoid waiting for an accelerator.
        """
        for name, value in metrics.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1
        if step % self.per_epoch == 0 or step == steps:
            # Sorted, because all processes must sum the same metric, and a restored checkpoint
            # can list them in another order.
            sums = {name: total(self._sums[name]).cpu() for name in sorted(self._sums)}
            line = {"stage": stage, "epoch": -(-step // self.per_epoch), "step": step}
            line |= summary(sums, self._steps)
            self._warn_empty(line)
            self.epochs.append(line)
            self._sums, self._steps = {}, 0
            if self.on_epoch and rank() == 0:
                self.on_epoch(line)
        last = self.epochs[-1] if self.epochs and self.epochs[-1]["stage"] == stage else {}
        self.progress(stage, step, steps, {k: v for k, v in last.items() if isinstance(v, float)})

    def _warn_empty(self, line: HistoryLine) -> None:
        before = self.epochs[-1].get("empty", []) if self.epochs else []
        if empty := sorted(set(line.get("empty", [])) - set(before)):
            classes = ", ".join(map(str, empty))
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
        """Write a checkpoint atomically, every few seconds and after the last step.

        The first process decides when to write, and writes for all processes. A checkpoint
        therefore contains the state after a single step.
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
        for process, process_sums in enumerate(sums):
            tensors |= {f"sum.{process}.{name}": value for name, value in process_sums.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        record = {"step": step, "steps": self._steps, "epochs": self.epochs}
        note = {"fingerprint": self.fingerprint, "about": json.dumps(record)}
        with atomic_path(self._path(stage)) as temporary:
            # save_file would write another temporary file, which a killed process leaves behind.
            temporary.write_bytes(save(tensors, {**note, "sha256": _digest(tensors, note)}))

    def restore(self, stage: str, modules: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the checkpoint of a stage, if one with this fingerprint exists.

        The first process reads it and sends it to the others.

        Returns:
            The number of steps done, 0 without a checkpoint.
        """
        if self.folder is None:
            return 0
        saved = from_first(self._read(stage) if rank() == 0 else None)
        if saved is None:
            return 0
        record, tensors = saved
        shapes = {f"module.{name}": value.shape for name, value in modules.state_dict().items()}
        if shapes != {k: v.shape for k, v in tensors.items() if k.startswith("module.")}:
            logger.warning("%s belongs to another model: %s starts over", self._path(stage), stage)
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
        device, prefix = next(modules.parameters()).device, f"{rank()}."
        self._sums = {
            name.removeprefix(prefix): value.to(device)
            for name, value in parts["sum"].items()
            if name.startswith(prefix)
        }
        self._steps, self.epochs = record.steps, record.epochs
        return record.step

    def _read(self, stage: str) -> tuple[CheckpointRecord, dict[str, Tensor]] | None:
        """Read the checkpoint of a stage; None if this fit has none."""
        path = self._path(stage)
        if not path.is_file():
            return None
        try:
            tensors, note = read_tensors(path)
            if "fingerprint" not in note:
                raise OutputError(
                    f"{path} was not written by primaps; move it away, or choose another folder"
                )
            if note.pop("sha256", "") != _digest(tensors, note):
                raise InputError(f"{path} has a wrong checksum")
            if note.get("fingerprint") != self.fingerprint:
                return None  # other images or options
            record = parse_json(note.get("about", ""), CheckpointRecord, str(path))
        except (InputError, OSError) as error:
            logger.warning("the checkpoint is damaged (%s): %s starts over", error, stage)
            return None
        return record, tensors

    def _path(self, stage: str) -> Path:
        return (self.folder or Path()) / f"training-{stage}.safetensors"


def clear_checkpoints(folder: str | Path) -> None:
    """Remove the checkpoints of a fit whose model is saved."""
    if rank() == 0:
        for path in Path(folder).glob("training-*.safetensors"):
            with suppress(InputError, OSError):  # files of the user stay
                if "fingerprint" in read_tensors(path)[1]:
                    path.unlink()


def _digest(tensors: Mapping[str, Tensor], note: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(note, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
