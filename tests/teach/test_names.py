"""Evaluation of taught and named models: by names, and without the annotated images."""

import json

import numpy as np
import pytest
from PIL import Image

from primaps.batch import predict_files
from primaps.data import pair_up
from primaps.evaluation.protocol import _match_names, evaluate
from primaps.persistence import change_edits
from primaps.teach.annotations import Annotation
from primaps.utils.errors import InputError
from tests.conftest import painted
from tests.teach.test_model import PriMaPsEM, clicks, fitted, images  # noqa: F401


@pytest.fixture
def labels(painted_folder):
    """The labels of the images, under the names of the annotations."""
    names = {"classes": ["brick", "grass", "water"], "ignore_index": 255}
    (painted_folder / "labels" / "classes.json").write_text(json.dumps(names))
    return painted_folder / "labels"


def test_names_are_matched_and_not_confusions(fitted, images, labels):  # noqa: F811
    swap = {"brick": "water", "grass": "grass", "water": "brick"}
    wrong = [Annotation(c.image, None, "point", swap[c.name], c.geometry, c.size) for c in clicks()]
    data = pair_up(images, labels)
    right = evaluate(fitted.teach(images, clicks(), level="tokens"), data)
    assert right.options.matching == "names"
    assert right.mean_iou > 0.95
    assert right.assignment == ["brick", "grass", "water"]
    swapped = fitted.teach(images, wrong, level="tokens")
    found = evaluate(swapped, data)
    assert found.assignment == ["brick", "grass", "water"]
    assert found.iou["grass"] > 0.95
    assert found.iou["brick"] < 0.05
    assert evaluate(swapped, data, matching="hungarian").mean_iou > 0.95
    assert evaluate(fitted, data).options.matching == "hungarian"


def test_scores_by_names_by_hand(tmp_path):
    for name in ("labels", "maps"):
        (tmp_path / name).mkdir()
    truth = np.array([[0, 0, 1, 1, 2, 255]], np.uint8)
    found = np.array([[1, 0, 1, 3, 2, 0]], np.uint8)
    Image.fromarray(truth).save(tmp_path / "labels/a.png")
    Image.fromarray(found).save(tmp_path / "maps/a.png")
    classes = {"classes": ["sky", "car", "road"]}
    (tmp_path / "labels/classes.json").write_text(json.dumps(classes))
    (tmp_path / "maps/primaps.json").write_text(
        json.dumps({"names": ["Car", "sky", "class 2", "car 2"]})
    )
    result = evaluate(tmp_path / "maps", labels=tmp_path / "labels")
    # 0 = car, 1 = sky, 2 has no name, 3 = car: the labeled pixels are sky car sky car none
    assert result.options.matching == "names"
    assert result.assignment == ["car", "sky", None, "car"]
    assert result.accuracy == pytest.approx(2 / 5)
    assert result.iou == {"sky": pytest.approx(1 / 3), "car": pytest.approx(1 / 3), "road": 0.0}


def test_no_fitting_name_is_refused(fitted, images, painted_folder):  # noqa: F811
    taught = fitted.teach(images, clicks(), level="tokens")
    data = pair_up(images, painted_folder / "labels")  # red, green, blue
    message = "no class of the model has the name of a label: the model has 'brick', 'grass', "
    with pytest.raises(InputError, match=message):
        evaluate(taught, data)
    assert evaluate(taught, data, matching="hungarian").mean_iou > 0.95


def test_a_numbered_name_is_that_of_a_label_only_if_no_label_has_it(images, labels):  # noqa: F811
    data = pair_up(images, labels)
    assert _match_names(["GRASS", "brick 2", "", "x"], 5, data) == [1, 0, None, None, None]


def test_annotated_images_are_left_out(fitted, images, labels):  # noqa: F811
    taught = fitted.teach(images, clicks(range(3)), level="tokens")
    data = pair_up(images, labels)
    found = evaluate(taught, data)
    assert found.annotated == ["0", "1", "2"]
    assert set(found.by_image) == {"3", "4", "5", "6", "7"}
    assert found.options.include_annotated is False
    whole = evaluate(taught, data, include_annotated=True)
    assert (whole.images, whole.annotated) == (8, ["0", "1", "2"])
    painted(1)[0].save(images / "copy.png")  # the same content under another name
    Image.fromarray(painted(1)[1]).save(labels / "copy.png")
    assert "copy" in evaluate(taught, pair_up(images, labels)).annotated
    everything = fitted.teach(images, clicks(range(8)), level="tokens")
    with pytest.raises(InputError, match="the model was taught with annotations in all 9 images"):
        evaluate(everything, pair_up(images, labels))


def test_a_named_model_is_matched_by_its_names(
    fitted, images, labels, colors, tmp_path  # noqa: F811
):  # fmt: skip
    fitted.save_pretrained(tmp_path / "m")
    found = evaluate(fitted, pair_up(images, labels))
    edits = [{"rename": str(k), "to": name} for k, name in enumerate(found.assignment)]
    change_edits(tmp_path / "m", fitted.class_summary_.tree, lambda _: edits)
    named = PriMaPsEM.from_pretrained(tmp_path / "m", backbone=colors, device="cpu")
    by_name = evaluate(named, pair_up(images, labels))
    assert by_name.options.matching == "names"
    assert by_name.mean_iou == found.mean_iou
    assert by_name.options.include_annotated is None
    predict_files(named, images, tmp_path / "maps", flip=True)
    maps = evaluate(tmp_path / "maps", images, labels)
    assert maps.options.matching == "names"
    assert maps.mean_iou == pytest.approx(by_name.mean_iou, abs=0.02)
