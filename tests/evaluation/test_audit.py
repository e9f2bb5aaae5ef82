"""The audit: coverage of its interval, and interruption."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from primaps.evaluation.audit import (
    Audit,
    Question,
    asking_order,
    estimate,
    picture,
    prepare,
    strips,
    wilson,
)
from primaps.model import PriMaPsEM
from tests.conftest import painted


@pytest.mark.parametrize("accuracies", [[0.5] * 3, [0.95, 0.8, 0.1], [0.9] * 8 + [0.0] * 12])
@pytest.mark.parametrize("answered", [80, 50])
def test_the_interval_has_its_coverage(accuracies, answered):
    """Also for incomplete audits, and for populations unlike the labeled data sets."""
    random = np.random.default_rng(0)
    classes = random.integers(0, len(accuracies), 4000)
    sure = random.random(4000)
    right = random.random(4000) < np.array(accuracies)[classes] * (0.7 + 0.6 * (sure - 0.5))
    truth, held, widths = right.mean(), 0, []
    order = np.lexsort((sure, classes))
    right, classes = torch.from_numpy(right[order]), torch.from_numpy(classes[order])
    for seed in range(400):
        rows = strips(classes, torch.arange(4000.0), torch.ones(4000), 80, seed)[:, 0]
        answers = [bool(one) for one in right[rows]]
        for strip in asking_order(80, seed)[answered:]:
            answers[strip] = None
        found = estimate(answers, classes[rows].tolist())
        held += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert 0.92 <= held / 400 <= 0.99
    assert np.mean(widths) / 2 < 1.05 * 1.96 * np.sqrt(truth * (1 - truth) / answered)


def test_every_strip_is_sampled_once_and_has_its_weight():
    classes = torch.tensor([1] * 500 + [0] * 500)
    weights = torch.cat([torch.full((500,), 3.0), torch.ones(500)])
    rows = strips(classes, torch.rand(1000), weights, 40)
    assert rows.shape == (40, 5)
    assert (classes[rows[:, 0]] == 1).sum() == 30
    chosen = classes[rows]
    assert (chosen[:10] == 0).all()
    assert (chosen[10:] == 1).all()
    assert torch.equal(rows, strips(classes, torch.rand(1000), weights, 40)) is False


def test_confidence_orders_the_strips_of_a_class():
    confidence = torch.rand(5000, generator=torch.Generator().manual_seed(0))
    rows = strips(torch.zeros(5000, dtype=torch.long), confidence, torch.ones(5000), 50)
    values = confidence[rows[:, 0]]
    assert (values.diff() > 0).all()


def test_wilson_against_its_equation():
    """At its ends, the test of the proportion just rejects."""
    for share, count in ((0.5, 80), (0.9, 80), (0.0, 50), (1.0, 50)):
        for end in wilson(share, count):
            gap = abs(share - end)
            assert gap == pytest.approx(1.96 * np.sqrt(end * (1 - end) / count), abs=1e-9)


def test_no_wrong_answer_still_has_an_interval():
    found = estimate([True] * 80)
    assert found.accuracy == found.high == 1
    assert 0.9 < found.low < 0.97
    with pytest.raises(ValueError, match="at least two answers, got 1"):
        estimate([True, None, None])


@pytest.fixture
def model(colors):
    images = [painted(seed)[0] for seed in range(8)]
    return PriMaPsEM(
        3, backbone=colors, patch_size=8, size=64, recipe="orthogonal", min_init_steps=20,
        mask_crf=False, device="cpu",
    ).fit(images, cache=None)  # fmt: skip


def test_an_audit_resumes(model, painted_folder, tmp_path):
    images = painted_folder / "images"
    found = prepare(model, images, tmp_path / "audit", answers=10, crf=False)
    assert found.estimate() is None
    first = found.next()
    assert isinstance(first, Question)
    found.answer(first, True)
    found.answer(found.next(), None)  # cannot tell: another pixel of the strip
    again = Audit.load(tmp_path / "audit")
    assert again.next() == found.next()
    assert again.next().spare == 1
    while (question := again.next()) is not None:
        image = Image.open(question.path)
        label = model.predict(image, crf=False)
        assert int(label[question.y, question.x]) == question.value
        assert question.name == f"class {question.value}"
        again.answer(question, True)
    assert again.progress == (10, 10)
    assert again.estimate().accuracy == 1
    assert Audit.load(tmp_path / "audit").estimate() == again.estimate()
    content = json.loads((tmp_path / "audit" / "audit.json").read_text())
    content["questions"].insert(0, content["questions"].pop())
    strips_swapped = json.dumps(content)
    (tmp_path / "audit" / "audit.json").write_text("{")
    with pytest.raises(ValueError, match=r"audit.json is damaged"):
        Audit.load(tmp_path / "audit")
    (tmp_path / "audit" / "audit.json").write_text(strips_swapped)
    with pytest.raises(ValueError, match=r"audit.json.* strip 0 are not in order"):
        Audit.load(tmp_path / "audit")
    with pytest.raises(ValueError, match=r"audit.json already exists"):
        prepare(model, images, tmp_path / "audit", answers=10, crf=False)


def test_hidden_classes_are_not_asked_about(model, painted_folder, tmp_path):
    from primaps.classes.legend import legend

    model.legend_ = legend(model.class_summary_.tree, [{"hide": "0"}, {"rename": "1", "to": "car"}])
    found = prepare(model, painted_folder / "images", tmp_path, answers=30, crf=False)
    names = {question.name for strip in found.record.questions for question in strip}
    assert names == {"car", "class 2"}
    assert json.loads((tmp_path / "audit.json").read_text())["format"] == 1


def test_the_cross_is_where_the_pixel_is():
    image = Image.new("RGB", (200, 100), (90, 90, 90))
    shown = picture(image, Question(0, 0, "", 150, 40, 0, "car"))
    assert shown.getpixel((150 + 9, 40 + 28)) == (255, 255, 255)
    assert shown.getpixel((50, 40 + 28)) == (90, 90, 90)


def test_an_answer_can_be_undone(model, painted_folder, tmp_path):
    found = prepare(model, painted_folder / "images", tmp_path / "audit", answers=6, crf=False)
    assert found.undo() is None
    seen = [found.next()]
    for right in (True, None, False, None, True):
        found.answer(found.next(), right)
        seen.append(found.next())
    for question in seen[-2::-1]:
        assert found.undo() == question
        assert Audit.load(tmp_path / "audit").next() == question
    assert found.progress == (0, 6)
    assert found.estimate() is None
