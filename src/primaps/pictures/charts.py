"""Charts of scores: confusion matrix and IoU per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int
from torch import Tensor

from primaps.evaluation.metrics import by_class
from primaps.results import GENERATOR, own_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe and Ito's colors (2008), which can be told apart with all kinds of color blindness.
SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


def confusion_chart(
    confusion: Int[Tensor, "classes clusters"],
    classes: Sequence[str],
    assignment: list[int | None],
    title: str = "",
) -> Figure:
    """Where the pixels of each class go, in % of the class; the diagonal is right.

    Args:
        confusion: counts, of :func:`primaps.evaluation.metrics.confusion_matrix`.
        assignment: class of each cluster. Clusters without one share the column "none".

    Examples:
        >>> import torch
        >>> figure = confusion_chart(torch.tensor([[3, 1], [0, 4]]), ["a", "b"], [0, 1])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['75', '25', '0', '100']
    """
    from matplotlib.figure import Figure

    counts = by_class(confusion, assignment).cpu().numpy()
    columns = [*classes, "none"] if None in assignment else list(classes)
    counts = counts[:, : len(columns)]
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.2, 2.2 + 0.36 * len(classes))
    figure = Figure(figsize=(side + 1.2, side), layout=_layout())
    axes = figure.add_subplot()
    drawn = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    names = [
        name if row.any() else f"{name} (no pixel)"
        for name, row in zip(classes, counts, strict=True)
    ]
    axes.set_xticks(range(len(columns)), [_plain(name) for name in columns], rotation=90)
    axes.set_yticks(range(len(classes)), [_plain(name) for name in names])
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.set_title(title)
    few = len(classes) <= 5
    for (row, column), value in np.ndenumerate(share):
        if (few or value >= 0.5) and counts[row].sum():
            shade = "white" if value > 55 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=shade, size=8)
    figure.colorbar(drawn, label="% of the pixels of the class", shrink=0.7)
    return figure


def iou_chart(
    series: Mapping[str, Mapping[str, float | None]],
    title: str = "",
) -> Figure:
    """IoU per class as bars, one group per class with one bar per method, and the means.

    Args:
        series: method to IoU by class, in [0, 1]; None for a class that does not occur. Classes
            are those of the first method.

    Examples:
        >>> figure = iou_chart({"EM": {"road": 0.9, "car": 0.45, "train": None}})
        >>> [float(bar.get_width()) for bar in figure.axes[0].patches]
        [90.0, 45.0, 0.0]
    """
    from matplotlib.figure import Figure

    classes = list(next(iter(series.values())))
    height = 1.4 + len(classes) * (0.16 + 0.14 * len(series))
    figure = Figure(figsize=(7.2, height), layout=_layout())
    axes = figure.add_subplot()
    thick = 0.8 / len(series)
    for i, (method, values) in enumerate(series.items()):
        places = np.arange(len(classes)) + (i - (len(series) - 1) / 2) * thick
        known = [values[name] for name in classes]
        lengths = [100 * (value or 0) for value in known]
        mean = np.mean([100 * value for value in known if value is not None])
        shade = SERIES[i % len(SERIES)]
        axes.barh(places, lengths, thick, color=shade, label=f"{_plain(method)}: mean {mean:.1f}")
        axes.axvline(float(mean), color=shade, linestyle="--", linewidth=1, zorder=0)
        for at, (place, value, length) in enumerate(zip(places, known, lengths, strict=True)):
            text = "does not occur" if value is None else f"{length:.1f}"
            if value is None and all(other[classes[at]] is None for other in series.values()):
                if i:  # said once
                    continue
                place = at
            size = 7 if len(series) > 1 else 8
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # on the dashed lines
            axes.text(length + 0.8, place, text, va="center", size=size, bbox=box)
    axes.set_yticks(range(len(classes)), [_plain(name) for name in classes])
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlim(0, 105)  # leaves room for the figure beside a full bar
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("IoU, %")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    longest = max(len(method) for method in series) + len(": mean 99.9")
    columns = max(1, min(3, len(series), 76 // (longest + 4)))  # of letters that fit the width
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    return figure


def sweep_chart(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    x_label: str,
    y_label: str,
) -> Figure:
    """Curves over an option, a panel for each data set.

    Args:
        panels: title to curves by name, each of (x, mean, standard deviation) in order.

    Examples:
        >>> figure = sweep_chart({"a": {"EM": [(0.2, 10.0, 1.0), (0.4, 12.0, 0.5)]}}, "psi", "IoU")
        >>> [line.get_label() for line in figure.axes[0].get_lines()][0]
        'EM'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 3.6 * len(panels), 3.9), layout=_layout())
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    for axes, (title, curves) in zip(every, panels.items(), strict=True):
        for name, points in curves.items():
            x, mean, spread = zip(*points, strict=True)
            i = names.index(name)
            shade, style = SERIES[i % len(SERIES)], "-" if i == 0 else "--"
            axes.plot(x, mean, marker="osDv^"[i % 5], color=shade, linestyle=style, label=name)
            if any(spread):
                axes.errorbar(x, mean, spread, fmt="none", capsize=3, color=shade)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.spines[["top", "right"]].set_visible(False)
    every[0].set_ylabel(y_label)
    lines = {line.get_label(): line for axes in every for line in axes.get_lines()}
    handles = [lines[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def _plain(name: str) -> str:
    """A name that matplotlib takes for no formula."""
    return name.replace("$", r"\$")


def _layout() -> ConstrainedLayoutEngine:
    """Room for all labels, and a margin."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure, in the format of the suffix of ``path``, atomically."""
    png = Path(path).suffix.lower() == ".png"
    with own_file(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata={"Software" if png else "Creator": GENERATOR})
