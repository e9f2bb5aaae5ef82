"""Progress of long computations, with the remaining time, on a terminal or in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ProgressCallback = Callable[[str, int, int, Mapping[str, float]], None]
"""Function of the stage, the units of work done, their total number, and metrics to show."""


def silent(stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
    """A :data:`ProgressCallback` that shows nothing."""


class ProgressDisplay:
    """Context manager that returns a :data:`ProgressCallback` and shows what it receives.

    On a terminal, each stage is a progress bar. In a log, each stage has at most ten lines.

    Examples:
        >>> with ProgressDisplay(Console(force_terminal=False, width=80)) as progress:
        ...     progress("features", 1, 2, {})
        ...     progress("features", 2, 2, {"loss": 0.5})
        features 1/2, 0 s left
        features 2/2, loss 0.5
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.stage, self.began, self.tenths = "", 0.0, 0
        self.bars = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[metrics]}"),
            console=self.console,
        )

    def __enter__(self) -> ProgressCallback:
        if self.console.is_terminal:
            self.bars.start()
        return self._bar if self.console.is_terminal else self._line

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self.bars.stop()

    def _bar(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        if stage != self.stage:
            self.stage, self.task = stage, self.bars.add_task(stage, total=total, metrics="")
        self.bars.update(self.task, completed=done, metrics=_text(metrics))

    def _line(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.began, self.tenths = stage, now, 0
        if not total or (10 * done) // total == self.tenths:
            return
        self.tenths = (10 * done) // total
        left = (now - self.began) / done * (total - done)
        parts = [f"{stage} {done}/{total}"]
        parts += [f"{left:.0f} s left"] if done < total else []
        parts += [_text(metrics)] if metrics else []
        self.console.print(", ".join(parts), highlight=False, soft_wrap=True)


def _text(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())
