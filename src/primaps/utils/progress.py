"""Progress with an estimate of the time left, on a terminal or in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ProgressCallback = Callable[[str, int, int, Mapping[str, float]], None]
"""Called after each unit of work with the stage, units done, units in all, and figures to show."""


def silent(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    """A :data:`ProgressCallback` that shows nothing."""


class ProgressDisplay:
    """Shows the stages of a long run; a context that gives a :data:`ProgressCallback` to pass on.

    On a terminal each stage is a bar. Elsewhere a line is written at every tenth of a stage, so
    that logs stay short.

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
            TextColumn("{task.fields[figures]}"),
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

    def _bar(self, stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        if stage != self.stage:
            self.stage, self.task = stage, self.bars.add_task(stage, total=total, figures="")
        self.bars.update(self.task, completed=done, figures=_text(figures))

    def _line(self, stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.began, self.tenths = stage, now, 0
        if (
            not total or (10 * done) // total == self.tenths
        ):  # work may come in larger units than tenths
            return
        self.tenths = (10 * done) // total
        left = (now - self.began) / done * (total - done)
        parts = [f"{stage} {done}/{total}"]
        parts += [f"{left:.0f} s left"] if done < total else []
        parts += [_text(figures)] if figures else []
        self.console.print(", ".join(parts), highlight=False, soft_wrap=True)


def _text(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
