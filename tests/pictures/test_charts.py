"""Numbers in charts, and labels that must not overlap."""

import numpy as np
import pytest
import torch
from PIL import Image

from primaps.data import load_dataset
from primaps.pictures.charts import class_colors, confusion_chart, iou_chart, save
from primaps.pictures.overlays import examples
from primaps.utils.colors import palette
from tests.trees import cityscapes_tree, labeled_tree

NAMES = [f"a rather long class name {i}" for i in range(27)]


def overlaps(figure):
    """Pairs of tick labels, axis labels and titles whose boxes overlap."""
    figure.canvas.draw()
    texts = []
    for axes in figure.axes:
        texts += [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title]
        texts += [axes.xaxis.label, axes.yaxis.label]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    inside = figure.bbox.padded(1)
    assert all(inside.contains(*box.min) and inside.contains(*box.max) for box in boxes)
    return [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def agg(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    return figure


@pytest.mark.parametrize("classes", [2, 11, 27])
def test_labels_of_a_confusion_matrix_do_not_overlap(classes):
    counts = torch.randint(0, 1000, (classes, classes + 1))
    assignment = [*range(classes), None]
    figure = agg(confusion_chart(counts, NAMES[:classes], assignment, "accuracy 71.5 %"))
    assert overlaps(figure) == []
    columns = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert columns == [*NAMES[:classes], "none"]


def test_confusion_is_in_percent_of_each_class():
    counts = torch.tensor([[1, 3], [0, 0]])
    figure = confusion_chart(counts, ["a", "b"], [1, 0])
    assert figure.axes[0].images[0].get_array().tolist() == [[75, 25], [0, 0]]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b (no pixel)"]


@pytest.mark.parametrize("methods", [1, 3])
def test_labels_of_iou_bars_do_not_overlap(methods):
    iou = {name: i / 27 for i, name in enumerate(NAMES)} | {NAMES[3]: None}
    names = [f"a method with a long name {i}" for i in range(methods)]
    figure = agg(iou_chart(dict.fromkeys(names, iou), "Cityscapes"))
    assert overlaps(figure) == []
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 26 * methods + 1
    assert texts.count("does not occur") == 1  # one text for all methods
    legend = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= legend.x0
    assert legend.x1 <= figure.bbox.x1
    written = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(written) for b in written[:i])


def test_charts_are_written_atomically(tmp_path):
    save(iou_chart({"EM": {"a": 0.5}}), tmp_path / "new" / "iou.png")
    assert Image.open(tmp_path / "new" / "iou.png").size[0] == pytest.approx(1080, abs=2)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["iou.png"]


def test_a_sheet_of_examples_has_the_colors_of_the_classes_that_occur():
    image = Image.new("RGB", (40, 40), "black")
    label = np.zeros((40, 40), int)
    label[:, 20:] = 255
    sheet = examples([(image, [label, label])], ("image", "label", "found"), ["x", "y"], height=40)
    found = {tuple(c) for c in np.asarray(sheet).reshape(-1, 3).tolist()}
    assert tuple(palette(1)[0].tolist()) in found  # the legend of x
    assert tuple(palette(2)[1].tolist()) not in found  # y occurs nowhere
    assert sheet.width >= 3 * 40


def test_charts_use_the_colors_of_the_data_set(tmp_path):
    city = load_dataset("cityscapes", cityscapes_tree(tmp_path / "c"), "val")
    assert class_colors(city)[19].tolist() == [0, 0, 142]
    plain = load_dataset("folder", labeled_tree(tmp_path / "f"), "val")
    assert (class_colors(plain) == palette(3)).all()
